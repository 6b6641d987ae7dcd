"""Why is my score below the paper's? `python -m diffmavil.doctor RUN`. What limits my loader? `... --data CLIPS`.

RUN: compare a run, finished or not, with what its preset would have: clips and the statistics of their audio, weights,
batch, learning rate, samples seen, schedule, features (`diffmavil.evaluation.checkup`). Differences are printed, the
most suspicious first, with advice. The exit code is 0, whatever is found.

--data: clips per second of each part of loading (`diffmavil.data.bottleneck`) and of whole training steps of a preset's
model on random clips, with a sentence on the bottleneck and what to change.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from diffmavil.config import AugmentConfig, Config, DataConfig, Modalities, require
from diffmavil.config.cli import parse_flags, run_main
from diffmavil.config.errors import RunError, UsageError, usage_errors
from diffmavil.config.presets import preset
from diffmavil.data.bottleneck import Diagnosis, diagnose
from diffmavil.data.cores import usable_cores
from diffmavil.data.decode import BadClip
from diffmavil.data.shards.store import StoreError
from diffmavil.evaluation.checkup import examine
from diffmavil.training.speed import judgement, slower, step_speed

_NAMED = 10  # bad clips that are printed
_PROG = "python -m diffmavil.doctor"


@dataclass(frozen=True)
class Options:
    """Report how a run differs from its preset, the most suspicious difference first, and what to do. With --data CLIPS
    instead of RUN, measure how fast clips are loaded and trained on (flags: --data CLIPS --help)."""

    run: tyro.conf.Positional[Path]
    """Folder of a pretraining or fine-tuning run, finished or not."""
    preset: str | None = None
    """Preset to compare with. Default: the one nearest to the run."""
    clips: int = 64
    """Most clips that are decoded to measure audio and features again."""
    json: bool = False
    """Print one JSON object."""

    def __post_init__(self) -> None:
        require(self.clips >= 2, "--clips", self.clips, ">= 2")


@dataclass(frozen=True)
class LoaderOptions:
    """Measure how fast clips are read, decoded, transformed, copied and trained on, and name the bottleneck."""

    data: str
    """Prepared folder or its URL; any other data.root works too."""
    preset: str = "diffmavil-base"
    """Preset whose frames, sizes, windows and training step are measured."""
    modalities: Modalities = "av"
    """av: both. audio, video: that branch alone, as with model.modalities in training."""
    workers: int = field(default_factory=usable_cores)
    """Decoding processes when all parts are measured together. Default: one per core."""
    decoder: Literal["pyav", "torchcodec", "dali", "auto"] = "pyav"
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    seconds: float = 5.0
    """Seconds to measure each part for."""
    step: bool = True
    """Also measure the training step."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def __post_init__(self) -> None:
        require(self.workers >= 1, "--workers", self.workers, ">= 1")
        require(self.seconds > 0, "--seconds", self.seconds, "positive")


def main(argv: Sequence[str]) -> None:
    argv = list(argv)
    if any(word == "--data" or word.startswith("--data=") for word in argv):
        look_at_loader(argv)
    else:
        look_at_run(argv)


def look_at_run(argv: Sequence[str]) -> None:
    with usage_errors():
        options = parse_flags(Options, argv, prog=_PROG)
        found = examine(options.run, options.preset, options.clips)
    console = _console()
    console.print(json.dumps(found.as_json()) if options.json else "\n".join(found.lines()))


def look_at_loader(argv: Sequence[str]) -> None:
    console = _console()
    try:
        options = parse_flags(LoaderOptions, argv, prog=_PROG)
        config = _config(options)
        found = diagnose(config, options.seconds)
        step = step_speed(config, options.seconds) if options.step else None
    except ValueError as error:
        raise UsageError(str(error)) from error
    except (BadClip, StoreError) as error:
        raise RunError(str(error)) from error
    if options.json:
        console.print(json.dumps({**asdict(found), "step": step, "slower": slower(found, step)}))
        return
    console.print(_table(found, step))
    for path, reason in islice(found.bad.items(), _NAMED):
        console.print(f"bad clip {path}: {reason}")
    if len(found.bad) > _NAMED:
        console.print(f"and {len(found.bad) - _NAMED} more bad clips")
    for sentence in judgement(found, step):
        console.print(sentence)


def _console() -> Console:
    return Console(soft_wrap=True, highlight=False, markup=False)


def _config(options: LoaderOptions) -> Config:
    data = DataConfig(root=options.data, workers=options.workers, decoder=options.decoder, augment=options.augment)
    config = preset(options.preset)
    return replace(config, data=data, model=replace(config.model, modalities=options.modalities))


def _table(found: Diagnosis, step: float | None) -> Table:
    table = Table("part", "clips/s", "where")
    if found.read is not None:
        table.add_row("read", f"{found.read:,.0f}", f"one process, {found.read_mb:,.0f} MB/s")
    table.add_row("decode", f"{found.decode:,.1f}", "one process")
    table.add_row("transform", f"{found.transform:,.0f}", "the device")
    if found.copy is not None:
        table.add_row("copy", f"{found.copy:,.0f}", "the device")
    table.add_row("together", f"{found.together:,.1f}", f"{found.workers} processes")
    if step is not None:
        table.add_row("training step", f"{step:,.1f}", "the device, random clips")
    return table


if __name__ == "__main__":
    run_main(main)
