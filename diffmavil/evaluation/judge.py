"""From features to numbers: every metric for the trained model, the untrained one, and chance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from diffmavil.evaluation.bootstrap import Interval, mean_interval, median_interval
from diffmavil.evaluation.features import FeatureTable
from diffmavil.evaluation.labels import Targets, chance, make_targets, score, score_interval
from diffmavil.evaluation.neighbours import knn_scores, neighbour_count
from diffmavil.evaluation.probe import fit_probe
from diffmavil.evaluation.result import ClipCounts, Score
from diffmavil.evaluation.retrieval import chance_rank, chance_recall, ranks

RECALL_AT = (1, 5, 10)
DIRECTIONS = {"audio_to_video": ("audio", "video"), "video_to_audio": ("video", "audio")}
_DIGITS = 6  # more are float32's noise


class Answers(NamedTuple):
    """What the linear probes of the trained model say of held-out clips."""

    rows: Tensor
    """int64 `[M]`: which rows of the held-out table."""
    scores: dict[str, Tensor]
    """Kind -> `[M, C]` in [0, 1]."""


@dataclass
class Judgement:
    """The part of an `Evaluation` that follows from features and labels alone."""

    classes: list[str]
    clips: dict[str, ClipCounts]
    results: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, Interval]]
    probe_l2: dict[str, dict[str, float]] = field(default_factory=dict)
    score: Score | None = None
    neighbours: int | None = None
    notes: list[str] = field(default_factory=list)
    answers: Answers | None = None

    def add(self, model: str, metric: str, value: float, interval: Interval | None = None) -> None:
        self.results[model][metric] = round(value, _DIGITS)
        if interval is not None:
            low, high = interval
            self.intervals[model][metric] = round(low, _DIGITS), round(high, _DIGITS)


def judge(train: FeatureTable, heldout: FeatureTable, seed: int = 0) -> Judgement:
    """Linear probe and neighbours from `train` to `heldout`, and retrieval inside `heldout`, for every model in both.

    Without usable labels, probe and neighbours are left out and a note says why; so is retrieval of a model with one
    modality.
    """
    targets = make_targets(train.labels, train.classes, heldout.labels, heldout.classes)
    counts = {
        "train": ClipCounts(len(train), int(targets.train.any(dim=1).sum()), train.clips - len(train)),
        "heldout": ClipCounts(len(heldout), int(targets.heldout.any(dim=1).sum()), heldout.clips - len(heldout)),
    }
    models = list(heldout.features)
    out = Judgement(targets.classes, counts, {name: {} for name in (*models, "chance")}, {name: {} for name in models})
    if targets.missing:
        out.notes.append(f"Linear probe and neighbours are left out: {targets.missing}.")
    else:
        _judge_labels(out, targets, train, heldout, seed)
    kinds = heldout.kinds
    if {"audio", "video"} <= set(kinds):
        _judge_retrieval(out, heldout, seed)
    else:
        out.notes.append(f"Retrieval is left out: the model has {' and '.join(kinds)} alone.")
    return out


def _judge_labels(out: Judgement, targets: Targets, train: FeatureTable, heldout: FeatureTable, seed: int) -> None:
    out.score = kind = targets.score
    train_rows, heldout_rows = targets.train.any(dim=1), targets.heldout.any(dim=1)
    out.neighbours = k = neighbour_count(targets.train)
    expected = chance(targets.heldout[heldout_rows], kind)
    for model, features in heldout.features.items():
        probed, named = {}, {}
        out.probe_l2[model] = {}
        for name in heldout.kinds:
            x, queries = _rows(train.features[model][name], train_rows), _rows(features[name], heldout_rows)
            target = targets.train[train_rows].to(x.device)
            fitted = fit_probe(x, target, kind, seed=seed)
            out.probe_l2[model][name] = fitted.l2
            probed[name], named[name] = fitted(queries), knn_scores(x, target, queries, k)
        true = targets.heldout[heldout_rows]
        files = heldout.files(heldout_rows.nonzero().flatten().tolist())
        for method, answers in (("probe", probed), ("knn", named)):
            for name, scores in answers.items():
                metric, right = f"{method}/{name}", true.to(scores.device)
                out.add(model, metric, score(scores, right, kind), score_interval(scores, right, kind, seed, files))
                out.add("chance", metric, expected)
        if model == "trained":
            out.answers = Answers(heldout_rows.nonzero().flatten(), probed)
    if kind == "mAP":
        out.notes.append(
            "Clips have several labels: one logistic regression for each class with a common l2, and neighbours' votes "
            "for each class; scored by mean average precision over the classes that held-out clips carry."
        )
    if targets.unknown:
        out.notes.append(
            f"{targets.unknown} held-out clips carry no class of the training clips; they count for retrieval only."
        )


def _rows(x: Tensor, chosen: Tensor) -> Tensor:
    return x[chosen.to(x.device)]


def _judge_retrieval(out: Judgement, heldout: FeatureTable, seed: int) -> None:
    files = heldout.files(range(len(heldout)))
    for direction, (query, gallery) in DIRECTIONS.items():
        for model, features in heldout.features.items():
            found = ranks(features[query], features[gallery])
            for k in RECALL_AT:
                hits = found.hits(k)
                out.add(model, f"{direction}/recall@{k}", hits.mean().item(), mean_interval(hits, seed, files))
            rank = found.expected()
            out.add(model, f"{direction}/median_rank", rank.quantile(0.5).item(), median_interval(rank, seed, files))
        for k in RECALL_AT:
            out.add("chance", f"{direction}/recall@{k}", chance_recall(len(heldout), k))
        out.add("chance", f"{direction}/median_rank", chance_rank(len(heldout)))
