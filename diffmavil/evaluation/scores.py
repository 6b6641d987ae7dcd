"""Classification as the field reports it: scores of held-out clips against their labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

from einops import rearrange
from torch import Tensor

from diffmavil.config import require
from diffmavil.evaluation.bootstrap import Interval, area_interval, mean_interval, precision_interval
from diffmavil.evaluation.torch_metrics import area_under_roc, average_precision, confusion_matrix

TOP = 5


@dataclass(frozen=True)
class ClassScores:
    """Classes that no held-out clip carries take part in nothing but as wrong answers."""

    metrics: dict[str, float]
    """top1 and, of more than five classes, top5: shares of clips (one label to a clip). mAP: mean over classes of the
    average precision. d_prime: sqrt(2) Phi^-1(mean over classes of the area under the ROC curve), as in AudioSet's
    baseline (Hershey et al. 2017) and AST."""
    intervals: dict[str, Interval]
    """The same names: 95 %, over the held-out files (`diffmavil.evaluation.bootstrap`)."""
    per_class: dict[str, float]
    """Average precision of each class that held-out clips carry; with one label to a clip, its recall instead."""
    confusion: list[list[int]] | None
    """Clips of true class (row) and first answer (column), in the order of the classes; None with several labels."""
    absent: list[str]
    """Classes that no held-out clip carries."""


def classification_scores(
    scores: Tensor,
    target: Tensor,
    classes: Sequence[str],
    several: bool,
    seed: int,
    files: Tensor | None = None,
) -> ClassScores:
    """Every metric of a classifier.

    Args:
        scores: `[M, C]` in [0, 1]. Of equal ones, the first class is the answer.
        target: `[M, C]` bool, the classes of each clip.
        classes: their names.
        several: whether clips may have several labels, or none; else each has exactly one.
        seed: of the intervals.
        files: which clips were cut from one file, as `bootstrap.numbered` tells.

    Raises:
        ValueError: shapes, scores or labels that do not fit, fewer than two classes among the clips, or (several) no
            class that some clips carry and some do not.
    """
    _check(scores, target, classes, several)
    target = target.to(scores.device)
    present = target.any(dim=0).tolist()
    carried = [c for c, here in enumerate(present) if here]
    precision = {c: average_precision(scores[:, c], target[:, c]) for c in carried}
    metrics, intervals = {}, {}
    confusion = None
    if several:
        per_class = precision
    else:
        metrics, intervals = _accuracy(scores, target, seed, files)
        confusion = confusion_matrix(scores.argmax(dim=1), target.int().argmax(dim=1), len(classes))
        per_class = {c: confusion[c][c] / sum(confusion[c]) for c in carried}
    metrics["mAP"], intervals["mAP"] = fmean(precision.values()), precision_interval(scores, target, seed, files)
    metrics["d_prime"], intervals["d_prime"] = _d_prime(scores, target, seed, files)
    return ClassScores(
        metrics=metrics,
        intervals=intervals,
        per_class={classes[c]: value for c, value in per_class.items()},
        confusion=confusion,
        absent=[name for name, here in zip(classes, present, strict=True) if not here],
    )


def _check(scores: Tensor, target: Tensor, classes: Sequence[str], several: bool) -> None:
    require(scores.dim() == 2 and len(scores) > 0, "scores.shape", tuple(scores.shape), "[M, C] of at least one clip")
    require(target.shape == scores.shape, "target.shape", tuple(target.shape), f"{tuple(scores.shape)}")
    require(len(classes) == scores.shape[1], "classes", f"{len(classes)} names", f"{scores.shape[1]}")
    require(bool(((scores >= 0) & (scores <= 1)).all()), "scores", "numbers outside, or NaN", "in [0, 1]")
    counts = target.sum(dim=1)
    require(several or bool((counts == 1).all()), "target", "clips without or with several classes", "one class a clip")
    carried = int(target.any(dim=0).sum())
    require(carried >= 2, "target", f"{carried} classes carried by the clips", "at least two")
    telling = bool((target.any(dim=0) & ~target.all(dim=0)).any())
    require(telling, "target", "every clip with the same classes", "a class that some clips carry and some do not")


def _accuracy(
    scores: Tensor, target: Tensor, seed: int, files: Tensor | None
) -> tuple[dict[str, float], dict[str, Interval]]:
    """Share of clips whose class is the first answer, and among the first five."""
    true = rearrange(target.int().argmax(dim=1), "m -> m 1")
    order = scores.sort(dim=1, descending=True, stable=True).indices  # of equals the first, as argmax
    hits = {f"top{k}": (order[:, :k] == true).any(dim=1).double() for k in (1, TOP) if k < scores.shape[1]}
    means = {name: hit.mean().item() for name, hit in hits.items()}
    return means, {name: mean_interval(hit, seed, files) for name, hit in hits.items()}


def _d_prime(scores: Tensor, target: Tensor, seed: int, files: Tensor | None) -> tuple[float, Interval]:
    """A perfect area stands for half a pair of clips in wrong order: sensitivity would be infinite."""
    telling = target.any(dim=0) & ~target.all(dim=0)
    scores, target = scores[:, telling], target[:, telling]
    carrying = target.sum(dim=0)
    edge = 0.5 / int((carrying * (len(target) - carrying)).sum())

    def d_prime(area: float) -> float:
        return math.sqrt(2) * NormalDist().inv_cdf(min(max(area, edge), 1 - edge))

    area = fmean(area_under_roc(scores[:, c], target[:, c]) for c in range(scores.shape[1]))
    low, high = area_interval(scores, target, seed, files)
    return d_prime(area), (d_prime(low), d_prime(high))
