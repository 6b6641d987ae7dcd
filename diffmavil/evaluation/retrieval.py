"""Cross-modal retrieval: which of all held-out clips has the picture that goes with this sound, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from diffmavil.config import require
from diffmavil.evaluation.neighbours import TIE

_CHUNK = 1024


class Ranks(NamedTuple):
    """Where the right candidate of each query stands. Candidates as near as the right one are in random order."""

    before: Tensor
    """float64 `[M]`: candidates nearer than the right one."""
    equal: Tensor
    """float64 `[M]`: those as near, itself among them."""

    def hits(self, k: int) -> Tensor:
        """`[M]`: the probability that the right one comes among the first k."""
        return ((k - self.before) / self.equal).clamp(0, 1)

    def expected(self) -> Tensor:
        """`[M]`: the rank to be expected of the right one, from 1."""
        return self.before + (self.equal + 1) / 2


def ranks(queries: Tensor, gallery: Tensor) -> Ranks:
    """Of queries `[M, D]`, whose own rows of gallery `[M, D]` are the right candidates, by cosine.

    Features that are all alike have recall k/M, not 0 or 1 (torchmetrics' RetrievalRecall leaves that to the order of
    the sort; without ties the two agree).
    """
    require(queries.shape == gallery.shape, "gallery.shape", tuple(gallery.shape), f"{tuple(queries.shape)}")
    queries, gallery = F.normalize(queries.double(), dim=1), F.normalize(gallery.double(), dim=1)
    better, tied = [], []
    for first in range(0, len(queries), _CHUNK):
        cosine = queries[first : first + _CHUNK] @ gallery.T
        own = cosine.diagonal(first)[:, None]
        better.append((cosine > own + TIE).sum(dim=1))
        tied.append(((cosine - own).abs() <= TIE).sum(dim=1))
    return Ranks(torch.cat(better).double(), torch.cat(tied).double())


def recall(queries: Tensor, gallery: Tensor, ks: Sequence[int]) -> list[float]:
    """Share of queries whose own row of gallery is among the k nearest, for each k. Arguments as of `ranks`."""
    found = ranks(queries, gallery)
    return [found.hits(k).mean().item() for k in ks]


def chance_recall(count: int, k: int) -> float:
    """Recall of a random order of `count` candidates."""
    return min(k / count, 1.0)


def chance_rank(count: int) -> float:
    """Median rank of a random order of `count` candidates."""
    return (count + 1) / 2
