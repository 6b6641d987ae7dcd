"""Which part of the way from shard to trained model is the slowest? `python -m diffmavil.doctor SHARDS`.

All in clips per second: the parts of loading (`diffmavil.data.bottleneck`), and whole training steps of the preset's
model on random clips; with a sentence on what limits, and what to change.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from diffmavil.config import AugmentConfig, Config, DataConfig, Modalities, require
from diffmavil.config.cli import parse_flags, run_main
from diffmavil.config.errors import RunError, UsageError
from diffmavil.config.presets import preset
from diffmavil.data.bottleneck import BATCH, Diagnosis, diagnose, seconds_each, waited, with_statistics
from diffmavil.data.dataset import Batch
from diffmavil.data.decode import BadClip
from diffmavil.data.shards.store import StoreError
from diffmavil.training.distributed import World
from diffmavil.training.planner import plan, timetable
from diffmavil.training.pretraining import Pretraining, random_clips
from diffmavil.training.step import TrainStep

_CPU_BATCH = 1  # a step of a large model takes seconds for each clip
_NAMED = 10  # bad clips that are printed


@dataclass(frozen=True)
class Options:
    """Measure how fast clips are read, decoded, transformed, copied and trained on, and say which limits."""

    shards: tyro.conf.Positional[str]
    """A prepared folder or its URL; any other data.root works too."""
    preset: str = "diffmavil-base"
    """Whose frames, sizes and windows are measured, and whose training step."""
    modalities: Modalities = "av"
    """audio, video: of that branch alone, as with model.modalities in training."""
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Decoding processes of the measurement together."""
    decoder: Literal["pyav", "torchcodec", "dali", "auto"] = "pyav"
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    seconds: float = 5.0
    """How long each part is measured."""
    step: bool = True
    """Measure the training step too."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def __post_init__(self) -> None:
        require(self.workers >= 1, "--workers", self.workers, ">= 1")
        require(self.seconds > 0, "--seconds", self.seconds, "positive")


def main(argv: Sequence[str]) -> None:
    console = Console(soft_wrap=True, highlight=False, markup=False)
    try:
        options = parse_flags(Options, argv, prog="python -m diffmavil.doctor")
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


def _config(options: Options) -> Config:
    data = DataConfig(root=options.shards, workers=options.workers, decoder=options.decoder, augment=options.augment)
    config = preset(options.preset)
    return replace(config, data=data, model=replace(config.model, modalities=options.modalities))


def step_speed(config: Config, seconds: float) -> float:
    """Clips per second of training steps on one device, half way through the run, measured for `seconds` at least.

    Batches are small, on a GPU as many clips as fit of 16: a larger batch is faster there, if anything.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clips = BATCH if device.type == "cuda" else _CPU_BATCH
    while True:
        try:
            return _step_speed(config, clips, device, seconds)
        except torch.OutOfMemoryError:
            if clips == 1:
                raise RunError(
                    f"a training step of one clip does not fit on {device}: --no-step leaves it out"
                ) from None
        clips //= 2


def _step_speed(config: Config, clips: int, device: torch.device, seconds: float) -> float:
    config = with_statistics(config)
    config = replace(config, train=replace(config.train, batch_size=clips))
    step = TrainStep(Pretraining(config, device), config, World(rank=0, size=1, device=device))
    now = plan(config, timetable(config).steps // 2)
    samples = config.model.audio.samples if config.model.hears else 0
    video = random_clips(config, clips, device)[0] if config.model.sees else torch.empty((clips, 0, 0, 0, 3))
    batch = Batch(
        video=video.to(device, torch.uint8),
        wave=torch.randn(clips, samples).to(device),
        wave_valid=torch.full((clips,), samples, device=device),
        labels=[()] * clips,
        position=torch.arange(clips, device=device),
        paths=[""] * clips,
    )
    return clips / seconds_each(lambda: waited(step(batch, now, offset=now.position)), seconds)


def slower(found: Diagnosis, step: float | None) -> str | None:
    """Which of "loading" and "step"; None when the step was not measured."""
    if step is None:
        return None
    return "loading" if found.together < step else "step"


def judgement(found: Diagnosis, step: float | None) -> list[str]:
    """What limits, and what to change, in sentences."""
    sentences = []
    if step is not None:
        speeds = f"loading gives {found.together:.1f} clips/s, training steps on one device take {step:.1f}"
        if slower(found, step) == "loading":
            sentences.append(f"loading limits training: {speeds}")
        else:
            sentences.append(f"the training step limits: {speeds}, so faster loading would change little")
        if not torch.cuda.is_available():
            sentences.append("without a GPU both share the cores: together each is slower than measured here")
    return [*sentences, f"{'of loading, ' if sentences else ''}{found.limit} limits: {found.advice}"]


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
