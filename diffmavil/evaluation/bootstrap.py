"""How far a number would move with other clips: 95 % intervals by the bootstrap (Efron 1979), percentile method.

The held-out clips are drawn again 1,000 times, with replacement, and the number is computed for each draw; the interval
is what lies between its 2.5 % and 97.5 % quantiles. Clips that were cut from one file are drawn together, since they
are no independent cases (Davison and Hinkley 1997, section 3.8). A draw is a row of weights, how often each clip is in
it, so that nothing has to be sorted again. Numbers of the same clips and seed see the same draws. The interval knows of
the choice of held-out clips alone, not of training; and where all clips fare alike, it is a point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from einops import rearrange
from torch import Tensor

from diffmavil.config import require

RESAMPLES = 1000
_SIDE = 0.025
_ENTRIES = 2**24  # of weights at a time
_CHUNK = 256  # clips compared with all others at a time

Interval = tuple[float, float]
"""(low, high)."""


def numbered(files: Sequence[str]) -> Tensor | None:
    """int64 `[M]`: a number for the file of each clip; None where each has its own, or all have one: of that nothing is
    known but by its clips.
    """
    number = {file: i for i, file in enumerate(dict.fromkeys(files))}
    return None if len(number) in (1, len(files)) else torch.tensor([number[file] for file in files])


def interval(
    statistic: Callable[[Tensor], Tensor],
    clips: int,
    seed: int,
    device: torch.device | str,
    files: Tensor | None = None,
) -> Interval:
    """Of a number that `statistic` computes for each of several draws of `clips` clips.

    Args:
        statistic: float32 weights `[R, M]` on `device` -> the number in each draw, `[R]`; NaN where it has none.
        files: as `numbered` gives them, here and below: clips of one file are drawn together.
    """
    require(clips >= 1, "clips", clips, ">= 1")
    found = torch.cat([statistic(weights).double() for weights in _draws(clips, seed, device, files)])
    found = found[~found.isnan()]
    if not len(found):
        return float("nan"), float("nan")
    low, high = found.quantile(found.new_tensor([_SIDE, 1 - _SIDE])).tolist()
    return low, high


def mean_interval(outcomes: Tensor, seed: int, files: Tensor | None = None) -> Interval:
    """Of the mean of `[M]` outcomes, one for each clip."""
    outcomes = outcomes.double()

    def means(weights: Tensor) -> Tensor:
        return weights.double() @ outcomes / weights.double().sum(dim=1)

    return interval(means, len(outcomes), seed, outcomes.device, files)


def median_interval(outcomes: Tensor, seed: int, files: Tensor | None = None) -> Interval:
    """Of the median of `[M]` outcomes, one for each clip; between the two in the middle, their mean."""
    ordered, order = outcomes.double().sort()

    def medians(weights: Tensor) -> Tensor:
        seen = weights[:, order].cumsum(dim=1)
        drawn = seen[:, -1]
        middle = torch.stack([((drawn + 1) / 2).floor(), (drawn / 2).floor() + 1], dim=1)
        return ordered[torch.searchsorted(seen, middle)].mean(dim=1)

    return interval(medians, len(outcomes), seed, outcomes.device, files)


def precision_interval(scores: Tensor, target: Tensor, seed: int, files: Tensor | None = None) -> Interval:
    """Of the mean average precision of scores `[M, C]` with target `[M, C]` bool, over the classes that a draw has."""

    def means(weights: Tensor) -> Tensor:
        return torch.stack([average_precisions(s, t, weights) for s, t in _classes(scores, target)]).nanmean(dim=0)

    return interval(means, len(scores), seed, scores.device, files)


def area_interval(scores: Tensor, target: Tensor, seed: int, files: Tensor | None = None) -> Interval:
    """Of the mean area under the ROC curve, over the classes that some clips of a draw carry and some do not."""

    def means(weights: Tensor) -> Tensor:
        return torch.stack([areas(s, t, weights) for s, t in _classes(scores, target)]).nanmean(dim=0)

    return interval(means, len(scores), seed, scores.device, files)


def average_precisions(scores: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Of one class in each draw, `[R]`: the mean over its clips of the precision down to their score; NaN without any.

    Of a clip that is drawn several times, each copy counts itself alone and not the others: they would vouch for each
    other, and rare classes score better in every draw than they do.

    Args:
        scores: `[M]`. target: `[M]` bool. weights: float32 `[R, M]`.
    """
    mine, own = scores[target], weights[:, target]
    precision = torch.empty_like(own)
    for first in range(0, len(mine), _CHUNK):
        bound = mine[first : first + _CHUNK]
        above = weights @ (rearrange(scores, "m -> m 1") >= bound).float()
        right = own @ (rearrange(mine, "p -> p 1") >= bound).float()
        copies = own[:, first : first + _CHUNK] - 1
        precision[:, first : first + _CHUNK] = (right - copies) / (above - copies)
    return (own * precision).sum(dim=1) / own.sum(dim=1)


def areas(scores: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Under the ROC curve of one class in each draw, `[R]`: the share of pairs of a clip with the class and one without
    that the scores order rightly, equal ones counting half; NaN without any. Arguments as of `average_precisions`.
    """
    mine, own, others = scores[target], weights[:, target], weights[:, ~target]
    rest = rearrange(scores[~target], "n -> n 1")
    right = torch.zeros_like(weights[:, 0])
    for first in range(0, len(mine), _CHUNK):
        bound = mine[first : first + _CHUNK]
        below = others @ ((rest < bound).float() + 0.5 * (rest == bound).float())
        right += (own[:, first : first + _CHUNK] * below).sum(dim=1)
    return right / (own.sum(dim=1) * others.sum(dim=1))


def _classes(scores: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores and target of each class that some clip carries."""
    for c in target.any(dim=0).nonzero().flatten().tolist():
        yield scores[:, c], target[:, c]


def _draws(clips: int, seed: int, device: torch.device | str, files: Tensor | None) -> Iterator[Tensor]:
    """`RESAMPLES` draws in all: float32 `[R, M]`, how often each clip is in each; the same on every device.

    Of `files`, as many are drawn as there are, each with all of its clips: how many these are may differ.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, cases = max(1, min(RESAMPLES, _ENTRIES // clips)), clips if files is None else int(files.max()) + 1
    for first in range(0, RESAMPLES, rows):
        count = min(rows, RESAMPLES - first)
        drawn = torch.randint(cases, (count, cases), generator=generator)
        weights = torch.zeros(count, cases).scatter_add_(1, drawn, torch.ones(count, cases))
        yield (weights if files is None else weights[:, files.cpu()]).to(device)
