"""The page of a fine-tuning run: its scores, class by class, what is mistaken for what, and how it learnt."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from markupsafe import Markup

from diffmavil.config import FinetuneConfig
from diffmavil.evaluation.classification import Classification, read_classification, scored_file
from diffmavil.reporting import figures
from diffmavil.reporting.parts import THROUGHPUT, Bar, Panels, Row, Section, Table, curve_sections, input_rows, run_rows
from diffmavil.training.metrics import Metrics

ALL_CLASSES = 60
"""Of more classes than that the best and the worst are shown, and the confusions that come most often."""
_EACH_END = 20
_NAMED = 200  # skipped clips
STALE = "These are not scores of the run's weights as they are now. "
_MISTAKES = "What is mistaken for what"
_TASKS = {"av": "sound and picture", "audio": "sound alone", "video": "picture alone"}
_LABELS = {"one": "one for each clip", "several": "several for a clip", "auto": "not known before training"}
PANELS: Panels = {
    "Learning": (
        ("loss", [("loss", "")]),
        ("validation", [("val/top1", "top-1"), ("val/top5", "top-5"), ("val/mAP", "mAP")]),
        ("validation, d-prime", [("val/d_prime", "")]),
        ("learning rate", [("lr", "")]),
    ),
    "Throughput": THROUGHPUT,
}
NOTES = {"Learning": "The loss is that of training clips, with mixup and masks where they are on."}


def summary(config: FinetuneConfig, records: Sequence[Metrics]) -> list[tuple[str, str]]:
    head, optim, train = config.head, config.optim, config.train
    rate = f"{optim.lr:g}"
    if config.model.modalities == "av" and head.lr_video != 1:
        what = "the picture's embedding" if config.model.shared_encoder else "the video encoder"
        rate += f", of {what} {optim.lr * head.lr_video:g}"
    return [
        ("started from", "nothing: newly initialised" if head.source == "none" else head.source),
        ("task", _TASKS[config.model.modalities]),
        ("data", config.data.root),
        *input_rows(config.model),
        ("labels", _LABELS[head.labels]),
        ("classes", f"{len(head.classes):,}" if head.classes else "not known before training"),
        ("epochs", f"{head.epochs:g}" if head.epochs is not None else f"as many as {train.steps:,} steps make"),
        ("batch size", f"{train.batch_size}"),
        ("learning rate", rate),
        ("layer decay", f"{optim.layer_decay:g}" if optim.layer_decay < 1 else "none"),
        ("frozen blocks", _frozen(config)),
        *run_rows(config, records),
    ]


def _frozen(config: FinetuneConfig) -> str:
    depth, learning = config.model.encoder.depth, config.head.blocks
    if learning is None:
        return "none"
    return f"the lower {depth - learning} of each encoder's {depth}" if learning else "all of the encoders"


def sections(run_dir: Path, records: Sequence[Metrics]) -> list[Section]:
    """All that stands between summary and config."""
    found = read_classification(run_dir)
    curves = curve_sections({run_dir.name: records}, PANELS, NOTES)
    if found is None:
        return [Section("Scores", "No scores yet: held-out clips are scored when the run ends."), *curves]
    stale = "" if not found.sha256 or scored_file(found, run_dir) else STALE
    return [_scores(found, stale), _classes(found), *_confusion(found), _clips(found), *curves]


def _scores(found: Classification, stale: str) -> Section:
    rows = found.rows()
    metrics = list(dict.fromkeys(name for _, cells in rows for name in cells))
    shown = [Row([what, *(cells.get(name, "") for name in metrics)], strong=what.endswith("*")) for what, cells in rows]
    steps = ", ".join(f"{weights} of step {step:,}" for weights, step in found.steps.items())
    return Section(
        "Scores", f"{stale}{found.note()} Weights: {steps}.", table=Table(["", *metrics], shown, found.caption())
    )


def _classes(found: Classification) -> Section:
    """Every class that held-out clips carry, the best first; of many, both ends."""
    several = found.labels == "several"
    counts = {} if found.confusion is None else dict(zip(found.classes, map(sum, found.confusion), strict=True))
    ranked = sorted(found.per_class.items(), key=lambda scored: -scored[1])
    bars = [Bar(name, share, f"{share:.0%}" + (f" of {counts[name]}" if counts else "")) for name, share in ranked]
    groups = [("", bars)]
    if len(found.classes) > ALL_CLASSES:
        best, worst = bars[:_EACH_END], bars[_EACH_END:][-_EACH_END:]
        groups = [(f"The {len(best)} best", best), (f"The {len(worst)} worst", worst)]
    what = "Average precision" if several else "Recall: share of the clips of a class that are told to be of it"
    note = f"{what}; {_chosen(found)}."
    if absent := len(found.classes) - len(found.per_class):
        note += f" {absent} of {len(found.classes)} classes are left out: no held-out clip carries them."
    return Section("Classes", note, bars=groups)


def _chosen(found: Classification) -> str:
    weights, crops = found.headline["weights"], found.headline["crops"]
    return f"by the {weights} weights, {'centre crop' if crops == '1' else f'{crops} crops'}"


def _confusion(found: Classification) -> list[Section]:
    """What is mistaken for what, where every clip has one label."""
    if found.confusion is None:
        return []
    if len(found.classes) <= ALL_CLASSES:
        alt = f"Table of {len(found.classes)} true classes by answers: {_right(found.confusion)} clips are told right"
        picture = Markup(figures.svg(figures.confusion(found.classes, found.confusion), alt, tight=True))
        note = (
            f"Held-out clips by true class and answer, {_chosen(found)}. The stronger the colour, the more of the row."
        )
        return [Section(_MISTAKES, note, pictures=[picture])]
    mistakes = [
        (count, true, answer)
        for true, row in zip(found.classes, found.confusion, strict=True)
        for answer, count in zip(found.classes, row, strict=True)
        if count and answer != true
    ]
    often = sorted(mistakes, key=lambda mistake: -mistake[0])[:_EACH_END]
    rows = [Row([true, answer, f"{count}"]) for count, true, answer in often]
    table = Table(["true class", "answer", "clips"], rows, words=True)
    return [Section(_MISTAKES, f"The most frequent mistakes, {_chosen(found)}.", table=table)]


def _right(confusion: Sequence[Sequence[int]]) -> str:
    right = sum(row[i] for i, row in enumerate(confusion))
    return f"{right:,} of {sum(map(sum, confusion)):,}"


def _clips(found: Classification) -> Section:
    """How many clips were used, where they come from, and which could not be."""
    tested = found.clips["test"]
    numbers = {
        "train": f"{found.clips['train']:,}",
        "validation": f"{found.clips['validation']:,}",
        "test": f"{tested['used']:,} of {tested['listed']:,}",
    }
    words = {"train": "training", "validation": "validation", "test": "held out"}
    rows = [Row([words[name], numbers[name], source]) for name, source in found.sources.items() if source]
    lines = [f"{path}: {reason}" for path, reason in islice(found.skipped.items(), _NAMED)]
    if len(found.skipped) > _NAMED:
        lines.append(f"and {len(found.skipped) - _NAMED:,} more, named in classification.json")
    heading = f"{len(found.skipped):,} held-out files could not be used"
    unfold = (heading, lines) if lines else None
    return Section("Clips", table=Table(["", "clips", "from"], rows, words=True), unfold=unfold)
