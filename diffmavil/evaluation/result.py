"""`evaluation.json`: what an evaluation found, written whole or not at all, and the table that shows it.

Schema (one JSON object):

    version   str    of diffmavil
    date      str    ISO 8601, UTC
    weights   str    the file that was evaluated
    seed      int    initialisation of the untrained model, and the split that chooses the probe's l2
    crops     int    crops in time of each clip; features are averaged over them
    score     str    of linear probe and neighbours: "accuracy"; "mAP" if clips have several labels; null without labels
    classes   [str]  classes that training clips carry
    sources   {"train": str, "heldout": str}  where the clips come from
    clips     {"train": counts, "heldout": counts}, counts = {"used": int, "labelled": int, "skipped": int}
    skipped   {path: reason}  clips that could not be used
    neighbours int   k of kNN; null without labels
    probe_l2  {"trained": {"audio": float, "video": float, "fused": float}, "untrained": ...}  {} without labels
    results   {"trained": metrics, "untrained": metrics, "chance": metrics}; metrics = {name: float in [0, 1]}
              names: probe/{audio,video,fused}, knn/{audio,video,fused} (absent without labels),
              audio_to_video/recall@{1,5}, video_to_audio/recall@{1,5}
    notes     [str]  sentences on what was left out, and why

Chance is the share of the most common held-out class (accuracy), the mean share of clips that carry a class (mAP), and
k / held-out clips (recall@k).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from diffmavil.config.errors import UsageError

NOT_FINITE = "its features are not finite"
"""Why a clip is skipped of which a model gives NaN."""
EVALUATION_FILE = "evaluation.json"
Score = Literal["accuracy", "mAP"]
_CHANCE = {
    "accuracy": "always the most common class; any order of the candidates",
    "mAP": "any order of the clips; any order of the candidates",
    None: "any order of the candidates",
}
_HEADLINE = "probe/fused"
_WORDS = {
    "probe": "linear probe",
    "knn": "nearest neighbours",
    "audio_to_video": "audio to video",
    "video_to_audio": "video to audio",
}


@dataclass(frozen=True)
class ClipCounts:
    used: int
    labelled: int
    """Of those used, the clips that take part in linear probe and neighbours."""
    skipped: int


@dataclass(frozen=True)
class Evaluation:
    """The content of `evaluation.json`; the module's docstring tells the fields."""

    version: str
    date: str
    weights: str
    seed: int
    crops: int
    score: Score | None
    classes: list[str]
    sources: dict[str, str]
    clips: dict[str, ClipCounts]
    skipped: dict[str, str]
    neighbours: int | None
    probe_l2: dict[str, dict[str, float]]
    results: dict[str, dict[str, float]]
    notes: list[str]

    def write(self, folder: Path) -> Path:
        path = folder / EVALUATION_FILE
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(asdict(self), indent=2) + "\n")
        partial.replace(path)
        return path

    def caption(self) -> str:
        caption = f"{self.clips['heldout'].used} held-out clips"
        if self.score:
            learnt = self.clips["train"].labelled
            caption += f", {len(self.classes)} classes; probe and neighbours learn from {learnt} training clips"
        return caption

    def rows(self) -> list[tuple[str, str, list[str]]]:
        """(metric, its name in words, a percentage for each of `results`)."""
        return [
            (metric, self._name(metric), [f"{values[metric]:.1%}" for values in self.results.values()])
            for metric in self.results["trained"]
        ]

    def _name(self, metric: str) -> str:
        kind, what = metric.split("/")
        unit = f" ({self.score})" if kind in ("probe", "knn") else ""
        return f"{_WORDS[kind]}, {what}{unit}"

    def table(self) -> Table:
        """For a terminal."""
        table = Table(title=self.caption(), title_style="")
        table.add_column("")
        for column in self.results:
            table.add_column(column, justify="right")
        for metric, name, cells in self.rows():
            table.add_row(name, *cells, style="bold" if metric == _HEADLINE else None)
        return table

    def section(self) -> dict[str, Any]:
        """For report.html: caption, columns, rows (name, cells, strong) and a note."""
        rows = [{"name": name, "cells": cells, "strong": metric == _HEADLINE} for metric, name, cells in self.rows()]
        return {"caption": self.caption(), "columns": list(self.results), "rows": rows, "note": self.note()}

    def note(self) -> str:
        """What the numbers are, in sentences."""
        infinite = sum(reason == NOT_FINITE for reason in self.skipped.values())
        undecoded = sum(counts.skipped for counts in self.clips.values()) - infinite
        about = [
            "Features of whole clips, nothing masked; the model is not trained further.",
            f"Untrained: the same model, newly initialised with seed {self.seed}.",
            f"Chance: {_CHANCE[self.score]}.",
        ]
        if self.neighbours:
            about.append(f"Neighbours: the {self.neighbours} nearest training clips by cosine.")
        if undecoded:
            about.append(f"{undecoded} clips could not be decoded.")
        if infinite:
            about.append(f"{infinite} clips are left out since their features are not finite.")
        return " ".join([*about, *self.notes])


def read_evaluation(folder: Path) -> Evaluation | None:
    """What `Evaluation.write` left in a run folder; None when the run was not evaluated.

    Raises:
        UsageError: the file is damaged or of another version.
    """
    path = folder / EVALUATION_FILE
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text())
        data["clips"] = {name: ClipCounts(**counts) for name, counts in data["clips"].items()}
        return Evaluation(**data)
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"{path}: not a readable evaluation; run python -m diffmavil.evaluate again: {error}"
        ) from error
