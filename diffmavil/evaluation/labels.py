"""Labels of training and held-out clips as one matrix each, and the scores that fit them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from diffmavil.evaluation.bootstrap import Interval, mean_interval, precision_interval
from diffmavil.evaluation.result import Score
from diffmavil.evaluation.torch_metrics import accuracy, average_precision


@dataclass(frozen=True)
class Targets:
    """Which clips carry which classes. Only classes that some training clip carries are kept.

    A clip with no such class has an all-False row; it takes no part in probe and neighbours.
    """

    classes: list[str]
    train: Tensor
    """`[N, C]` bool."""
    heldout: Tensor
    """`[M, C]` bool."""
    unknown: int
    """Held-out clips whose labels no training clip carries."""

    @property
    def score(self) -> Score:
        """`mAP` as soon as one clip carries several classes, else `accuracy`."""
        widest = max((int(rows.sum(dim=1).max()) for rows in (self.train, self.heldout) if len(rows)), default=0)
        return "mAP" if widest > 1 else "accuracy"

    @property
    def missing(self) -> str | None:
        """Why features cannot be scored against these labels; None when they can."""
        if not (self.train.any() and self.heldout.any()):
            return "training and held-out clips have no labels in common"
        if len(self.classes) == 1:
            return f"there is only one class, {self.classes[0]!r}"
        return None


def make_targets(
    train_labels: Sequence[Sequence[int]],
    train_classes: Sequence[str],
    heldout_labels: Sequence[Sequence[int]],
    heldout_classes: Sequence[str],
) -> Targets:
    """Labels are indices into the classes of their own set; the two sets are matched by class name."""
    train = [{train_classes[i] for i in labels} for labels in train_labels]
    heldout = [{heldout_classes[i] for i in labels} for labels in heldout_labels]
    carried = set().union(*train)
    classes = [name for name in train_classes if name in carried]
    unknown = sum(bool(names) and names.isdisjoint(carried) for names in heldout)
    return Targets(classes, _multi_hot(train, classes), _multi_hot(heldout, classes), unknown)


def _multi_hot(clips: list[set[str]], classes: list[str]) -> Tensor:
    rows = [[name in names for name in classes] for names in clips]
    return torch.tensor(rows, dtype=torch.bool).view(len(clips), len(classes))


def score(scores: Tensor, target: Tensor, kind: Score) -> float:
    """Accuracy of the highest of scores `[M, C]` (the first of equals), or their macro mean average precision.

    scores: in [0, 1]. target: `[M, C]` bool. mAP is over the classes that some held-out clip carries.
    """
    if kind == "accuracy":
        predicted, true = scores.argmax(dim=1), target.int().argmax(dim=1)
        return accuracy(predicted, true, target.shape[1])
    present = target.any(dim=0).nonzero().flatten().tolist()
    return fmean(average_precision(scores[:, c], target[:, c]) for c in present)


def score_interval(scores: Tensor, target: Tensor, kind: Score, seed: int, files: Tensor | None = None) -> Interval:
    """Of what `score` gives for these arguments: 95 %, over the clips; files: as `bootstrap.numbered` gives them."""
    if kind == "accuracy":
        return mean_interval(scores.argmax(dim=1) == target.int().argmax(dim=1), seed, files)
    return precision_interval(scores, target, seed, files)


def chance(target: Tensor, kind: Score) -> float:
    """What features that know nothing score: always the most common held-out class, or clips in random order.

    For mAP that is the mean share of the clips that carry a class, over the classes present.
    """
    share = target.double().mean(dim=0)
    return (share.max() if kind == "accuracy" else share[share > 0].mean()).item()
