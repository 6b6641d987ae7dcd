"""The clips of a set packed into a few arrays, for the decoding processes.

A list of millions of `Clip`s takes every process minutes to unpickle and a gigabyte to hold; the arrays take a tenth,
and nothing in them is touched by reference counting.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from diffmavil.data.clips import Clip, Stored


class ClipTable:
    """Read-only: index i gives `Clip` i again, but for its `origin` and `cut_at`."""

    def __init__(self, clips: Sequence[Clip]) -> None:
        paths = [clip.path.encode("utf-8", "surrogateescape") for clip in clips]
        self._paths = np.frombuffer(b"".join(paths), np.uint8)
        self._path_ends = _ends(len(path) for path in paths)
        # None becomes nan.
        self._times = np.array([(clip.start, clip.duration) for clip in clips], dtype=np.float64).reshape(-1, 2)
        self._labels = np.array([label for clip in clips for label in clip.labels], dtype=np.int64)
        self._label_ends = _ends(len(clip.labels) for clip in clips)
        # Which shard (-1: none), and the numbers of `Stored` behind root and shard.
        shards: dict[tuple[str, str], int] = {}
        stored = [clip.stored for clip in clips]
        self._shard = np.array([-1 if s is None else shards.setdefault(s[:2], len(shards)) for s in stored], np.int32)
        self._places = np.array([s[2:] for s in stored if s is not None], np.int64).reshape(-1, 6)
        self._place_of = np.cumsum(self._shard >= 0, dtype=np.int32) - 1
        self._shards = list(shards)

    def __len__(self) -> int:
        return len(self._times)

    def __getitem__(self, index: int) -> Clip:
        path = self._paths[self._path_ends[index] : self._path_ends[index + 1]].tobytes()
        start, duration = (None if np.isnan(seconds) else float(seconds) for seconds in self._times[index])
        labels = self._labels[self._label_ends[index] : self._label_ends[index + 1]]
        stored = None
        if self._shard[index] >= 0:
            stored = Stored(*self._shards[self._shard[index]], *self._places[self._place_of[index]].tolist())
        return Clip(path.decode("utf-8", "surrogateescape"), start, duration, tuple(labels.tolist()), stored)


def _ends(lengths: Iterable[int]) -> np.ndarray:
    """Where each stretch ends, with a zero in front: int64 `[n + 1]`."""
    return np.concatenate([[0], np.cumsum(np.fromiter(lengths, np.int64))])
