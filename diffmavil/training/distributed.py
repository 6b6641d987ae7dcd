"""One process or many: everything the trainer needs to know about its peers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from diffmavil.config.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process's place: `rank` of `size`, on `device`.

    Control messages (stop flags, run folder) go over a gloo group, so that they never wait for the GPU.
    """

    rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup | None = None

    @property
    def main(self) -> bool:
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """True on every rank if `flag` is true on any rank."""
        if self.control is None:
            return flag
        votes = torch.tensor([int(flag)])
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.control)
        return bool(votes.item())

    def main_first(self, work: Callable[[], T]) -> T:
        """`work()` on every rank, on rank 0 before the others: it fills the caches that they then read.

        A failure on rank 0 is raised on every rank, so that none waits for rank 0.
        """
        if self.control is None:
            return work()
        made: list[T] = []
        self.main_only(lambda: made.append(work()))  # does not send a model or a million clips to peers that drop it
        return made[0] if self.main else work()

    def main_only(self, work: Callable[[], T]) -> T:
        """The result of `work()` on rank 0, on every rank; a failure there is raised on every rank."""
        if self.control is None:
            return work()
        result, error = None, None
        if self.main:
            try:
                result = work()
            except Exception as caught:  # any kind: raised again below, here and on the peers
                error = caught
        result, error = self.from_main((result, error))
        if error is not None:
            raise error
        return cast(T, result)

    def from_main(self, value: T) -> T:
        """Rank 0's `value` on every rank."""
        if self.control is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Every rank's `value`, in rank order, on every rank."""
        if self.control is None:
            return [value]
        boxes: list[T] = [value] * self.size
        dist.all_gather_object(boxes, value, group=self.control)
        return boxes

    def check_alike(self, name: str, value: Callable[[], str]) -> None:
        """Raise `UsageError` on every rank unless `value()`, which describes `name`, is the same on all of them."""
        found = self.gather(value() if self.size > 1 else "")
        other = next((rank for rank, one in enumerate(found) if one != found[0]), None)
        if other is not None:
            told = f"{found[0]} on rank 0, {found[other]} on rank {other}"
            raise UsageError(f"{name}: {told}: must be the same on every rank")

    def barrier(self) -> None:
        if self.control is not None:
            dist.barrier(group=self.control)

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values


@contextmanager
def world() -> Iterator[World]:
    """Join the process group that torchrun describes; without torchrun, a world of one process.

    nccl if this rank has a GPU, else gloo. After an error the group is not destroyed: nccl would wait for peers that
    wait for this rank. `run_main` then ends the process.

    Raises:
        UsageError: more processes than GPUs.
    """
    local = int(os.environ.get("LOCAL_RANK", 0))
    use_cuda = torch.cuda.is_available()
    device = torch.device("cuda", local) if use_cuda else torch.device("cpu")
    if use_cuda:
        if local >= torch.cuda.device_count():
            some = f"{torch.cuda.device_count()}, the GPUs that this process sees: no more processes than GPUs"
            raise UsageError(f"LOCAL_RANK={local}: must be below {some}")
        torch.cuda.set_device(device)
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield World(rank=0, size=1, device=device)
        return
    # A rank may wait long for clips: one that hangs is given up after data.deadline, and a batch has many. Dead ranks
    # are noticed by torchrun, not by these groups.
    patience = timedelta(hours=2)
    dist.init_process_group("nccl" if use_cuda else "gloo", timeout=patience, device_id=device if use_cuda else None)
    control = dist.new_group(backend="gloo", timeout=patience)
    assert isinstance(control, dist.ProcessGroup)  # every rank belongs to it
    yield World(rank=dist.get_rank(), size=size, device=device, control=control)
    dist.destroy_process_group()
