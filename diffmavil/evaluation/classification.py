"""`classification.json`: what a fine-tuned model scores on held-out clips, by its last, best and averaged weights.

Schema (one JSON object):

    version, date, device, versions   as in evaluation.json
    task      "av", "audio" or "video"
    source    str   what it was fine-tuned from; "none": from scratch
    labels    "one" or "several"
    classes   [str]
    sources   {"train": str, "validation": str or null, "test": str}   where the clips come from
    clips     {"train": int, "validation": int, "test": {"listed": int, "used": int}}
    skipped   {path: reason}   held-out clips that could not be used
    audio     {"mean": float, "std": float}   statistics of the sound
    steps     {weights: int}   steps of training of each kind of weights
    results   {weights: {crops: metrics}}   weights: last, best, average, ema; crops: "1" and head.crops;
              metrics = {top1, top5, mAP, d_prime}
    intervals {weights: {crops: {metric: [low, high]}}}   95 %, by bootstrap over the held-out files
    headline  {"weights": str, "crops": str, "metric": str}   chosen by validation; without one, the average or the last
    per_class {class: float}   of the headline: average precision (several) or recall (one)
    confusion [[int]]   of the headline, true class by answer; null with several labels
    chance    {metric: float}   always the most common class (top1), clips in any order (mAP)
    sha256    {weights: str}   of the files that were scored; absent in files of before
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from diffmavil import __version__
from diffmavil.config import FinetuneConfig
from diffmavil.config.errors import UsageError
from diffmavil.config.progress import tracking
from diffmavil.data.clips import ClipSet
from diffmavil.data.durable import digest_of, write_whole
from diffmavil.data.labelled import LabelledSplit
from diffmavil.evaluation.classify import Predictions, predict
from diffmavil.evaluation.labels import chance
from diffmavil.evaluation.validation import BEST_FILE, headline, read_best
from diffmavil.model.classifier import Classifier
from diffmavil.model.weights import EMA_FILE, WEIGHTS_FILE, load_classifier
from diffmavil.training.planner import timetable

CLASSIFICATION_FILE = "classification.json"
KINDS = {"last": WEIGHTS_FILE, "best": BEST_FILE, "average": "average.safetensors", "ema": EMA_FILE}
"""Kind of weights -> its file in the run folder."""


_NAMED = 10  # skipped clips that are printed


class Lesson(NamedTuple):
    """What a classifier has learnt from, and was chosen by: where the clips come from, and how many there are."""

    train: str
    train_clips: int
    validation: str | None
    validation_clips: int

    @classmethod
    def of(cls, split: LabelledSplit) -> Lesson:
        held = split.validation
        return cls(split.train.note, len(split.train), held.note if held else None, len(held) if held else 0)


@dataclass(frozen=True)
class Classification:
    """The content of `classification.json`; the module's docstring tells the fields."""

    version: str
    date: str
    device: str
    versions: dict[str, str]
    task: str
    source: str
    labels: str
    classes: list[str]
    sources: dict[str, str | None]
    clips: dict[str, Any]
    skipped: dict[str, str]
    audio: dict[str, float | None]
    steps: dict[str, int]
    results: dict[str, dict[str, dict[str, float]]]
    intervals: dict[str, dict[str, dict[str, tuple[float, float]]]]
    headline: dict[str, str]
    per_class: dict[str, float]
    confusion: list[list[int]] | None
    chance: dict[str, float]
    sha256: dict[str, str] = field(default_factory=dict)

    @property
    def lesson(self) -> Lesson:
        """As it was told when this was written."""
        train, validation = self.sources["train"], self.sources["validation"]
        return Lesson(train or "", self.clips["train"], validation, self.clips["validation"])

    def write(self, folder: Path) -> Path:
        path = folder / CLASSIFICATION_FILE
        write_whole(path, (json.dumps(asdict(self), indent=1) + "\n").encode())
        return path

    def rows(self) -> list[tuple[str, dict[str, str]]]:
        """(weights and crops in words, metric -> number with its interval)."""
        found = []
        for weights, by_crops in self.results.items():
            for crops, metrics in by_crops.items():
                what = f"{weights}, {'centre' if crops == '1' else f'{crops} crops'}"
                mark = " *" if (weights, crops) == (self.headline["weights"], self.headline["crops"]) else ""
                intervals = self.intervals[weights][crops]
                cells = {name: shown(name, value, intervals.get(name)) for name, value in metrics.items()}
                found.append((what + mark, cells))
        return [*found, ("chance", {name: shown(name, value) for name, value in self.chance.items()})]

    def caption(self) -> str:
        used, listed = self.clips["test"]["used"], self.clips["test"]["listed"]
        return f"{used} of {listed} held-out clips, {len(self.classes)} classes, fine-tuned from {self.source}"

    def note(self) -> str:
        validation = self.sources["validation"]
        chosen = f"chosen by {validation}" if validation else "no clips were held back to choose by"
        if validation and self.headline["weights"] != "best":
            chosen = "not chosen by held-back clips, on which no step was validated"
        return f"* {chosen}. In brackets: 95 % by bootstrap over the held-out files."

    def show(self, console: Console) -> None:
        """The table, what it means, and which clips were skipped."""
        console.print(self.table())
        console.print(self.note())
        for path, reason in islice(self.skipped.items(), _NAMED):
            console.print(f"skipped {path}: {reason}")
        if len(self.skipped) > _NAMED:
            console.print(f"and {len(self.skipped) - _NAMED} more, named in {CLASSIFICATION_FILE}")

    def table(self) -> Table:
        table = Table(title=self.caption(), title_justify="left")
        names = list(dict.fromkeys(name for _, cells in self.rows() for name in cells))
        table.add_column("weights")
        for name in names:
            table.add_column(name, justify="right")
        for what, cells in self.rows():
            table.add_row(what, *(cells.get(name, "") for name in names))
        return table


def shown(name: str, value: float, interval: tuple[float, float] | None = None) -> str:
    """A metric in words: d-prime as a number, the others in per cent."""
    if name == "d_prime":
        return f"{value:.2f}" + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")
    return f"{value:.1%}" + (f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else "")


def read_classification(folder: Path) -> Classification | None:
    """What is in the folder; None: nothing. Raises `UsageError` for a file that is damaged or of another version."""
    path = folder / CLASSIFICATION_FILE
    if not path.exists():
        return None
    try:
        return Classification(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        told = "is damaged or of another version; python -m diffmavil.evaluate writes it anew"
        raise UsageError(f"{path}: {told}: {error}") from error


def scored_file(found: Classification, folder: Path) -> Path | None:
    """The weights of the headline, if they are still those that were scored, and the run does not go on beyond them:
    `WEIGHTS_FILE` is there from its end on."""
    if not (folder / WEIGHTS_FILE).exists():
        return None
    name = found.headline["weights"]
    path = folder / KINDS[name]
    return path if path.exists() and found.sha256.get(name) == digest_of(path) else None


def classify_run(
    folder: Path,
    config: FinetuneConfig,
    test: ClipSet,
    lesson: Lesson,
    *,
    device: torch.device,
    batch_size: int,
    seed: int = 0,
    console: Console | None = None,
) -> Classification:
    """Score every kind of weights in a run folder, as `classify`.

    Raises:
        UsageError: weights that cannot be read.
        RunError: none of the clips could be used, or too few to judge by.
    """
    files = {name: folder / file for name, file in KINDS.items() if (folder / file).exists()}
    models = {name: load_classifier(file, device)[0] for name, file in files.items()}
    steps = dict.fromkeys(models, timetable(config).steps)
    if "best" in files:
        steps["best"] = read_best(files["best"])[0]
    found = classify(models, steps, config, test, lesson, batch_size=batch_size, seed=seed, console=console)
    return replace(found, sha256={name: digest_of(file) for name, file in files.items()})


def classify(
    models: Mapping[str, Classifier],
    steps: Mapping[str, int],
    config: FinetuneConfig,
    test: ClipSet,
    lesson: Lesson,
    *,
    batch_size: int,
    seed: int = 0,
    console: Console | None = None,
) -> Classification:
    """Score the held-out clips by every kind of weights: the centre crop, and `head.crops` if they are several.

    Args:
        models: "last", "best", "average", "ema": those that there are, in evaluation mode.
        lesson: to be told beside the result.
        seed: of the intervals.
    """

    def shown_to(crops: int) -> Predictions:
        what = "held-out clips" if crops == 1 else f"held-out clips, {crops} crops"
        with tracking(console, what, len(test)) as tracker:
            return predict(models, config, test, batch_size=batch_size, crops=crops, progress=tracker.update)

    whole = shown_to(config.head.crops)
    # Of an odd number of crops one is the centre.
    alone = whole if config.head.crops == 1 else whole.centre or shown_to(1)
    found = {"1": alone, str(config.head.crops): whole}
    judged = {
        name: {crops: predictions.judge(name, config, seed) for crops, predictions in found.items()} for name in models
    }
    first = next(name for name in ("best", "average", "ema", "last") if name in models)
    most = str(config.head.crops)
    best, metric, used = judged[first][most], headline(config), found[most]
    return Classification(
        version=__version__,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        device=str(next(models[first].parameters()).device),
        versions={"python": platform.python_version(), "torch": torch.__version__},
        task=config.model.modalities,
        source=config.head.source,
        labels=config.head.labels,
        classes=list(config.head.classes),
        sources={"train": lesson.train, "validation": lesson.validation, "test": test.note},
        clips={
            "train": lesson.train_clips,
            "validation": lesson.validation_clips,
            "test": {"listed": len(test), "used": len(used.paths)},
        },
        skipped=used.bad,
        audio={"mean": config.model.audio.mean, "std": config.model.audio.std},
        steps=dict(steps),
        results={name: {crops: one.metrics for crops, one in by.items()} for name, by in judged.items()},
        intervals={name: {crops: one.intervals for crops, one in by.items()} for name, by in judged.items()},
        headline={"weights": first, "crops": most, "metric": metric},
        per_class=best.per_class,
        confusion=best.confusion,
        chance={metric: chance(used.target, "accuracy" if metric == "top1" else "mAP")},
    )
