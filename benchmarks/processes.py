"""Our own commands in processes of their own, whose CPU seconds are known also when several run side by side."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import TypeVar

from benchmarks.identity import ROOT

T = TypeVar("T")
R = TypeVar("R")
Python = Callable[..., float]
"""`python("diffmavil.train", "--run-dir", ...)`: CPU seconds of the command, which has ended well."""


class Stopped(Exception):
    """The command was ended, or not even begun, since `Processes.stop` was called."""


class Processes:
    """Runs commands for any number of threads, and can end them all.

    Args:
        threads: that torch takes in each process, on a CPU; None: as the environment says, on what there is.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
        if threads is not None:
            self._environment |= {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
        self._running: set[int] = set()
        self._stopped = False
        self._lock = threading.Lock()

    def python(self, *arguments: str) -> float:
        """`python -m ...` with this checkout's packages. CPU seconds of the process and of those it waited for.

        Raises:
            RuntimeError: it failed; with the end of what it said.
            Stopped: `stop` was called.
        """
        with tempfile.TemporaryFile() as said:
            with self._lock:
                if self._stopped:
                    raise Stopped
                # A group of its own: Ctrl-C in a terminal does not reach it, and `stop` reaches its children too.
                process = subprocess.Popen(
                    [sys.executable, "-m", *arguments],
                    stdout=subprocess.DEVNULL,
                    stderr=said,
                    env=self._environment,
                    start_new_session=True,
                )
                self._running.add(process.pid)
            # Popen.wait would not tell what the process used, and getrusage adds up all that ever ended.
            _, status, used = os.wait4(process.pid, 0)
            with self._lock:
                self._running.remove(process.pid)
                process.returncode = os.waitstatus_to_exitcode(status)
                if self._stopped:
                    raise Stopped
            if process.returncode:
                said.seek(0)
                end = said.read().decode(errors="replace")[-4000:]
                raise RuntimeError(f"python -m {' '.join(arguments)} ended with {process.returncode}:\n{end}")
        return used.ru_utime + used.ru_stime

    def stop(self) -> None:
        """End all that is running, and begin nothing more."""
        with self._lock:
            self._stopped = True
            for pid in self._running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)


def python(*arguments: str) -> float:
    """`Processes.python`, one at a time."""
    return Processes().python(*arguments)


def side_by_side(
    items: Iterable[T], jobs: int, work: Callable[[T], R], done: Callable[[R], None], processes: Processes
) -> None:
    """`done(work(item))` for each: `jobs` of them at a time, begun in order, `done` in this thread as soon as it can.

    The first that fails lets the others that are running end, and is raised after them. Whatever else comes between,
    Ctrl-C for one, ends the processes too.
    """
    failed: BaseException | None = None
    waiting: list[Future[R]] = []
    with ThreadPoolExecutor(jobs) as pool:
        try:
            waiting += [pool.submit(work, item) for item in items]
            for future in as_completed(waiting):
                if future.cancelled():
                    continue
                error = future.exception()
                if error is None:
                    done(future.result())
                    continue
                failed = failed or error
                for other in waiting:
                    other.cancel()
        except BaseException:
            for other in waiting:
                other.cancel()
            processes.stop()
            raise
    if failed is not None:
        raise failed
