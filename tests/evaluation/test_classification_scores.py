"""Scores of a classifier and their intervals, against torchmetrics on clips that are really drawn again."""

from __future__ import annotations

import math
from statistics import NormalDist, fmean

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_auroc, binary_average_precision, multiclass_accuracy

from diffmavil.evaluation.bootstrap import (
    RESAMPLES,
    areas,
    average_precisions,
    interval,
    mean_interval,
    median_interval,
    numbered,
    precision_interval,
)
from diffmavil.evaluation.scores import classification_scores

CLASSES = list("abcdefgh")


def answers(clips: int, several: bool, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scores of a classifier that knows something, many of them equal, and labels; nothing carries the last class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(7, (clips,), generator=generator)
    target = F.one_hot(labels, 8).bool()
    if several:
        target |= F.one_hot(torch.randint(7, (clips,), generator=generator), 8).bool()
    logits = torch.randn(clips, 8, generator=generator) + 1.5 * target
    return (logits.softmax(dim=1) * 50).round() / 50, target


def test_one_label_to_a_clip():
    scores, target = answers(200, several=False)
    found = classification_scores(scores, target, CLASSES, several=False, seed=0)
    labels = target.int().argmax(dim=1)
    assert list(found.metrics) == list(found.intervals) == ["top1", "top5", "mAP", "d_prime"]
    top1 = multiclass_accuracy(scores.argmax(dim=1), labels, num_classes=8, average="micro").item()
    assert found.metrics["top1"] == pytest.approx(top1)
    assert found.metrics["top1"] < found.metrics["top5"] < 1
    assert found.absent == ["h"]
    assert list(found.per_class) == CLASSES[:7]
    assert found.confusion is not None
    assert [sum(row) for row in found.confusion] == target.sum(dim=0).tolist()
    assert sum(found.confusion[i][i] for i in range(8)) == round(200 * top1)
    assert found.per_class["c"] == found.confusion[2][2] / sum(found.confusion[2])


def test_several_labels_to_a_clip():
    scores, target = answers(200, several=True)
    target[:5] = False
    found = classification_scores(scores, target, CLASSES, several=True, seed=0)
    precision = [binary_average_precision(scores[:, c], target[:, c].int()).item() for c in range(7)]
    area = fmean(binary_auroc(scores[:, c], target[:, c].int()).item() for c in range(7))
    assert list(found.metrics) == ["mAP", "d_prime"]
    assert found.metrics["mAP"] == pytest.approx(fmean(precision))
    assert found.metrics["d_prime"] == pytest.approx(math.sqrt(2) * NormalDist().inv_cdf(area))
    assert list(found.per_class.values()) == pytest.approx(precision)
    assert found.confusion is None


@pytest.mark.parametrize("several", [False, True])
def test_intervals_hold_their_numbers_and_are_those_of_the_seed(several):
    scores, target = answers(300, several)
    found, again, other = (classification_scores(scores, target, CLASSES, several, seed) for seed in (1, 1, 2))
    for name, value in found.metrics.items():
        low, high = found.intervals[name]
        assert low < value < high, name
    assert found == again
    assert found.intervals != other.intervals
    few = classification_scores(*answers(60, several), CLASSES, several, 1)
    wide, narrow = (x.intervals["mAP"][1] - x.intervals["mAP"][0] for x in (few, found))
    assert wide > 1.5 * narrow


def test_perfect_scores_have_a_finite_d_prime():
    target = F.one_hot(torch.arange(20) % 4, 4).bool()
    found = classification_scores(target.float(), target, list("abcd"), several=False, seed=0)
    assert found.metrics["top1"] == found.metrics["mAP"] == 1
    assert 3 < found.metrics["d_prime"] < 6
    assert found.intervals["top1"] == (1, 1)


def test_without_more_than_five_classes_there_is_no_top5():
    target = F.one_hot(torch.arange(20) % 4, 4).bool()
    assert "top5" not in classification_scores(target.float(), target, list("abcd"), several=False, seed=0).metrics


@pytest.mark.parametrize(
    ("scores", "target", "several", "named"),
    [
        (torch.ones(3), torch.ones(3, 2), False, r"scores\.shape"),
        (torch.ones(0, 2), torch.ones(0, 2), False, r"scores\.shape"),
        (torch.ones(3, 2), torch.ones(2, 2), False, r"target\.shape"),
        (torch.ones(3, 3), torch.eye(3), False, "classes"),
        (torch.full((2, 2), 1.5), torch.eye(2), False, "scores"),
        (torch.full((2, 2), torch.nan), torch.eye(2), False, "scores"),
        (torch.ones(2, 2), torch.ones(2, 2), False, "one class a clip"),
        (torch.ones(2, 2), torch.tensor([[1, 0], [1, 0]]), False, "at least two"),
        (torch.ones(2, 2), torch.ones(2, 2), True, "some do not"),
    ],
    ids=[
        *("dimensions", "no clips", "other clips", "names", "logits", "NaN", "several labels", "one class"),
        "all classes everywhere",
    ],
)
def test_what_cannot_be_scored_is_refused_and_named(scores, target, several, named):
    with pytest.raises(ValueError, match=named):
        classification_scores(scores, target.bool(), ["a", "b"], several, seed=0)


# Intervals


def test_weights_stand_for_clips_that_are_drawn_again():
    """Also for scores of which many are equal."""
    scores, target = answers(40, several=True)
    drawn = torch.randint(40, (30, 40), generator=torch.Generator().manual_seed(3))
    weights = F.one_hot(drawn, 40).sum(dim=1).float()
    s, t = scores[:, 1], target[:, 1]
    for row, precision, area in zip(drawn, average_precisions(s, t, weights), areas(s, t, weights), strict=True):
        assert area.item() == pytest.approx(binary_auroc(s[row], t[row].int()).item(), abs=1e-5)
        expected = []
        for mine in row[t[row]].tolist():
            seen = torch.cat([row[row != mine], torch.tensor([mine])])
            expected.append(t[seen][s[seen] >= s[mine]].double().mean().item())
        assert precision.item() == pytest.approx(fmean(expected), abs=1e-5)
    once = torch.ones(1, 40)
    assert average_precisions(s, t, once).item() == pytest.approx(binary_average_precision(s, t.int()).item())


def test_copies_of_rare_clips_do_not_move_the_interval():
    """The mean precision of classes with few clips is inside its interval, and about in the middle."""
    generator = torch.Generator().manual_seed(6)
    target = F.one_hot(torch.arange(600) % 60, 60).bool()
    scores = (torch.randn(600, 60, generator=generator) + 2 * target).sigmoid()
    value = fmean(binary_average_precision(scores[:, c], target[:, c].int()).item() for c in range(60))
    low, high = precision_interval(scores, target, seed=0)
    assert abs((low + high) / 2 - value) < 0.2 * (high - low)


def test_a_draw_without_the_class_has_no_number():
    scores, target = torch.tensor([0.1, 0.9]), torch.tensor([False, True])
    weights = torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    assert average_precisions(scores, target, weights).isnan().tolist() == [True, False, False]
    assert areas(scores, target, weights).isnan().tolist() == [True, True, False]


def test_clips_of_one_file_are_no_independent_cases():
    """Six clips of a file that all fare alike tell as much as one of them; clips that stand alone are as they were."""
    generator = torch.Generator().manual_seed(0)
    outcomes = (torch.rand(100, generator=generator) < 0.6).double()
    files = numbered([f"{i // 6}" for i in range(600)])
    six = outcomes.repeat_interleave(6)
    assert mean_interval(six, 1, files) == pytest.approx(mean_interval(outcomes, 1))
    low, high = mean_interval(six, 1)
    assert high - low < 0.5 * (mean_interval(outcomes, 1)[1] - mean_interval(outcomes, 1)[0])
    rank = torch.arange(100.0)
    assert median_interval(rank.repeat_interleave(6), 1, files) == pytest.approx(median_interval(rank, 1), abs=0.6)
    assert numbered(["a", "b", "c"]) is None
    uneven = numbered(["a", "b", "a", "c"])
    assert uneven is not None
    assert uneven.tolist() == [0, 1, 0, 2]
    low, high = mean_interval(torch.tensor([1.0, 0.0, 1.0, 0.0]), 0, uneven)
    assert (low, high) == (0.0, 1.0)


def test_the_interval_of_a_share_is_that_of_the_binomial():
    hits = torch.cat([torch.ones(120), torch.zeros(80)])
    low, high = mean_interval(hits, seed=0)
    deviation = math.sqrt(0.6 * 0.4 / 200)
    assert low == pytest.approx(0.6 - 1.96 * deviation, abs=0.015)
    assert high == pytest.approx(0.6 + 1.96 * deviation, abs=0.015)


@pytest.mark.parametrize("clips", [1, 2, 9, 50])
def test_the_median_is_numpys(clips):
    values = torch.rand(clips, generator=torch.Generator().manual_seed(4)).double()
    drawn = torch.zeros(RESAMPLES, clips)

    def keep(weights: Tensor) -> Tensor:
        drawn.copy_(weights)
        return weights[:, 0]

    interval(keep, clips, 5, "cpu")
    assert drawn.sum(dim=1).eq(clips).all()
    medians = [np.median(values.repeat_interleave(row)) for row in drawn.long()]
    assert median_interval(values, seed=5) == pytest.approx(tuple(np.quantile(medians, [0.025, 0.975])))
