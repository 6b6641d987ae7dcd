"""`evaluation.json`: what an evaluation found, written whole or not at all, and the table that shows it.

Schema (one JSON object):

    protocol  what was evaluated and how:
        date      str    ISO 8601, UTC
        weights   str    the file that was evaluated; null: a model in memory
        sha256    str    of that file
        step      int    of the training that wrote it; null where that is not known
        seed      int    initialisation of the untrained model, the split that chooses the probe's l2, and the intervals
        crops     int    crops in time of each clip; features are averaged over them
        clips     {"train": {"listed": int, "found": int}, "heldout": ...}  of the clips listed, those that were used
        video_seconds, audio_seconds  float  windows that the model sees and hears; null without
        audio_mean, audio_std         float  statistics of the log-mel, from training; null without sound
        versions  {"python": str, "torch": str, "diffmavil": str}
        device    str
    score     str    of linear probe and neighbours: "accuracy"; "mAP" if clips have several labels; null without labels
    classes   [str]  classes that training clips carry
    sources   {"train": str, "heldout": str}  where the clips come from
    clips     {"train": counts, "heldout": counts}, counts = {"used": int, "labelled": int, "skipped": int}
    skipped   {path: reason}  clips that could not be used
    neighbours int   k of kNN; null without labels
    probe_l2  {"trained": {"audio": float, "video": float, "fused": float}, "untrained": ...}  {} without labels
    results   {"trained": metrics, "untrained": metrics, "chance": metrics}; metrics = {name: float}
              with several crops also {"trained, centre crop": metrics, "untrained, centre crop": metrics}
              names: probe/{audio,video,fused}, knn/{audio,video,fused} (absent without labels),
              {audio_to_video,video_to_audio}/{recall@1,recall@5,recall@10,median_rank},
              vggsounder_{audible,visible,both}/{mAP,f1@1,hit@1} of "trained", where its labels were given;
              in [0, 1], but the rank, which counts from 1. A model with one modality has that kind, and no retrieval
    intervals as results, without chance: [low, high], 95 %, over the held-out files (`diffmavil.evaluation.bootstrap`)
    notes     [str]  sentences on what was left out, and why

Chance is the share of the most common held-out class (accuracy), the mean share of clips that carry a class (mAP),
k / held-out clips (recall@k), and half of the held-out clips (median rank).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table

from diffmavil.config.errors import UsageError
from diffmavil.data.durable import digest_of
from diffmavil.evaluation.bootstrap import Interval
from diffmavil.model.weights import WEIGHTS_FILE

NOT_FINITE = "its features are not finite"
"""Why a clip is skipped of which a model gives NaN."""
EVALUATION_FILE = "evaluation.json"
OF_OTHERS = "These are not scores of the run's weights as they are now: they were made of a file {} on {}."
Score = Literal["accuracy", "mAP"]
_CHANCE = {
    "accuracy": "always the most common class; any order of the candidates",
    "mAP": "any order of the clips; any order of the candidates",
    None: "any order of the candidates",
}
_HEADLINES = ("probe/fused", "probe/audio", "probe/video")
"""The first of these that there is stands for all."""
RANK = "median_rank"
CENTRE = ", centre crop"
_WORDS = {
    "probe": "linear probe",
    "knn": "nearest neighbours",
    "audio_to_video": "audio to video",
    "video_to_audio": "video to audio",
    RANK: "median rank",
    "vggsounder_audible": "VGGSounder, audible",
    "vggsounder_visible": "VGGSounder, visible",
    "vggsounder_both": "VGGSounder, both",
}


@dataclass(frozen=True)
class ClipCounts:
    used: int
    labelled: int
    """Of those used, the clips that take part in linear probe and neighbours."""
    skipped: int


@dataclass(frozen=True)
class Protocol:
    """What was evaluated and how; the module's docstring tells the fields."""

    date: str
    weights: str | None
    sha256: str | None
    step: int | None
    seed: int
    crops: int
    clips: dict[str, dict[str, int]]
    video_seconds: float | None
    audio_seconds: float | None
    audio_mean: float | None
    audio_std: float | None
    versions: dict[str, str]
    device: str


@dataclass(frozen=True)
class Evaluation:
    """The content of `evaluation.json`; the module's docstring tells the fields."""

    protocol: Protocol
    score: Score | None
    classes: list[str]
    sources: dict[str, str]
    clips: dict[str, ClipCounts]
    skipped: dict[str, str]
    neighbours: int | None
    probe_l2: dict[str, dict[str, float]]
    results: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, Interval]]
    notes: list[str]

    def write(self, folder: Path) -> Path:
        path = folder / EVALUATION_FILE
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(asdict(self), indent=2) + "\n")
        partial.replace(path)
        return path

    @property
    def headline(self) -> str | None:
        """The metric that stands for all."""
        return next((metric for metric in _HEADLINES if metric in self.results["trained"]), None)

    def caption(self) -> str:
        caption = f"{self.clips['heldout'].used} held-out clips"
        if self.score:
            learnt = self.clips["train"].labelled
            caption += f", {len(self.classes)} classes; probe and neighbours: {self.score}, learnt from {learnt} clips"
        return caption

    def rows(self) -> list[tuple[str, str, list[str]]]:
        """(metric, its name in words, a cell for each of `results`)."""
        return [
            (metric, ", ".join(_WORDS.get(part, part) for part in metric.split("/")), self._cells(metric))
            for metric in self.results["trained"]
        ]

    def _cells(self, metric: str) -> list[str]:
        """Percentages, or ranks, with their intervals."""

        def number(value: float) -> str:
            return f"{value:.4g}" if metric.endswith(RANK) else f"{100 * value:.1f}"

        unit = "" if metric.endswith(RANK) else "%"
        cells = []
        for name, values in self.results.items():
            cell = number(values[metric]) + unit if metric in values else ""
            if metric in self.intervals.get(name, {}):
                low, high = self.intervals[name][metric]
                cell += f" [{number(low)}, {number(high)}]"
            cells.append(cell)
        return cells

    def tables(self) -> list[Table]:
        """For a terminal of 80 columns: one, and one of the centre crop where there are several."""
        columns = list(self.results)
        alone = [i for i, name in enumerate(columns) if name.endswith(CENTRE)]
        groups = [(self.caption(), [i for i in range(len(columns)) if i not in alone])]
        if alone:
            groups.append(("The centre crop alone", alone))
        return [
            self._table(title, [columns[i].removesuffix(CENTRE) for i in chosen], chosen) for title, chosen in groups
        ]

    def _table(self, title: str, heads: list[str], chosen: list[int]) -> Table:
        table = Table(title=title, title_style="", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        table.add_column("")
        for head in heads:
            table.add_column(head, justify="right", no_wrap=True)
        for metric, name, cells in self.rows():
            shown = [cells[i] for i in chosen]
            if any(shown):
                table.add_row(name, *shown, style="bold" if metric == self.headline else None)
        return table

    def section(self) -> dict[str, Any]:
        """For report.html: caption, columns, rows (name, cells, strong) and a note."""
        strong = self.headline
        rows = [{"name": name, "cells": cells, "strong": metric == strong} for metric, name, cells in self.rows()]
        return {"caption": self.caption(), "columns": list(self.results), "rows": rows, "note": self.note()}

    def note(self) -> str:
        """What the numbers are, in sentences."""
        left_out = sum(counts.skipped for counts in self.clips.values())
        infinite = sum(reason == NOT_FINITE for reason in self.skipped.values())
        undecoded = len(self.skipped) - infinite
        about = [
            "Features of whole clips, nothing masked; the model is not trained further.",
            f"Untrained: the same model, newly initialised with seed {self.protocol.seed}.",
            f"Chance: {_CHANCE[self.score]}.",
            "In brackets: 95 % intervals by bootstrap over the held-out files.",
        ]
        if self.protocol.crops > 1:
            about.append(f"Features are means over {self.protocol.crops} crops in time, unless of the centre crop.")
        if self.neighbours:
            about.append(f"Neighbours: the {self.neighbours} nearest training clips by cosine.")
        if undecoded and infinite:  # a file may have several clips
            reasons = f"{undecoded} files could not be decoded, of {infinite} the features are not finite"
            about.append(f"{left_out} clips are left out: {reasons}.")
        elif undecoded:
            about.append(f"{left_out} clips could not be decoded.")
        elif infinite:
            about.append(f"{left_out} clips are left out since their features are not finite.")
        return " ".join([*about, *self.notes])


def is_of(evaluation: Evaluation, weights: Path) -> bool:
    """Whether it was made of this very file."""
    return evaluation.protocol.sha256 == digest_of(weights)


def read_evaluation(folder: Path) -> Evaluation | None:
    """What `Evaluation.write` left in a run folder; None when the run was not evaluated.

    That it was made of other weights than the folder's becomes a note: of a file that was named, or of the run before
    it was made longer.

    Raises:
        UsageError: the file is damaged or of another version.
    """
    path = folder / EVALUATION_FILE
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text())
        data["clips"] = {name: ClipCounts(**counts) for name, counts in data["clips"].items()}
        data["protocol"] = Protocol(**data["protocol"])
        data["intervals"] = {
            name: {metric: (low, high) for metric, (low, high) in found.items()}
            for name, found in data["intervals"].items()
        }
        found = Evaluation(**data)
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"{path}: not a readable evaluation; run python -m diffmavil.evaluate again: {error}"
        ) from error
    own, made_of = folder / WEIGHTS_FILE, found.protocol.weights
    # Of a run that goes on, the weights of its earlier end have another name.
    others = not is_of(found, own) if own.exists() else any(folder.glob(f"{own.stem}-step-*{own.suffix}"))
    if made_of is not None and others:
        found.notes.append(OF_OTHERS.format(Path(made_of).name, found.protocol.date[:10]))
    return found
