"""How decoding processes start, stop and hand over their batches."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Event
from types import ModuleType
from typing import Any

import torch
from torch.utils.data import get_worker_info

from diffmavil.data.dataset import Batch, NothingUsable

__all__ = [
    "Event",
    "as_is",
    "end_processes",
    "fits_shared_memory",
    "process_context",
    "start_worker",
    "unshared",
    "without_advice",
    "without_main",
]

_SHARED_MEMORY = "/dev/shm"


def process_context() -> ForkServerContext:
    """Workers are forked from a clean server process, which has imported what they need, so that they start at once.

    Forking the training process itself can lock up: it has used CUDA, or its libraries run threads.
    """
    context = multiprocessing.get_context("forkserver")
    # Every worker runs the main module's imports, for a second or two unless the server has done so once.
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    context.set_forkserver_preload(["diffmavil.data.forkserver", spec.name if spec else "__main__"])
    return context


def start_worker(worker: int) -> None:
    """In a worker: end with the main process, and not before it.

    Ctrl-C and a scheduler's SIGTERM reach every process; the main one ends its workers once its work is saved. When it
    is killed itself, nobody tells them: `DataLoader` watches a worker's parent, which is the server process, and that
    one lives as long as its workers do.
    """
    info: Any = get_worker_info()
    stop: Event = info.dataset.stop

    def leave_if_told(signum: int, frame: object) -> None:
        if stop.is_set():
            os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, leave_if_told)
    threading.Thread(target=leave_with_main, daemon=True).start()


def leave_with_main() -> None:
    """In a thread: end this process when the one that started it ends, however it does."""
    main = multiprocessing.parent_process()
    assert main is not None
    main.join()
    os._exit(1)


def fits_shared_memory(size: int) -> bool:
    """Whether half of the free shared memory holds `size` bytes; containers often have 64 MB in all."""
    try:
        info = os.statvfs(_SHARED_MEMORY)
    except OSError:
        return True
    return size <= info.f_bavail * info.f_frsize // 2


def as_is(batch: Any) -> Any:
    """Hand over tensors, whose memory is shared."""
    return batch


def unshared(batch: Batch | NothingUsable) -> Unshared | NothingUsable:
    """Hand over arrays, which are copied through a pipe: slower, but without shared memory."""
    if isinstance(batch, NothingUsable):
        return batch
    return Unshared(batch.map(lambda tensor: tensor.numpy()))


@dataclass(frozen=True)
class Unshared:
    """A `Batch` on its way, with arrays in place of its tensors."""

    arrays: Batch

    def batch(self) -> Batch:
        return self.arrays.map(torch.from_numpy)

    def pin_memory(self) -> Batch:
        return self.batch().pin_memory()


@contextmanager
def without_main() -> Iterator[None]:
    """Processes that are started inside run nothing of the main module: a person's script may have no guard around what
    it does, and a notebook or stdin has no file to run."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def without_advice() -> Iterator[None]:
    """Whoever sets data.workers knows how many cores there are."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


def end_processes(live: list[Any], stop: Event | None) -> None:
    """End the processes of the iterators in `live`; runs at the interpreter's exit too."""
    if stop is not None:
        stop.set()
    while live:
        # The public way is to drop the last reference, which a traceback may hold.
        iterator = live.pop()
        shutdown = getattr(iterator, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()
        for process in getattr(iterator, "_workers", ()):
            process.kill()  # one that hangs in the decoder hears nothing else, and the interpreter would wait for it
