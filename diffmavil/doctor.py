"""Which part of the way from shard to GPU is the slowest? `python -m diffmavil.doctor SHARDS`.

All in clips per second (`diffmavil.data.bottleneck`), with one sentence on what limits and what to change.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from diffmavil.config import AugmentConfig, Config, DataConfig, require
from diffmavil.config.cli import parse_flags, run_main
from diffmavil.config.errors import RunError, UsageError
from diffmavil.config.presets import preset
from diffmavil.data.bottleneck import Diagnosis, diagnose
from diffmavil.data.decode import BadClip
from diffmavil.data.shards.store import StoreError


@dataclass(frozen=True)
class Options:
    """Measure how fast clips are read, decoded, transformed and copied, and say which limits."""

    shards: tyro.conf.Positional[str]
    """A prepared folder or its URL; any other data.root works too."""
    preset: str = "diffmavil-base"
    """Whose frames, sizes and windows are measured."""
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Decoding processes of the measurement together."""
    decoder: Literal["pyav", "torchcodec", "dali", "auto"] = "pyav"
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    seconds: float = 5.0
    """How long each part is measured."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def __post_init__(self) -> None:
        require(self.workers >= 1, "--workers", self.workers, ">= 1")
        require(self.seconds > 0, "--seconds", self.seconds, "positive")


def main(argv: Sequence[str]) -> None:
    console = Console(soft_wrap=True, highlight=False, markup=False)
    try:
        options = parse_flags(Options, argv, prog="python -m diffmavil.doctor")
        found = diagnose(_config(options), options.seconds)
    except ValueError as error:
        raise UsageError(str(error)) from error
    except (BadClip, StoreError) as error:
        raise RunError(str(error)) from error
    console.print(json.dumps(asdict(found)) if options.json else _table(found))
    if not options.json:
        console.print(f"{found.limit} limits: {found.advice}")


def _config(options: Options) -> Config:
    data = DataConfig(root=options.shards, workers=options.workers, decoder=options.decoder, augment=options.augment)
    return replace(preset(options.preset), data=data)


def _table(found: Diagnosis) -> Table:
    table = Table("part", "clips/s", "where")
    if found.read is not None:
        table.add_row("read", f"{found.read:,.0f}", f"one process, {found.read_mb:,.0f} MB/s")
    table.add_row("decode", f"{found.decode:,.1f}", "one process")
    table.add_row("transform", f"{found.transform:,.0f}", "the device")
    if found.copy is not None:
        table.add_row("copy", f"{found.copy:,.0f}", "the device")
    table.add_row("together", f"{found.together:,.1f}", f"{found.workers} processes")
    return table


if __name__ == "__main__":
    run_main(main)
