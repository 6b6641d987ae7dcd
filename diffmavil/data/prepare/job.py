"""One part of a preparation: every unfinished shard of it, by processes here or on a Ray cluster."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console

from diffmavil.config.errors import RunError
from diffmavil.config.progress import tracking
from diffmavil.data.prepare.again import forget_failed
from diffmavil.data.prepare.crew import Crew
from diffmavil.data.prepare.items import Item
from diffmavil.data.prepare.layout import Layout, unfinished
from diffmavil.data.prepare.pack import finish, pack_shard
from diffmavil.data.prepare.spread import run_on_ray
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
            RunError: another process prepares the same part, or the files are gone.
        """
        self.layout.claim()
        with self._alone():
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
    def _alone(self) -> Iterator[None]:
        """Hold the lock of the part; the kernel lets go of it when the process is killed."""
        with (self.layout.state / f"part-{self.part}-of-{self.parts}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(f"{self.layout.out}: another process prepares part {self.part}/{self.parts}") from None
            yield

    def _check_source(self) -> None:
        """Raises `RunError` if the disk is lost that the files lie on: that is no fault of theirs."""
        if self.layout.gone():
            what = f"the files that {self.layout.out} is made of are gone"
            raise RunError(
                f"{what}; nothing done is lost: once they are back, the same command with --retry-bad goes on"
            )

    def _work(self, console: Console | None) -> None:
        """Do every unfinished item, shard by shard, and pack each shard when its last item is done."""
        shards = list(unfinished(self.layout, self.part, self.parts))
        done, total = 0, sum(len(self.layout.items(shard)) for shard in shards)
        with tracking(console, "clips", total) as tracker:
            for shard in shards:
                worker = Worker(self.layout.settings, self.layout.staging(shard), self.deadline)
                todo: list[Item] = []
                for item in self.layout.items(shard):
                    if worker.done(item).exists():
                        tracker.found(1)
                    elif item.reason:
                        worker.leave(item, [], [item.reason])
                        tracker.found(1)
                    else:
                        todo.append(item)
                        continue
                    done += 1
                for item in self._run(worker, todo):
                    if not os.path.exists(item.path):
                        self._check_source()
                    done += 1
                    tracker.update(done)
                pack_shard(self.layout, shard)

    def _run(self, worker: Worker, todo: list[Item]) -> Iterator[Item]:
        if self.ray is not None and todo:
            yield from run_on_ray(worker, todo, self.ray)
        elif todo:
            with Crew(worker, min(self.workers, len(todo))) as crew:
                yield from crew.run(todo)
