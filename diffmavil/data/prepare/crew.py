"""Processes that do items, and outlive any of them: one that hangs is killed, one that dies is replaced.

`concurrent.futures` gives a pool up when a process dies and cannot end one that hangs; a decoder fed with damaged files
does both.
"""

from __future__ import annotations

import signal
import threading
import traceback
from collections.abc import Iterable, Iterator
from itertools import islice
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

import torch

from diffmavil.config.errors import CannotWrite
from diffmavil.data.awake import awake_seconds
from diffmavil.data.prepare.items import Item
from diffmavil.data.prepare.work import Worker
from diffmavil.data.workers import leave_with_main, process_context

_START_SECONDS = 120.0
"""What the first item of a process may take longer: imports."""
_SLACK = 5.0
"""The process looks at the deadline itself; it is killed this many seconds later."""
_KILLED = (
    "the decoder was killed twice (SIGKILL), the second time with no other of this command beside it: memory ran out; "
    "--retry-bad with fewer --workers, or with more memory, tries it again"
)


class Crew:
    """Up to `count` processes that call `worker`; a context manager, which ends them."""

    def __init__(self, worker: Worker, count: int) -> None:
        self.worker = worker
        self.count = count
        self.members: list[_Member] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        while self.members:
            self.members.pop().kill()

    def run(self, items: Iterable[Item]) -> Iterator[Item]:
        """Do all items; gives each when it is done, in any order. The next one is taken when a process is free for it.

        An item whose process hangs or dies gets that as its result. When somebody else kills the process, as the kernel
        does when memory runs out, the item is done once more after all others, with no other beside it.

        Raises:
            CannotWrite: the output cannot be written.
        """
        killed: list[Item] = []
        yield from self._run(iter(items), killed)
        for item in killed:
            again: list[Item] = []
            yield from self._run(iter([item]), again)
            if again:
                self.worker.leave(item, [], [_KILLED])
                yield item

    def _run(self, waiting: Iterator[Item], killed: list[Item]) -> Iterator[Item]:
        """As `run`, but for the items whose processes somebody killed: `killed` gets these."""
        self._end()  # idle processes take memory too
        for item in islice(waiting, self.count):
            self.members.append(_Member(self.worker))
            self.members[-1].give(item)
        while busy := [member for member in self.members if member.item is not None]:
            wait([member.connection for member in busy], timeout=max(0.0, min(m.due for m in busy) - awake_seconds()))
            for index, member in enumerate(self.members):
                done = member.look()
                if done is None:
                    continue
                if member.killed:
                    killed.append(done)
                else:
                    if member.lost:
                        self.worker.leave(done, [], [member.lost])
                    yield done
                following = next(waiting, None)
                if member.lost and following is not None:
                    member = self.members[index] = _Member(self.worker)
                member.give(following)


class _Member:
    """A process, the item it does, and when that is due."""

    def __init__(self, worker: Worker) -> None:
        self.patience = worker.deadline + _SLACK
        self.item: Item | None = None
        self.due = float("inf")
        self.lost = ""
        """Why the process is no more."""
        self.killed = False
        """By somebody else, as the kernel does when memory runs out."""
        self._extra = _START_SECONDS
        context = process_context()
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, worker), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, item: Item | None) -> None:
        self.item = item
        if item is not None:
            self.due = awake_seconds() + self.patience + self._extra
            self._extra = 0.0
            # A process that died while idle is found out by `look`.
            try:
                self.connection.send(item)
            except OSError:
                self.due = 0.0

    def look(self) -> Item | None:
        """The item if it has come to an end, well or badly."""
        if self.item is None:
            return None
        try:
            while self.connection.poll():
                kind, what = self.connection.recv()
                if kind == "begun":
                    self.due = awake_seconds() + self.patience
                elif kind == "done":
                    return self.item
                elif kind == "cannot write":
                    raise CannotWrite(what)
                else:
                    return self._lose(what)
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode or 0
            self.killed = code == -signal.SIGKILL
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return self._lose(f"the decoder crashed ({how})")
        if awake_seconds() > self.due:
            return self._lose(f"not decoded within the deadline of {self.patience - _SLACK:g} s")
        return None

    def _lose(self, why: str) -> Item | None:
        self.lost = why
        self.kill()
        return self.item

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, worker: Worker) -> None:
    """In the process: do items until nobody gives any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=leave_with_main, daemon=True).start()
    torch.set_num_threads(1)

    def tell(kind: str, what: Any = None) -> None:
        connection.send((kind, what))

    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        try:
            worker(item, lambda: tell("begun"))
            tell("done")
        except CannotWrite as error:
            tell("cannot write", str(error))
        except Exception as error:
            # Said once with its place: it is a fault of ours, or memory that ran out.
            traceback.print_exc()
            tell("failed", f"unexpected {type(error).__name__}: {error}")
