"""How fast is each part of the way from shard to device, and which one limits?

Each part is measured alone, in one process: reading samples, decoding them, the work on the batch (log-mel and what
`data.augment` switches on), the copy to the device. Then all of it together, as training does it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from diffmavil.config import Config, Modalities
from diffmavil.config.errors import TooManyBadClips
from diffmavil.data.audio import LogMel
from diffmavil.data.augment import Augment
from diffmavil.data.clips import ClipSet
from diffmavil.data.cores import usable_cores
from diffmavil.data.dataset import Batch, NothingUsable, TrainClips
from diffmavil.data.decoders import choose_decoder
from diffmavil.data.loader import make_loader
from diffmavil.data.sources import split_source

BATCH = 16
"""Clips of a batch."""


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
        bad: file -> reason, of the clips met that could not be used.
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
    bad: dict[str, str]


def diagnose(config: Config, seconds: float) -> Diagnosis:
    """Measure each part for `seconds`, with the clips, sizes and workers of `config`.

    Raises:
        ValueError: clips that are not there, or a decoder that cannot be used for them.
        TooManyBadClips, StoreError: clips that cannot be used, or read.
    """
    workers = config.data.workers
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = with_statistics(config)
    clips = split_source(config.data, config.model.modalities).train
    decoder = choose_decoder(config.data.decoder, clips.clips, device, config.model.modalities)
    # DALI leaves the picture for later: what one process does is then measured with PyAV.
    dataset = TrainClips(config, clips, decoder="pyav" if decoder == "dali" else decoder)
    bad: dict[str, str] = {}
    read = read_mb = None
    if clips.clips[0].stored is not None:
        read, read_mb = _reading(dataset, seconds)
    batch = _one_batch(dataset, 0, bad)
    decode = 1 / (seconds_each(_decoding(dataset, bad), seconds) / BATCH)
    copy = None
    if device.type == "cuda":
        pinned = batch.pin_memory()
        copy = BATCH / seconds_each(lambda: waited(pinned.to(device, non_blocking=True)), seconds)
    transform = BATCH / seconds_each(_transforming(config, batch.to(device), device), seconds)
    together = _together(config, clips, device, seconds, bad)
    limit, advice = judge(workers, usable_cores(), read, decode, transform, copy, together, config.model.modalities)
    return Diagnosis(workers, read, read_mb, decode, transform, copy, together, limit, advice, bad)


def with_statistics(config: Config) -> Config:
    """Their values cost no time, so they need not be measured."""
    audio = replace(config.model.audio, mean=config.model.audio.mean or 0.0, std=config.model.audio.std or 1.0)
    train = replace(config.train, batch_size=BATCH)
    data = replace(config.data, max_bad_share=1.0)
    return replace(config, model=replace(config.model, audio=audio), data=data, train=train)


def judge(
    workers: int,
    cores: int,
    read: float | None,
    decode: float,
    transform: float,
    copy: float | None,
    together: float,
    modalities: Modalities = "av",
) -> tuple[str, str]:
    """What limits, and what to change, from clips per second in one process (the device works for all of them).

    `read` is None for plain files: what only prepared clips can use is not said of them.
    """
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
    more = f"raise data.workers: {cores} cores are here, {workers} processes use them" if workers < cores else ""
    if read is None:
        alone = "" if modalities == "av" else f" --modalities {modalities}"
        less = "16 kHz of one channel" if modalities == "audio" else "small pictures whose keyframes are close together"
        return limit, (
            f"prepare the clips once (python -m diffmavil.prepare SRC OUT{alone}) and train on OUT: {less} take less "
            f"to decode{'; until then, ' + more if more else ''}"
        )
    if more:
        return limit, more
    if modalities == "audio":
        return limit, "lower model.audio.frames, or take a machine with more cores"
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


def _one_batch(dataset: TrainClips, first: int, bad: dict[str, str]) -> Batch:
    batch = dataset[range(first, first + BATCH)]
    bad.update({one.path: one.reason for one in batch.opened.bad})
    if isinstance(batch, NothingUsable):
        reasons = "; ".join(f"{path}: {reason}" for path, reason in itertools.islice(bad.items(), 3))
        raise TooManyBadClips(batch.failure or f"no clip could be used: {reasons}")
    return batch


def _decoding(dataset: TrainClips, bad: dict[str, str]) -> Callable[[], object]:
    """Reads too, which is little beside it; the storage's own time is measured apart."""
    first: Iterator[int] = itertools.count(step=BATCH)
    return lambda: _one_batch(dataset, next(first), bad)


def _transforming(config: Config, batch: Batch, device: torch.device) -> Callable[[], object]:
    log_mel = LogMel(config.model.audio).to(device)
    augment = Augment(config.data.augment, config.train.seed)

    def once() -> object:
        video = augment.video(batch.video, batch.position) if config.model.sees else None
        spec = augment.spec(log_mel(batch.wave, batch.wave_valid), batch.position) if config.model.hears else None
        return waited((video, spec))

    return once


def waited(result: object) -> object:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result


def seconds_each(once: Callable[[], object], seconds: float) -> float:
    """Mean time of a call, after one for warming up."""
    once()
    calls = 0
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or not calls:
        once()
        calls += 1
    return (time.perf_counter() - begin) / calls


def _together(config: Config, clips: ClipSet, device: torch.device, seconds: float, bad: dict[str, str]) -> float:
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
        bad.update(loader.bad)
        return count / (time.perf_counter() - begin)
