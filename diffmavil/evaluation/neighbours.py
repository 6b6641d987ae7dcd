"""k nearest neighbours by cosine: held-out clips are named by the training clips that look most like them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_NEIGHBOURS = 10
TEMPERATURE = 0.07
"""A neighbour at cosine s votes with weight exp(s / 0.07), as in instance discrimination and DINO."""
TIE = 1e-12
"""Cosines closer than this are equal: the order of a float64 matrix product's sums must not decide."""
_CHUNK = 1024


def neighbour_count(target: Tensor) -> int:
    """k = 10, or the size of the median class when that is less. target: `[N, C]` bool."""
    return max(1, min(MAX_NEIGHBOURS, int(target.sum(dim=0).median())))


def knn_scores(x: Tensor, target: Tensor, queries: Tensor, k: int) -> Tensor:
    """Share of the weighted vote for each class: `[M, C]` float64, in [0, 1].

    All clips at least as near as the k-th nearest vote, so that ties do not depend on the order of clips.

    Args:
        x: `[N, D]` features of the training clips.
        target: `[N, C]` bool, their classes.
        queries: `[M, D]` features of the held-out clips.
        k: neighbours; N when there are fewer.
    """
    x, votes = F.normalize(x.double(), dim=1), target.double()
    k = min(k, len(x))
    scores = []
    for chunk in F.normalize(queries.double(), dim=1).split(_CHUNK):
        cosine = chunk @ x.T
        nearest = cosine.topk(k, dim=1).values
        weight = ((cosine - nearest[:, :1]) / TEMPERATURE).exp()  # relative to the nearest: no overflow
        weight = weight.where(cosine >= nearest[:, -1:] - TIE, 0)
        scores.append(weight @ votes / weight.sum(dim=1, keepdim=True))
    return torch.cat(scores).clamp(0, 1)
