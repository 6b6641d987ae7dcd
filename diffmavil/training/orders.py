"""Which clips are decoded for which steps: a clip may serve several, `data.repeat`, before the next is decoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from diffmavil.config import Config
from diffmavil.data.dataset import Batch
from diffmavil.data.loader import Loader
from diffmavil.training.planner import group_of, plan, timetable


@dataclass(frozen=True)
class Orders:
    """Places, in the stream of decoded clips, of one rank's clips for the steps from `first_step` to the last; starts
    anew each time.

    With `data.repeat` = k steps share an order by groups of k, and the stream is passed through k times slower. A group
    ends early where the batch changes its size; a few of its clips may then come again in the next.
    """

    config: Config
    first_step: int
    rank: int
    processes: int

    def __iter__(self) -> Iterator[range]:
        step, steps = self.first_step, timetable(self.config).steps
        while step < steps:
            group = group_of(self.config, step)
            now = plan(self.config, group.start)
            local = now.batch_size // self.processes
            first = -(-now.position // self.config.data.repeat) + self.rank * local
            yield range(first, first + local)
            step = group.stop

    @property
    def largest(self) -> int:
        """Most clips of one step on this rank."""
        sizes = [stretch.batch_size for stretch in timetable(self.config).stretches]
        return max(sizes, default=self.config.train.batch_size) // self.processes


def batches_of_steps(loader: Loader, orders: Orders) -> Iterator[Batch]:
    """A batch for each step of `orders`, from whose decoded clips `loader` makes its own.

    `Batch.position` is the sample's number in the run, by which masks, noise and augmentations are drawn: a clip that
    comes again comes otherwise.
    """
    step = orders.first_step
    for batch in loader:
        for now in range(step, group_of(orders.config, step).stop):
            whole = plan(orders.config, now)
            first = whole.position + orders.rank * (whole.batch_size // orders.processes)
            yield replace(batch, position=torch.arange(first, first + len(batch), device=batch.position.device))
            step += 1
