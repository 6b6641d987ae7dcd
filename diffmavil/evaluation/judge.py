"""From features to numbers: every metric for the trained model, the untrained one, and chance."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from diffmavil.evaluation.features import KINDS, FeatureTable
from diffmavil.evaluation.labels import Targets, chance, make_targets, score
from diffmavil.evaluation.neighbours import knn_scores, neighbour_count
from diffmavil.evaluation.probe import fit_probe
from diffmavil.evaluation.result import ClipCounts, Score
from diffmavil.evaluation.retrieval import chance_recall, recall

RECALL_AT = (1, 5)
DIRECTIONS = {"audio_to_video": ("audio", "video"), "video_to_audio": ("video", "audio")}


@dataclass
class Judgement:
    """The part of an `Evaluation` that follows from features and labels alone."""

    classes: list[str]
    clips: dict[str, ClipCounts]
    results: dict[str, dict[str, float]]
    probe_l2: dict[str, dict[str, float]] = field(default_factory=dict)
    score: Score | None = None
    neighbours: int | None = None
    notes: list[str] = field(default_factory=list)


def judge(train: FeatureTable, heldout: FeatureTable, seed: int = 0) -> Judgement:
    """Linear probe and neighbours from `train` to `heldout`, and retrieval inside `heldout`, for every model in both.

    Without usable labels, probe and neighbours are left out and a note says why.
    """
    targets = make_targets(train.labels, train.classes, heldout.labels, heldout.classes)
    counts = {
        "train": ClipCounts(len(train), int(targets.train.any(dim=1).sum()), train.clips - len(train)),
        "heldout": ClipCounts(len(heldout), int(targets.heldout.any(dim=1).sum()), heldout.clips - len(heldout)),
    }
    out = Judgement(targets.classes, counts, {name: {} for name in (*heldout.features, "chance")})
    if targets.missing:
        out.notes.append(f"Linear probe and neighbours are left out: {targets.missing}.")
    else:
        _judge_labels(out, targets, train, heldout, seed)
    _judge_retrieval(out, heldout)
    for metrics in out.results.values():
        metrics.update({name: round(value, 6) for name, value in metrics.items()})  # float32's last digits are noise
    return out


def _judge_labels(out: Judgement, targets: Targets, train: FeatureTable, heldout: FeatureTable, seed: int) -> None:
    out.score = kind = targets.score
    train_rows, heldout_rows = targets.train.any(dim=1), targets.heldout.any(dim=1)
    out.neighbours = k = neighbour_count(targets.train)
    expected = chance(targets.heldout[heldout_rows], kind)
    out.results["chance"] |= {f"{method}/{name}": expected for method in ("probe", "knn") for name in KINDS}
    for model, features in heldout.features.items():
        probe, knn, l2 = {}, {}, {}
        for name in KINDS:
            x, queries = _rows(train.features[model][name], train_rows), _rows(features[name], heldout_rows)
            target, true = targets.train[train_rows].to(x.device), targets.heldout[heldout_rows].to(x.device)
            fitted = fit_probe(x, target, kind, seed=seed)
            l2[name] = fitted.l2
            probe[f"probe/{name}"] = score(fitted(queries), true, kind)
            knn[f"knn/{name}"] = score(knn_scores(x, target, queries, k), true, kind)
        out.results[model] |= probe | knn
        out.probe_l2[model] = l2
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


def _judge_retrieval(out: Judgement, heldout: FeatureTable) -> None:
    for direction, (query, gallery) in DIRECTIONS.items():
        names = [f"{direction}/recall@{k}" for k in RECALL_AT]
        for model, features in heldout.features.items():
            out.results[model] |= dict(zip(names, recall(features[query], features[gallery], RECALL_AT), strict=True))
        out.results["chance"] |= {
            name: chance_recall(len(heldout), k) for name, k in zip(names, RECALL_AT, strict=True)
        }
