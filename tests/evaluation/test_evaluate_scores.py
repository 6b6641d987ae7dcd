"""Scores against their definitions: probe, neighbours, recall, mean average precision, chance."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.retrieval import RetrievalRecall

from diffmavil.evaluation.labels import chance, make_targets, score
from diffmavil.evaluation.neighbours import TEMPERATURE, knn_scores, neighbour_count
from diffmavil.evaluation.probe import L2_GRID, fit_probe, stratified_split
from diffmavil.evaluation.retrieval import chance_recall, recall


def one_hot(labels: list[int] | Tensor, classes: int) -> Tensor:
    return F.one_hot(torch.as_tensor(labels), classes).bool()


def clouds(clips: int, classes: int, width: int, separation: float, seed: int) -> tuple[Tensor, Tensor]:
    """Gaussian clouds around class centres that do not depend on `seed`: features and one-hot labels."""
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99)) * separation
    labels = torch.arange(clips) % classes
    noise = torch.randn(clips, width, generator=torch.Generator().manual_seed(seed))
    return (centres[labels] + noise) * 7 + 3, one_hot(labels, classes)


# Linear probe


@pytest.mark.parametrize("kind", ["accuracy", "mAP"])
def test_probe_finds_separable_classes(kind):
    train, heldout = clouds(200, 5, 24, 2.0, seed=1), clouds(100, 5, 24, 2.0, seed=2)
    probe = fit_probe(*train, kind)
    assert score(probe(heldout[0]), heldout[1], kind) > 0.98


@pytest.mark.parametrize("kind", ["accuracy", "mAP"])
def test_probe_on_noise_is_at_chance(kind):
    train, heldout = clouds(300, 5, 64, 0.0, seed=1), clouds(1000, 5, 64, 0.0, seed=2)
    probe = fit_probe(*train, kind)
    deviation = math.sqrt(0.2 * 0.8 / 1000)
    assert abs(score(probe(heldout[0]), heldout[1], kind) - 0.2) < 4 * deviation


def gradient(probe_l2: float, x: Tensor, target: Tensor, weight: Tensor, bias: Tensor, kind: str) -> Tensor:
    """Of the regularised loss, written out by hand."""
    logits = x @ weight + bias
    predicted = logits.softmax(1) if kind == "accuracy" else logits.sigmoid()
    error = (predicted - target.double()) / len(x)
    return torch.cat([(x.T @ error + probe_l2 * weight).flatten(), error.sum(0)])


@pytest.mark.parametrize("kind", ["accuracy", "mAP"])
def test_probe_is_the_minimum_on_standardised_features(kind):
    x, target = clouds(120, 4, 16, 0.5, seed=3)
    probe = fit_probe(x, target, kind)
    standard = probe.standardise(x.double())
    torch.testing.assert_close(standard.mean(0), torch.zeros(16).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(standard.var(0, correction=0), torch.ones(16).double())
    assert gradient(probe.l2, standard, target, probe.weight, probe.bias, kind).abs().max() < 1e-6


def test_probe_is_the_minimum_on_features_that_depend_on_each_other():
    x, target = clouds(120, 4, 6, 0.5, seed=3)
    mixed = torch.cat([x, x @ torch.ones(6, 6) + 1e-3 * x, 2 * x], dim=1)
    probe = fit_probe(mixed, target, "accuracy")
    standard = probe.standardise(mixed.double())
    assert gradient(probe.l2, standard, target, probe.weight, probe.bias, "accuracy").abs().max() < 1e-6


def test_probe_is_deterministic():
    x, target = clouds(90, 3, 12, 0.5, seed=4)
    first, second = (fit_probe(x, target, "accuracy", seed=5) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)


def test_l2_is_the_best_of_the_grid_on_validation_clips():
    x, target = clouds(200, 4, 32, 0.2, seed=6)
    chosen = fit_probe(x, target, "accuracy", seed=7).l2
    held = stratified_split(target, seed=7)
    inner = x[~held].double()
    mean, std = inner.mean(0), inner.std(0, correction=0)
    wrong = {}
    for l2 in L2_GRID:
        weight = torch.zeros(32, 4, dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        newton = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

        def loss(weight=weight, bias=bias, newton=newton, l2=l2):
            newton.zero_grad()
            logits = ((inner - mean) / std) @ weight + bias
            value = F.cross_entropy(logits, target[~held].int().argmax(1)) + l2 / 2 * weight.square().sum()
            value.backward()
            return value

        newton.step(loss)
        logits = ((x[held].double() - mean) / std) @ weight + bias
        labels = target[held].int().argmax(1)
        wrong[l2] = (logits.argmax(1) != labels).sum().item(), F.cross_entropy(logits, labels).item()
    assert len({errors for errors, _ in wrong.values()}) > 1, "the case should tell the grid's values apart"
    assert chosen == min(wrong, key=wrong.__getitem__)


def test_constant_features_do_not_matter():
    x, target = clouds(60, 3, 8, 1.0, seed=8)
    with_constant = torch.cat([x, torch.full((60, 1), 1.3)], dim=1)
    shifted = with_constant + torch.tensor([0.0] * 8 + [1e-7])  # rounding, as another device would give
    plain, probe = fit_probe(x, target, "accuracy"), fit_probe(with_constant, target, "accuracy")
    torch.testing.assert_close(probe(shifted), plain(x))


def test_split_is_stratified_and_spares_single_clips():
    target = one_hot([0] * 50 + [1] * 10 + [2] * 2 + [3], 4)
    held = stratified_split(target, seed=0)
    assert target[held].sum(0).tolist() == [10, 2, 1, 0]
    assert torch.equal(held, stratified_split(target, seed=0))
    assert not torch.equal(held, stratified_split(target, seed=1))


def test_split_counts_a_clip_for_its_rarest_class():
    target = torch.zeros(12, 2, dtype=torch.bool)
    target[:, 0] = True
    target[:2, 1] = True
    held = stratified_split(target, seed=0)
    assert held[:2].sum() == 1
    assert held[2:].sum() == 2


def test_probe_without_validation_clips():
    probe = fit_probe(torch.eye(3), one_hot([0, 1, 2], 3), "accuracy")
    assert score(probe(torch.eye(3)), one_hot([0, 1, 2], 3), "accuracy") == 1


def test_probe_refuses_clips_without_a_class():
    with pytest.raises(ValueError, match="target"):
        fit_probe(torch.eye(3), one_hot([0, 1, 2], 4)[:, 1:], "accuracy")


# Nearest neighbours


def test_knn_is_its_definition():
    generator = torch.Generator().manual_seed(0)
    x, queries = torch.randn(40, 6, generator=generator), torch.randn(15, 6, generator=generator)
    labels = torch.randint(4, (40,), generator=generator).tolist()
    got = knn_scores(x, one_hot(labels, 4), queries, k=7)
    for query, row in zip(queries, got, strict=True):
        cosines = [F.cosine_similarity(query.double(), other.double(), dim=0).item() for other in x]
        nearest = sorted(range(40), key=lambda i: -cosines[i])[:7]
        votes = [sum(math.exp(cosines[i] / TEMPERATURE) for i in nearest if labels[i] == c) for c in range(4)]
        torch.testing.assert_close(row, torch.tensor(votes).double() / sum(votes), atol=1e-6, rtol=0)


def test_knn_does_not_depend_on_the_order_of_equal_clips():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    votes = [knn_scores(x[p], one_hot([0, 1, 2, 3], 4)[p], x[:1], k=1) for p in ([0, 1, 2, 3], [2, 3, 1, 0])]
    torch.testing.assert_close(votes[0], torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0]]).double())
    torch.testing.assert_close(votes[1], votes[0])


def test_knn_with_fewer_clips_than_k():
    got = knn_scores(torch.eye(2), one_hot([0, 1], 2), torch.eye(2), k=10)
    assert got.argmax(1).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("sizes", "k"),
    [([64, 64, 64], 10), ([3, 4, 50], 4), ([1, 1, 1], 1)],
    ids=["large classes", "median class of 4", "one clip to a class"],
)
def test_number_of_neighbours(sizes, k):
    labels = [c for c, size in enumerate(sizes) for _ in range(size)]
    assert neighbour_count(one_hot(labels, len(sizes))) == k


# Retrieval


def test_recall_is_torchmetrics_recall_without_ties():
    generator = torch.Generator().manual_seed(1)
    audio = torch.randn(30, 8, generator=generator)
    video = audio + torch.randn(30, 8, generator=generator)
    cosine = F.normalize(audio, dim=1) @ F.normalize(video, dim=1).T
    for k, got in zip((1, 5, 30), recall(audio, video, (1, 5, 30)), strict=True):
        indexes = torch.arange(30).repeat_interleave(30)
        reference = RetrievalRecall(top_k=k)(cosine.flatten(), torch.eye(30).flatten().bool(), indexes=indexes)
        assert got == pytest.approx(reference.item(), abs=1e-6)
    assert 0.1 < recall(audio, video, (1,))[0] < 0.9, "the case should be neither trivial nor hopeless"


def test_recall_has_a_direction():
    """Both pictures are nearest to sound 0: sounds find theirs, pictures do not."""
    audio = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    video = torch.tensor([[1.0, 0.0], [1.0, 0.1]])
    assert recall(audio, video, (1,)) == [1.0]
    assert recall(video, audio, (1,)) == [0.5]


@pytest.mark.parametrize("k", [1, 3, 5])
def test_recall_of_features_that_are_all_alike_is_chance(k):
    alike = torch.full((5, 4), 0.3)
    assert recall(alike, alike, (k,)) == [pytest.approx(chance_recall(5, k))]


def test_recall_shares_the_rank_among_equals():
    """Candidates 0 and 1 are the same picture: sounds 0 and 1 are right half the time; 2 always."""
    video = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert recall(video, video, (1, 2)) == [pytest.approx(2 / 3), pytest.approx(1.0)]


def test_recall_over_several_chunks():
    generator = torch.Generator().manual_seed(2)
    audio = torch.randn(1100, 4, generator=generator)
    permuted = torch.randperm(1100, generator=generator)
    video = audio + 0.1 * torch.randn(1100, 4, generator=generator)
    torch.testing.assert_close(recall(audio, video, (1, 5)), recall(audio[permuted], video[permuted], (1, 5)))


def test_chance_recall_of_a_tiny_set_is_at_most_1():
    assert chance_recall(3, 5) == 1.0


def test_recall_refuses_sets_of_different_size():
    with pytest.raises(ValueError, match=r"gallery\.shape"):
        recall(torch.eye(3), torch.eye(4)[:, :3], (1,))


# Labels and scores


def test_classes_are_matched_by_name():
    targets = make_targets([(0,), (1,)], ["dog", "cat"], [(0,), (1,), (2,), ()], ["bird", "cat", "dog"])
    assert targets.classes == ["dog", "cat"]
    assert targets.heldout.tolist() == [[False, False], [False, True], [True, False], [False, False]]
    assert targets.unknown == 1
    assert targets.score == "accuracy"
    assert targets.missing is None


def test_classes_that_no_training_clip_carries_are_dropped():
    assert make_targets([(2,), (0,)], ["a", "b", "c"], [(1,), (2,)], ["a", "b", "c"]).classes == ["a", "c"]


@pytest.mark.parametrize(
    ("train", "heldout", "why"),
    [
        ([(), ()], [(0,)], "no labels in common"),
        ([(0,), (1,)], [(), ()], "no labels in common"),
        ([(0,), (1,)], [(2,)], "no labels in common"),
        ([(0,), (0,)], [(0,)], "only one class, 'a'"),
        ([], [], "no labels in common"),
    ],
    ids=["training clips unlabelled", "held-out clips unlabelled", "disjoint", "one class", "nothing"],
)
def test_labels_that_tell_nothing(train, heldout, why):
    missing = make_targets(train, ["a", "b", "c"], heldout, ["a", "b", "c"]).missing
    assert missing is not None
    assert why in missing


def test_several_labels_ask_for_map():
    assert make_targets([(0,), (1,)], ["a", "b"], [(0, 1)], ["a", "b"]).score == "mAP"


def average_precision(scores: list[float], relevant: list[bool]) -> float:
    """Mean over the relevant clips of the precision at their rank (no ties)."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    ranks = [rank for rank, i in enumerate(order, 1) if relevant[i]]
    return sum(found / rank for found, rank in enumerate(ranks, 1)) / len(ranks)


def test_map_is_its_definition_over_the_classes_present():
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(20, 3, generator=generator).double()
    target = torch.rand(20, 3, generator=generator) < 0.3
    target[:, 2] = False
    expected = [average_precision(scores[:, c].tolist(), target[:, c].tolist()) for c in (0, 1)]
    assert score(scores, target, "mAP") == pytest.approx(sum(expected) / 2)


def test_accuracy_gives_equal_scores_to_the_first_class():
    assert score(torch.full((4, 2), 0.5), one_hot([0, 0, 0, 1], 2), "accuracy") == 0.75


def test_chance():
    assert chance(one_hot([0, 0, 0, 1, 2], 3), "accuracy") == pytest.approx(0.6)
    several = torch.tensor([[True, True, False], [True, False, False]])
    assert chance(several, "mAP") == pytest.approx((1.0 + 0.5) / 2)
