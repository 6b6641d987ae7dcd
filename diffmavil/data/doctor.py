"""Which part of the way from shard to GPU is the slowest? `python -m diffmavil.data.doctor SHARDS`.

Each part is measured alone, in one process: reading samples, decoding them, the work on the batch (log-mel and what
`data.augment` switches on), the copy to the device. Then all of it together, as training does it. All in clips per
second, with one sentence on what limits and what to change.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from diffmavil.config import AugmentConfig, Config, DataConfig, require
from diffmavil.data.audio import LogMel
from diffmavil.data.augment import Augment
from diffmavil.data.dataset import Batch, NothingUsable, TrainClips
from diffmavil.data.decode import BadClip
from diffmavil.data.loader import TooManyBadClips, make_loader
from diffmavil.data.shards.store import StoreError
from diffmavil.data.sources import ClipSet, split_source
from diffmavil.presets import preset

_BATCH = 16


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


@dataclass(frozen=True)
class Diagnosis:
    """Clips per second of each part in one process, of all together, and what follows.

    Attributes:
        read: storage to memory; None for plain files, whose reading is part of decoding.
        read_mb: the same in megabytes per second.
        decode: picture and sound of a clip, with its crop.
        transform: log-mel and augmentation of a batch on the device.
        copy: a batch to the device; None when that is the CPU.
        together: all of it, with `workers` processes.
        limit: the part that limits.
        advice: what to change.
    """

    workers: int
    read: float | None
    read_mb: float | None
    decode: float
    transform: float
    copy: float | None
    together: float
    limit: str
    advice: str


def main(argv: Sequence[str]) -> None:
    from diffmavil.cli import RunError, UsageError

    console = Console(soft_wrap=True, highlight=False, markup=False)
    try:
        options = tyro.cli(Options, prog="python -m diffmavil.data.doctor", args=list(argv))
        found = diagnose(options)
    except ValueError as error:
        raise UsageError(str(error)) from error
    except (TooManyBadClips, BadClip, StoreError) as error:
        raise RunError(str(error)) from error
    console.print(json.dumps(asdict(found)) if options.json else _table(found))
    if not options.json:
        console.print(f"{found.limit} limits: {found.advice}")


def diagnose(options: Options) -> Diagnosis:
    """Measure. Raises `ValueError` for clips that are not there."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = _config(options)
    clips = split_source(config.data).train
    dataset = TrainClips(config, clips)
    read = read_mb = None
    if clips.clips[0].stored is not None:
        read, read_mb = _reading(dataset, options.seconds)
    batch = _one_batch(dataset, 0)
    decode = 1 / (_seconds_each(_decoding(dataset), options.seconds) / _BATCH)
    copy = None
    if device.type == "cuda":
        pinned = batch.pin_memory()
        copy = _BATCH / _seconds_each(lambda: _waited(pinned.to(device, non_blocking=True)), options.seconds)
    transform = _BATCH / _seconds_each(_transforming(config, batch.to(device), device), options.seconds)
    together = _together(config, clips, device, options.seconds)
    limit, advice = judge(options.workers, len(os.sched_getaffinity(0)), read, decode, transform, copy, together)
    return Diagnosis(options.workers, read, read_mb, decode, transform, copy, together, limit, advice)


def _config(options: Options) -> Config:
    base = preset(options.preset)
    audio = replace(base.model.audio, mean=0.0, std=1.0)  # their values cost no time
    data = DataConfig(
        root=options.shards,
        workers=options.workers,
        decoder=options.decoder,
        augment=options.augment,
        max_bad_share=1.0,
    )
    train = replace(base.train, batch_size=_BATCH)
    return replace(base, model=replace(base.model, audio=audio), data=data, train=train)


def judge(
    workers: int,
    cores: int,
    read: float | None,
    decode: float,
    transform: float,
    copy: float | None,
    together: float,
) -> tuple[str, str]:
    """What limits, and what to change, from clips per second in one process (the device works for all of them)."""
    parts = {"decoding": decode * workers, "the device's transforms": transform}
    if read is not None:
        parts["reading"] = read * workers
    if copy is not None:
        parts["the copy to the device"] = copy
    limit = min(parts, key=parts.__getitem__)
    if together < 0.5 * parts[limit]:
        return "the hand-over between processes", (
            f"{workers} processes alone would give {parts[limit]:.0f} clips/s, together they give {together:.0f}: use "
            "fewer data.workers than cores, a larger /dev/shm, or a smaller train.batch_size"
        )
    advice = {
        "reading": "put the shards on a faster disk, or let data.remote_cache_gb hold them all",
        "the device's transforms": "switch data.augment off, or lower model.audio.frames: log-mel is made there",
        "the copy to the device": "lower model.video.size or frames",
    }
    if limit in advice:
        return limit, advice[limit]
    if workers < cores:
        return limit, f"raise data.workers: {cores} cores are here, {workers} processes use them"
    return limit, (
        "prepare the clips with a smaller --short-side or --gop, use data.decoder=dali on a GPU (or torchcodec), or "
        "take a machine with more cores"
    )


def _reading(dataset: TrainClips, seconds: float) -> tuple[float, float]:
    """(clips, megabytes) per second, in the order of training."""
    order = itertools.count()
    total = clips = 0
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or not clips:
        sample = dataset.reader(dataset.clips[dataset.stream.item(next(order))])
        assert not isinstance(sample, str)
        total += len(sample.mp4) + len(sample.flac)
        clips += 1
    spent = time.perf_counter() - begin
    return clips / spent, total / spent / 1e6


def _one_batch(dataset: TrainClips, first: int) -> Batch:
    batch = dataset[range(first, first + _BATCH)]
    if isinstance(batch, NothingUsable):
        reasons = "; ".join(f"{bad.path}: {bad.reason}" for bad in batch.opened.bad[:3])
        raise TooManyBadClips(batch.failure or f"no clip could be used: {reasons}")
    return batch


def _decoding(dataset: TrainClips) -> Callable[[], object]:
    """Reads too, which is little beside it; the storage's own time is measured apart."""
    first: Iterator[int] = itertools.count(step=_BATCH)
    return lambda: _one_batch(dataset, next(first))


def _transforming(config: Config, batch: Batch, device: torch.device) -> Callable[[], object]:
    log_mel = LogMel(config.model.audio).to(device)
    augment = Augment(config.data.augment, config.train.seed)

    def once() -> object:
        video = augment.video(batch.video, batch.position)
        spec = augment.spec(log_mel(batch.wave, batch.wave_valid), batch.position)
        return _waited((video, spec))

    return once


def _waited(result: object) -> object:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result


def _seconds_each(once: Callable[[], object], seconds: float) -> float:
    """Mean time of a call, after one for warming up."""
    once()
    calls = 0
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or not calls:
        once()
        calls += 1
    return (time.perf_counter() - begin) / calls


def _together(config: Config, clips: ClipSet, device: torch.device, seconds: float) -> float:
    """Loader and transforms, one after the other, as a training step has them."""
    with make_loader(config, clips, device=device) as loader:
        batches = iter(loader)
        # The first ones come from processes that still start, the next from their stores.
        for _ in range(config.data.workers * config.data.prefetch + 1):
            next(batches)
        begin = time.perf_counter()
        count = 0
        while time.perf_counter() - begin < seconds or not count:
            batch = next(batches)
            _transforming(config, batch, device)()
            count += len(batch)
        return count / (time.perf_counter() - begin)


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
    from diffmavil.cli import run_main

    run_main(main)
