"""Batches for training and evaluation: decoding in other processes, prefetch, bad clips counted, waiting measured."""

from __future__ import annotations

import itertools
import os
import re
import time
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import torch
from torch.utils.data import DataLoader

from diffmavil.config import Config, require
from diffmavil.config.errors import RunError, TooManyBadClips
from diffmavil.data.awake import awake_seconds
from diffmavil.data.clips import ClipSet
from diffmavil.data.dataset import Batch, EvalClips, NothingUsable, TrainClips
from diffmavil.data.decoders import Later, choose_decoder
from diffmavil.data.in_hand import InHand
from diffmavil.data.kept import crop_bytes
from diffmavil.data.stream import batches
from diffmavil.data.tally import Tally
from diffmavil.data.workers import (
    Event,
    Unshared,
    as_is,
    end_processes,
    fits_shared_memory,
    process_context,
    start_worker,
    unshared,
    without_advice,
)

_NAMED = 10
_LOOK = 5.0
"""Seconds after which a wait for a batch is broken off, to see whether a decoding process died or hangs."""
_PATIENCE = 5, 300.0
"""Deadlines of a clip, and seconds beside them for a remote store that is slow, in which a process takes its next."""

_PIPES = (
    "/dev/shm has too little free memory for the batches, which go through slower pipes: give it more (docker run "
    "--shm-size or --ipc=host), or lower data.workers or data.prefetch"
)


class Loader:
    """Iterates `Batch`es on `device`, each time from the first on.

    Leaving the iteration early, `close` and the end of a `with` block end the decoding processes.

    Attributes:
        tally: the clips opened so far, and those that could not be used.
        data_wait: seconds spent waiting for batches so far.
        note: what makes it slower than it could be here; "" for nothing.
    """

    def __init__(
        self,
        dataset: TrainClips | EvalClips,
        orders: Iterable[range],
        config: Config,
        batch_size: int,
        device: torch.device | str,
        max_bad_share: float,
    ) -> None:
        self.device = torch.device(device)
        self.tally = Tally(len(dataset))
        self.data_wait = 0.0
        self.max_bad_share = max_bad_share
        self._good, self._tried = 0, 0  # by this loader alone; a run's tally knows those before a resume too
        self._side = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._loader = _data_loader(dataset, orders, config, batch_size, pinned=self._side is not None)
        self.note = "" if dataset.shared or not config.data.workers else _PIPES
        self._dali: Any = None
        self._video = config.model.video
        self._batch_size = batch_size
        self._live: list[Any] = []
        self._stop = dataset.stop
        self._clips, self._in_hand = dataset.clips, dataset.in_hand
        self._patience = _PATIENCE[0] * config.data.deadline + _PATIENCE[1]
        weakref.finalize(self, end_processes, self._live, self._stop)

    @property
    def bad(self) -> dict[str, str]:
        """File -> reason, of every clip so far that could not be used."""
        return self.tally.reasons

    def __iter__(self) -> Iterator[Batch]:
        self.close()
        self._in_hand.clear()
        if self._stop is not None:
            self._stop.clear()
        with without_advice():
            incoming = iter(self._loader)
        self._live.append(incoming)
        try:
            while (batch := self._next(incoming)) is not None:
                if len(batch):
                    yield self._move(batch)
        finally:
            self.close()
        if self._tried and not self._good:
            raise TooManyBadClips(self._complaint("no clip could be used"))

    def _next(self, incoming: Iterator[Batch | NothingUsable | Unshared]) -> Batch | None:
        """The next batch, counted; None at the end."""
        begin = time.perf_counter()
        try:
            batch = self._wait(incoming)
        finally:
            self.data_wait += time.perf_counter() - begin
        if isinstance(batch, Unshared):
            batch = batch.batch()
        if batch is not None:
            self._count(batch)
        if isinstance(batch, NothingUsable):
            raise TooManyBadClips(batch.failure or self._complaint("no clip could be used"))
        return batch

    def _wait(self, incoming: Iterator[Batch | NothingUsable | Unshared]) -> Batch | NothingUsable | Unshared | None:
        """What comes next, or None; raises `RunError` for a process that died, or when nothing moves any more."""
        seen: list[int] = []
        since = 0.0
        while True:
            try:
                return next(incoming, None)
            except RuntimeError as error:
                if "DataLoader worker" in str(error):
                    raise RunError(self._ended(str(error))) from error
                if "DataLoader timed out" not in str(error):
                    raise
            pinning = getattr(incoming, "_pin_memory_thread", None)
            if pinning is not None and not pinning.is_alive():  # which torch itself looks at without a timeout alone
                raise RunError("the thread that pins batches in memory has ended: are too many files open (ulimit -n)?")
            now = self._in_hand.state()
            if now != seen:
                seen, since = now, awake_seconds()
            elif awake_seconds() - since > self._patience:
                raise RunError(
                    f"no decoding process has taken a new clip for {self._patience:g} s{self._at(None)}: it hangs, or "
                    "its storage does"
                )

    def _ended(self, why: str) -> str:
        at = self._at({int(number) for number in re.findall(r"\d+", why)})
        return (
            f"a decoding process ended unexpectedly ({why}){at}. Most often memory ran out: lower data.workers, "
            "data.prefetch or train.batch_size; data.workers=0 decodes in the training process. A file at which it "
            "ends again and again crashes the decoder: leave it out"
        )

    def _at(self, processes: set[int] | None) -> str:
        """The files that decoding processes of these ids have in hand, as part of a message; None: that all have."""
        files = [self._clips[index].path for index in self._in_hand.clips(processes)]
        return f" at {', '.join(files)}" if files else ""

    def _count(self, batch: Batch | NothingUsable) -> None:
        """Count what was tried and what was bad; stop when it is too much."""
        self.tally.count(batch.opened.tried, batch.opened.bad)
        self._tried += len(batch.opened.tried)
        self._good += len(batch)
        if self._good and self.tally.too_many(self.max_bad_share):
            share = f"{self.tally.bad} of the {self.tally.tried} clips tried could not be used"
            raise TooManyBadClips(self._complaint(f"{share}, more than data.max_bad_share={self.max_bad_share:g}"))

    def _complaint(self, what: str) -> str:
        lines = [f"  {path}: {reason}" for path, reason in itertools.islice(self.bad.items(), _NAMED)]
        more = [f"  and {len(self.bad) - _NAMED} more"] if len(self.bad) > _NAMED else []
        return "\n".join([f"{what}:", *lines, *more])

    def _move(self, batch: Batch) -> Batch:
        """To the device. On CUDA on a stream of its own: the copy runs beside the step still in flight."""
        if batch.later:
            try:
                batch = replace(batch, video=self._decode_later(batch.later), later=[])
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # DALI does not say which
                named = ", ".join(batch.paths[:_NAMED])
                raise RunError(
                    f"DALI cannot decode one of {len(batch)} clips ({named}{', ...' if len(batch) > _NAMED else ''}): "
                    f"{error}; data.decoder=pyav names clips that are bad and goes on"
                ) from error
        if self._side is None:
            return batch
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._side):
            moved = batch.to(self.device, non_blocking=True)
        current.wait_stream(self._side)
        for tensor in (moved.video, moved.wave, moved.wave_valid, moved.position, moved.clip):
            # The allocator must not give this memory to the side stream's next copy before the step has read it.
            tensor.record_stream(current)
        return moved

    def _decode_later(self, clips: list[Later]) -> torch.Tensor:
        if self._dali is None:
            from diffmavil.data.decoders.dali import DaliDecoder

            self._dali = DaliDecoder(self._video, self.device, self._batch_size)
        if self._side is None:
            return self._dali(clips)
        with torch.cuda.stream(self._side):
            decoded = self._dali(clips)
            video = decoded.clone()
        # DALI takes its buffer back as soon as Python lets go of it, which knows nothing of the step that reads it: the
        # copy is torch's own memory, and the buffer is held until it is made.
        self._side.synchronize()
        del decoded
        return video

    def close(self) -> None:
        """End the decoding processes."""
        end_processes(self._live, self._stop)

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def make_loader(
    config: Config,
    clipset: ClipSet,
    *,
    start_position: int = 0,
    rank: int = 0,
    world: int = 1,
    steps: int | None = None,
    orders: Iterable[range] | None = None,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
) -> Loader:
    """The training stream from `start_position` on: this rank's slice of each global step.

    Batches depend on (config, clips, positions) alone: not on the number of processes, nor on where a run was resumed.
    `steps` ends the stream; None: it never ends. `orders`: instead, the positions of each step, of which the longest
    has `batch_size`.

    Raises:
        ValueError: a decoder that cannot be used here, or more kept crops than memory holds.

    Raises (while iterating):
        TooManyBadClips: more than `data.max_bad_share` of the clips tried are bad, or no clip is usable.
        RunError: a decoding process died, or all of them hang.
    """
    orders = orders or _Orders(start_position, config.train.batch_size, rank, world, steps)
    decoder = choose_decoder(config.data.decoder, clipset.clips, torch.device(device), config.model.modalities)
    dataset = TrainClips(config, clipset, _stop_event(config), decoder)
    batch_size = batch_size or config.train.batch_size // world
    return Loader(dataset, orders, config, batch_size, device, config.data.max_bad_share)


def eval_batches(
    config: Config, clipset: ClipSet, batch_size: int, crops: int = 1, device: torch.device | str = "cpu"
) -> Loader:
    """Every clip once, in order, each as `crops` consecutive rows; bad clips are left out and named in `.bad`.

    A row is crop `position % crops` of clip `position // crops`. Raises `TooManyBadClips` while iterating only when no
    clip is usable.
    """
    require(batch_size >= 1, "batch_size", batch_size, ">= 1")
    require(crops >= 1, "crops", crops, ">= 1")
    rows = len(clipset) * crops
    orders = [range(first, min(first + batch_size, rows)) for first in range(0, rows, batch_size)]
    decoder = choose_decoder(config.data.decoder, clipset.clips, torch.device(device), config.model.modalities)
    dataset = EvalClips(config, clipset, crops, _stop_event(config), decoder)
    return Loader(dataset, orders, config, batch_size, device, max_bad_share=1.0)


@dataclass(frozen=True)
class _Orders:
    """The positions of each step, as `batches` gives them, for `steps` steps; starts anew each time."""

    start_position: int
    global_batch: int
    rank: int
    world: int
    steps: int | None

    def __post_init__(self) -> None:
        next(batches(self.start_position, self.global_batch, self.rank, self.world))  # raises now, not in iteration

    def __iter__(self) -> Iterator[range]:
        return itertools.islice(batches(self.start_position, self.global_batch, self.rank, self.world), self.steps)


def _stop_event(config: Config) -> Event | None:
    return process_context().Event() if config.data.workers else None


def _data_loader(
    dataset: TrainClips | EvalClips, orders: Iterable[range], config: Config, batch_size: int, pinned: bool
) -> DataLoader:
    workers, prefetch = config.data.workers, config.data.prefetch
    # +2: the batch in use and the one on its way.
    needed = batch_size * crop_bytes(config) * (workers * prefetch + 2)
    needed *= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    fits = fits_shared_memory(needed)
    hand_over: Any = as_is if not workers or fits else unshared
    dataset.shared = bool(workers) and fits
    dataset.in_hand = InHand(workers)
    with without_advice():
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=orders,
            num_workers=workers,
            collate_fn=hand_over,
            pin_memory=pinned,
            prefetch_factor=prefetch if workers else None,
            timeout=_LOOK if workers else 0,
            multiprocessing_context=process_context() if workers else None,
            worker_init_fn=start_worker if workers else None,
        )
