"""One part of a preparation: every unfinished shard of it, by processes here or on a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain

from rich.console import Console

from diffmavil.config.errors import RunError
from diffmavil.config.progress import Tracker, tracking
from diffmavil.data.locks import Held, hold_part
from diffmavil.data.prepare.again import forget_failed
from diffmavil.data.prepare.crew import Crew
from diffmavil.data.prepare.items import Item
from diffmavil.data.prepare.layout import Layout, unfinished
from diffmavil.data.prepare.pack import finish, pack_shard
from diffmavil.data.prepare.spread import run_on_ray
from diffmavil.data.prepare.storage import Storage
from diffmavil.data.prepare.work import Worker
from diffmavil.data.shards.index import DATASET_FILE, Description


@dataclass(frozen=True)
class Job:
    """Part `part` of `parts` of what `layout` describes.

    Attributes:
        workers: processes here.
        deadline: seconds that a piece of a clip may take.
        ray: address of a Ray cluster to use instead; None: no cluster.
        retry_bad: do again what failed earlier.
    """

    layout: Layout
    part: int
    parts: int
    workers: int
    deadline: float
    ray: str | None = None
    retry_bad: bool = False

    def run(self, console: Console | None) -> Description | None:
        """Do what is not done yet; the description of the set, or None while other parts are missing.

        Raises:
            ValueError: the layout does not fit what is there.
            CannotWrite: the folder cannot be written.
            RunError: another process prepares shards of this part, or the files are gone or cannot be read.
        """
        self.layout.claim()
        with self._alone() as locked:
            if console and not locked:
                console.print(
                    f"{self.layout.out}: its file system knows no locks: no other process may prepare shards of part "
                    f"{self.part}/{self.parts} meanwhile, or use --retry-bad"
                )
            if self.retry_bad:
                with self.layout.alone():
                    again = forget_failed(self.layout, self.part, self.parts)
                if console:
                    console.print(f"rows that failed and are tried again: {again:,}")
            self._work(console)
        with self.layout.alone():
            if any(True for _ in unfinished(self.layout, 0, 1)):
                return None
            written = self.layout.out / DATASET_FILE
            return Description.from_bytes(written.read_bytes()) if written.exists() else finish(self.layout)

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Hold the lock of the part, unless one that shares shards with it is held; False where there are no locks.

        Raises:
            RunError: another process prepares shards of this part.
            CannotWrite: a lock cannot be had.
        """
        with ExitStack() as held:
            try:
                locked = held.enter_context(hold_part(self.layout.state, "part", self.part, self.parts))
            except Held as error:
                part, parts = error.part
                raise RunError(
                    f"{self.layout.out}: another process ({error.holder}) prepares part {part}/{parts}, which has "
                    f"shards of part {self.part}/{self.parts}: wait until it has ended"
                ) from None
            yield locked

    def _check_source(self) -> None:
        """Raises `RunError` if the disk is lost that the files lie on: that is no fault of theirs."""
        if self.layout.gone():
            what = f"the files that {self.layout.out} is made of are gone"
            raise RunError(
                f"{what}; nothing done is lost: once they are back, the same command with --retry-bad goes on"
            )

    def _work(self, console: Console | None) -> None:
        """Do every unfinished item, and pack each shard when its last item is done."""
        shards = list(unfinished(self.layout, self.part, self.parts))
        worker = Worker(self.layout.settings, self.layout.state, self.deadline)
        with tracking(console, "clips", sum(len(self.layout.items(shard)) for shard in shards)) as tracker:
            left, storage = _Left(self.layout, worker, tracker), Storage()
            for item in self._run(worker, map(left.todo, shards)):
                if not os.path.exists(item.path):
                    self._check_source()
                storage.look(item.path, worker.done(item))
                left.done(item)

    def _run(self, worker: Worker, todo: Iterator[list[Item]]) -> Iterator[Item]:
        """Do the items of each shard; here those of the next one are begun while the last of a shard are done."""
        if self.ray is None:
            with Crew(worker, self.workers) as crew:
                yield from crew.run(chain.from_iterable(todo))
        else:
            for items in filter(None, todo):
                yield from run_on_ray(worker, items, self.ray)


class _Left:
    """How many items of each shard are not done; the shard is packed when none is left."""

    def __init__(self, layout: Layout, worker: Worker, tracker: Tracker) -> None:
        self.layout = layout
        self.worker = worker
        self.tracker = tracker
        self._done = 0
        self._left: dict[int, int] = {}

    def todo(self, shard: int) -> list[Item]:
        """The items of a shard that must be done."""
        items = self.layout.items(shard)
        todo = [item for item in items if not self._is_settled(item)]
        self._left[shard] = len(todo)
        self._done += len(items) - len(todo)
        self.tracker.found(len(items) - len(todo))
        if not todo:
            pack_shard(self.layout, shard)
        return todo

    def done(self, item: Item) -> None:
        self._done += 1
        self.tracker.update(self._done)
        shard = item.number // self.layout.settings.per_shard
        self._left[shard] -= 1
        if not self._left[shard]:
            pack_shard(self.layout, shard)

    def _is_settled(self, item: Item) -> bool:
        if not self.worker.done(item).exists():
            if not item.reason:
                return False
            self.worker.leave(item, [], [item.reason])
        return True
