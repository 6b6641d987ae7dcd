"""Where the elements of tensor arguments lie, what programs touched, and whether two of them race."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, eq=False)
class Argument:
    """A tensor argument of a launch: the addresses of its elements."""

    name: str
    start: int
    itemsize: int
    axes: tuple[tuple[int, int], ...]
    """(stride in elements, size) of the axes that move, longest stride first."""

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor) -> Argument:
        axes = [(stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if stride]
        sizes = axes if tensor.numel() else [(1, 0)]
        return cls(name, tensor.data_ptr(), tensor.element_size(), tuple(sorted(sizes, reverse=True)))

    def holds(self, addresses: np.ndarray, width: int) -> np.ndarray:
        """Which accesses of `width` bytes touch elements only. Exact for every view made by slicing, transposing
        and expanding; of a view that overlaps itself (`unfold`) some elements would not be recognised."""
        inside = np.ones(addresses.shape, dtype=bool)
        for byte in {*range(0, width, self.itemsize), width - 1}:
            rest = (addresses + np.uint64(byte)).view(np.int64) - self.start
            rest //= self.itemsize
            for stride, size in self.axes:
                rest -= np.clip(rest // stride, 0, size - 1) * stride
            inside &= rest == 0
        return inside if all(size for _, size in self.axes) else np.zeros_like(inside)


@dataclass(frozen=True)
class Access:
    """The distinct addresses that one load, store or atomic of one program touched."""

    kind: str
    program: int
    addresses: np.ndarray
    width: int
    line: str

    def __str__(self) -> str:
        return f"{self.kind} at {self.line} by program {self.program}"


def find_race(accesses: list[Access]) -> str | None:
    """A store must not meet another program's access. Loads may meet loads, and atomics may meet atomics."""
    stores, storer = _touched(accesses, "store")
    if not stores.size:
        return None
    program = np.array([access.program for access in accesses])

    def describe(meet: np.ndarray, first: np.ndarray, second: np.ndarray) -> str | None:
        if not meet.any():
            return None
        one = int(np.argmax(meet))
        return f"race on {meet.sum()} address(es): {accesses[first[one]]}, {accesses[second[one]]}"

    twice = (stores[1:] == stores[:-1]) & (program[storer[1:]] != program[storer[:-1]])
    found = describe(twice, storer[:-1], storer[1:])
    for kind in ("load", "atomic"):
        others, toucher = _touched(accesses, kind)
        match = np.minimum(np.searchsorted(stores, others), stores.size - 1)
        meet = (stores[match] == others) & (program[storer[match]] != program[toucher])
        found = found or describe(meet, storer[match], toucher)
    return found


def _touched(accesses: list[Access], kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The addresses touched, ascending, in steps of the narrowest access of the launch; and the index of the access."""
    step = min((access.width for access in accesses), default=1)
    addresses, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for index, access in enumerate(accesses):
        if access.kind == kind:
            covered = access.addresses[:, None] + np.arange(0, access.width, step, dtype=np.uint64)
            addresses.append(covered.ravel())
            owners.append(np.full(covered.size, index))
    flat = np.concatenate(addresses)
    order = np.argsort(flat, kind="stable")
    return flat[order], np.concatenate(owners)[order]
