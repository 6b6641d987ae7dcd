"""Batches for training and evaluation: decoding in other processes, prefetch, bad clips counted, waiting measured."""

from __future__ import annotations

import itertools
import multiprocessing
import signal
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from diffmavil.config import Config, require
from diffmavil.data.dataset import Batch, EvalClips, NothingUsable, TrainClips
from diffmavil.data.sources import ClipSet
from diffmavil.data.stream import batches

FEWEST_TO_JUDGE = 20
"""Clips that must have been tried before the share of bad ones can stop a run."""


class TooManyBadClips(RuntimeError):
    """More clips than `data.max_bad_share` allows could not be used, or none could."""


class Loader:
    """Iterates `Batch`es on `device`; may be left early, then `close` (or a `with` block) ends its processes.

    Attributes:
        bad: file -> reason, of every clip so far that could not be used.
        tried: number of distinct clips opened so far.
        data_wait: seconds spent waiting for batches so far.
    """

    def __init__(
        self,
        dataset: Dataset,
        orders: Iterable[range],
        clips: int,
        config: Config,
        device: torch.device | str,
        max_bad_share: float,
    ) -> None:
        self.device = torch.device(device)
        self.bad: dict[str, str] = {}
        self.data_wait = 0.0
        self.max_bad_share = max_bad_share
        self._tried = np.zeros(clips, bool)
        self._bad = np.zeros(clips, bool)
        self._good = 0
        self._side = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        workers = config.data.workers
        self._loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=orders,
            num_workers=workers,
            collate_fn=_as_is,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=config.data.prefetch if workers else None,
            multiprocessing_context=_context() if workers else None,
            worker_init_fn=_start_worker if workers else None,
        )
        self._batches: Iterator | None = None

    @property
    def tried(self) -> int:
        return int(self._tried.sum())

    def __iter__(self) -> Iterator[Batch]:
        if self._batches is None:
            self._batches = iter(self._loader)
        while True:
            begin = time.perf_counter()
            batch = self._next()
            if batch is not None:
                self._note(batch)
            self.data_wait += time.perf_counter() - begin
            if batch is None:
                break
            if isinstance(batch, Batch) and len(batch):
                yield self._move(batch)
        if not self._good:
            raise TooManyBadClips(self._complaint("no clip could be used"))

    def _next(self) -> Batch | NothingUsable | None:
        assert self._batches is not None
        try:
            return next(self._batches)
        except StopIteration:
            return None
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise RuntimeError(
                f"a decoding process ended unexpectedly ({error}). Most often memory ran out, or shared memory did "
                "(/dev/shm): lower data.workers or data.prefetch; data.workers=0 decodes in the training process"
            ) from error

    def _note(self, batch: Batch | NothingUsable) -> None:
        """Count what was tried and what was bad; stop when it is too much."""
        self._tried[batch.tried] = True
        for bad in batch.bad:
            self._bad[bad.clip] = True
            self.bad.setdefault(bad.path, bad.reason)
        if isinstance(batch, NothingUsable):
            raise TooManyBadClips(self._complaint("no clip could be used"))
        self._good += len(batch)
        tried, bad_count = self.tried, int(self._bad.sum())
        if tried >= min(FEWEST_TO_JUDGE, len(self._tried)) and bad_count > self.max_bad_share * tried:
            share = f"{bad_count} of the {tried} clips tried could not be used, more than {self.max_bad_share:.0%}"
            raise TooManyBadClips(self._complaint(f"{share} (data.max_bad_share)"))

    def _complaint(self, what: str) -> str:
        lines = [f"  {path}: {reason}" for path, reason in itertools.islice(self.bad.items(), 10)]
        more = [f"  and {len(self.bad) - 10} more"] if len(self.bad) > 10 else []
        return "\n".join([what, *lines, *more])

    def _move(self, batch: Batch) -> Batch:
        """To the device. On CUDA on a stream of its own: the copy runs beside the step still in flight."""
        if self._side is None:
            return batch
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._side):
            moved = batch.to(self.device, non_blocking=True)
        current.wait_stream(self._side)
        for tensor in (moved.video, moved.wave, moved.wave_valid, moved.position):
            # The allocator must not give this memory to the side stream's next copy before the step has read it.
            tensor.record_stream(current)
        return moved

    def close(self) -> None:
        """End the decoding processes."""
        self._batches = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def make_loader(
    config: Config,
    clipset: ClipSet,
    *,
    start_position: int = 0,
    rank: int = 0,
    world: int = 1,
    steps: int | None = None,
    device: torch.device | str = "cpu",
) -> Loader:
    """The training stream from `start_position` on: this rank's slice of each global step.

    Batches depend on (config, clips, positions) alone: not on the number of workers or ranks, nor on where a run was
    resumed. `steps` ends the stream; None: it never ends.

    Raises (while iterating):
        TooManyBadClips: more than `data.max_bad_share` of the clips tried are bad, or no clip is usable.
        RuntimeError: a decoding process died.
    """
    orders = batches(start_position, config.train.batch_size, rank, world)
    if steps is not None:
        orders = itertools.islice(orders, steps)
    return Loader(TrainClips(config, clipset), _Orders(orders), len(clipset), config, device, config.data.max_bad_share)


def eval_batches(
    config: Config, clipset: ClipSet, batch_size: int, crops: int = 1, device: torch.device | str = "cpu"
) -> Loader:
    """Every clip once, in order, each as `crops` consecutive rows; bad clips are left out and named in `.bad`.

    `Batch.position` is the clip's index. Raises `TooManyBadClips` while iterating only when no clip is usable.
    """
    require(batch_size >= 1, "batch_size", batch_size, ">= 1")
    require(crops >= 1, "crops", crops, ">= 1")
    rows = len(clipset) * crops
    orders = [range(first, min(first + batch_size, rows)) for first in range(0, rows, batch_size)]
    return Loader(EvalClips(config, clipset, crops), orders, len(clipset), config, device, max_bad_share=1.0)


class _Orders:
    """An iterator that `DataLoader` takes for a sampler."""

    def __init__(self, orders: Iterator[range]) -> None:
        self.orders = orders

    def __iter__(self) -> Iterator[range]:
        return self.orders


def _as_is(batch: Any) -> Any:
    return batch


def _context():
    """Workers start from a clean server process: forking a process that has used CUDA, or whose libraries run
    threads, can lock up. The server has imported what the workers need, so that they start at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["diffmavil.data.dataset"])
    return context


def _start_worker(worker: int) -> None:
    # Ctrl-C reaches the whole process group; the main process ends the workers when it has saved its work.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
