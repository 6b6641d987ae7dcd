"""Which clip each decoding process has in hand: what is told when a process dies, or hangs."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from ctypes import c_int64
from multiprocessing.sharedctypes import RawArray

from torch.utils.data import get_worker_info

_NOTHING = -1


class InHand:
    """Memory that `workers` decoding processes share with the one they decode for; elsewhere nothing is written."""

    def __init__(self, workers: int) -> None:
        # A row for each process: its id, the index of its clip, how many clips it has taken.
        self._rows = RawArray(c_int64, [0, _NOTHING, 0] * workers) if workers else None

    def clear(self) -> None:
        """Before processes start: what earlier ones had in hand when they were ended is no longer so."""
        if self._rows is not None:
            self._rows[1::3] = [_NOTHING] * (len(self._rows) // 3)

    def take(self, clip: int) -> None:
        """A decoding process begins with a clip, by its index in the set."""
        info = get_worker_info()
        if self._rows is not None and info is not None:
            row = 3 * info.id
            self._rows[row] = os.getpid()
            self._rows[row + 1] = clip
            self._rows[row + 2] += 1

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Around the making of a batch: afterwards the process has nothing in hand."""
        try:
            yield
        finally:
            info = get_worker_info()
            if self._rows is not None and info is not None:
                self._rows[3 * info.id + 1] = _NOTHING

    def state(self) -> list[int]:
        """Numbers that change whenever a process takes a clip, or ends a batch."""
        return [] if self._rows is None else list(self._rows)

    def clips(self, processes: Collection[int] | None = None) -> list[int]:
        """Indices of the clips in hand, of these process ids alone; None: of all."""
        rows = self.state()
        found = zip(rows[::3], rows[1::3], strict=True)
        return [clip for pid, clip in found if clip != _NOTHING and (processes is None or pid in processes)]
