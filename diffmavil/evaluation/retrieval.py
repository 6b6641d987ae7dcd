"""Cross-modal retrieval: which of all held-out clips has the picture that goes with this sound, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from diffmavil.config import require
from diffmavil.evaluation.neighbours import TIE

_CHUNK = 1024


def recall(queries: Tensor, gallery: Tensor, ks: Sequence[int]) -> list[float]:
    """Share of queries `[M, D]` whose own row of gallery `[M, D]` is among the k nearest by cosine, for each k.

    Candidates as near as the right one are in random order: a query counts for the probability that the right one
    comes among the first k. So features that are all alike score k/M, not 0 or 1 (torchmetrics' RetrievalRecall leaves
    that to the order of the sort; without ties the two agree).
    """
    require(queries.shape == gallery.shape, "gallery.shape", tuple(gallery.shape), f"{tuple(queries.shape)}")
    queries, gallery = F.normalize(queries.double(), dim=1), F.normalize(gallery.double(), dim=1)
    better, tied = [], []
    for first in range(0, len(queries), _CHUNK):
        cosine = queries[first : first + _CHUNK] @ gallery.T
        own = cosine.diagonal(first)[:, None]
        better.append((cosine > own + TIE).sum(dim=1))
        tied.append(((cosine - own).abs() <= TIE).sum(dim=1))
    before, equal = torch.cat(better).double(), torch.cat(tied).double()
    return [((k - before) / equal).clamp(0, 1).mean().item() for k in ks]


def chance_recall(count: int, k: int) -> float:
    """Recall of a random order of `count` candidates."""
    return min(k / count, 1.0)
