"""A run as it is found: its config and records, how far it came, and the preset that it is nearest to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diffmavil.config import Config, FinetuneConfig, require
from diffmavil.config.errors import UsageError
from diffmavil.config.files import CONFIG_FILE, flat_settings, load_config
from diffmavil.config.presets import FINETUNE_PRESETS, PRESETS
from diffmavil.data.clips import Split
from diffmavil.data.sources import split_source
from diffmavil.evaluation.checkup.findings import Unchecked
from diffmavil.training.checkpoint import Progress, newest_whole, read_progress
from diffmavil.training.metrics import Metrics, read_metrics
from diffmavil.training.planner import timetable

_OWN = (
    *("data.", "model.audio.mean", "model.audio.std", "model.attention", "model.norm.", "train.", "batch.sizes"),
    *("batch.at_once", "batch.begin", "head.source", "head.classes", "head.labels"),
    *("model.target_width", "teacher.source", "teacher.sha256"),
)
"""Settings that say nothing of which preset a run was."""


@dataclass(frozen=True)
class Case:
    """A run and what it is compared with.

    Attributes:
        reference: the preset's config.
        most: clips that are decoded for a check, at most.
    """

    folder: Path
    config: Config
    preset: str
    reference: Config
    records: list[Metrics]
    most: int

    @property
    def finetuned(self) -> bool:
        return isinstance(self.config, FinetuneConfig)

    @property
    def last(self) -> Metrics:
        return self.records[-1] if self.records else {}

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return timetable(self.config).steps

    @property
    def done(self) -> int:
        """Steps that its records tell of."""
        return int(self.last.get("step", 0))

    @property
    def state(self) -> str:
        if not self.done:
            return "not begun"
        return (
            f"finished after {self.done:,} steps"
            if self.done >= self.steps
            else (f"{self.done:,} of {self.steps:,} steps done")
        )

    @cached_property
    def split(self) -> Split:
        """The run's clips as they are now. Raises `Unchecked` when they are not there any more."""
        try:
            return split_source(self.config.data, self.config.model.modalities)
        except ValueError as error:
            raise Unchecked(f"the run's clips cannot be opened: {error}") from error

    @cached_property
    def progress(self) -> Progress | None:
        """Of the newest whole checkpoint; None without one. Raises `RunError` when all are damaged."""
        path, _ = newest_whole(self.folder)
        return None if path is None else read_progress(path)


def open_case(folder: Path, preset: str | None, most: int) -> Case:
    """A run's folder to a case.

    Args:
        preset: the one to compare with; None: the nearest one.

    Raises:
        UsageError: the folder holds no run, or a damaged one.
        ValueError: no such preset for a run of this kind.
    """
    if not folder.is_dir():
        raise UsageError(f"RUN {folder}: no such folder")
    if not (folder / CONFIG_FILE).exists():
        raise UsageError(f"RUN {folder}: holds no run (no {CONFIG_FILE})")
    config = load_config(folder / CONFIG_FILE)
    presets: Mapping[str, Config] = FINETUNE_PRESETS if isinstance(config, FinetuneConfig) else PRESETS
    name = preset or nearest_preset(config, presets)
    kind = "fine-tuning" if isinstance(config, FinetuneConfig) else "pretraining"
    require(name in presets, "--preset", name, f"one of {', '.join(presets)} for a run of {kind}")
    return Case(folder, config, name, presets[name], read_metrics(folder), most)


def nearest_preset(config: Config, presets: Mapping[str, Config]) -> str:
    """The preset from which the fewest settings of model, masks and recipe differ; the first of equals."""
    own = _telling(config)

    def distance(name: str) -> int:
        theirs = _telling(presets[name])
        return sum(theirs[setting] != value for setting, value in own.items())

    return min(presets, key=distance)


def _telling(config: Config) -> dict[str, Any]:
    return {name: value for name, value in flat_settings(config).items() if not name.startswith(_OWN)}
