"""What torchmetrics computes for us. It is imported when a score is asked for: that takes a second or two, which every
process of a training and every `--help` would wait for.
"""

from __future__ import annotations

from torch import Tensor


def average_precision(scores: Tensor, target: Tensor) -> float:
    """Of one class: scores in [0, 1] `[M]`, and which clips carry it, bool `[M]`."""
    from torchmetrics.functional.classification import binary_average_precision

    return binary_average_precision(scores, target.int()).item()


def area_under_roc(scores: Tensor, target: Tensor) -> float:
    """Of one class; arguments as of `average_precision`."""
    from torchmetrics.functional.classification import binary_auroc

    return binary_auroc(scores, target.int()).item()


def accuracy(predicted: Tensor, true: Tensor, classes: int) -> float:
    """Share of equal class numbers, int64 `[M]` each."""
    from torchmetrics.functional.classification import multiclass_accuracy

    return multiclass_accuracy(predicted, true, num_classes=classes, average="micro").item()


def confusion_matrix(predicted: Tensor, true: Tensor, classes: int) -> list[list[int]]:
    """Clips of true class (row) and predicted class (column), from class numbers int64 `[M]` each."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    return multiclass_confusion_matrix(predicted, true, classes).tolist()
