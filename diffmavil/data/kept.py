"""Random crops that are decoded once and kept in memory, for all decoding processes of a rank.

Which crop a training position takes, and what that crop shows, are pure functions of (seed, position): memory changes
how long a crop takes, never what is in it.
"""

from __future__ import annotations

import os
import tempfile
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import numpy as np

from diffmavil.config import Config

_FREE_SHARE = 0.8
"""Share of the free memory that crops may take."""
_GROUP = Path("/sys/fs/cgroup")
_HEADER = 8
"""Bytes before a crop: 0, or one more than its samples before the sound's end."""


class KeptCrops:
    """Room for `data.crops_kept` crops of each of `clips` clips: a file without a name, in memory where the system can.

    Pages are taken as crops come. It is read and written by system calls, which order what processes do: a crop's
    header is written last, and whoever reads it finds the rest. Two processes may write a crop at once: the same bytes.
    """

    def __init__(self, clips: int, config: Config) -> None:
        self.crops = config.data.crops_kept
        self._stride = _HEADER + crop_bytes(config)
        self._file = _memory_file()
        os.ftruncate(self._file, clips * self.crops * self._stride)

    def get(self, clip: int, crop: int, video: np.ndarray | None, wave: np.ndarray) -> int | None:
        """Read crop `crop` of clip `clip` into `video` and `wave`: its samples before the sound's end, or None."""
        place = self._place(clip, crop)
        header = int.from_bytes(os.pread(self._file, _HEADER, place), "little")
        if not header:
            return None
        whole = os.preadv(self._file, _buffers(video, wave), place + _HEADER) == self._stride - _HEADER
        return header - 1 if whole else None

    def put(self, clip: int, crop: int, video: np.ndarray | None, wave: np.ndarray, valid: int) -> None:
        """Keep a crop, unless there is no room for all of it; `valid`: its samples before the sound's end."""
        place = self._place(clip, crop)
        if os.pwritev(self._file, _buffers(video, wave), place + _HEADER) == self._stride - _HEADER:
            os.pwrite(self._file, (valid + 1).to_bytes(_HEADER, "little"), place)

    def _place(self, clip: int, crop: int) -> int:
        return (clip * self.crops + crop) * self._stride

    def __getstate__(self) -> dict[str, Any]:
        assert get_spawning_popen(), "only a process that is being started can inherit the file"
        return {**self.__dict__, "_file": DupFd(self._file)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _file=state["_file"].detach())

    def __del__(self) -> None:
        if isinstance(getattr(self, "_file", None), int):
            os.close(self._file)


def crop_bytes(config: Config) -> int:
    """Of one decoded crop."""
    model = config.model
    picture = model.video.frames * model.video.size**2 * 3 if model.sees else 0
    return picture + (model.audio.samples * 4 if model.hears else 0)


def kept_crops(clips: int, config: Config) -> KeptCrops | None:
    """What `data.crops_kept` asks for; None for 0.

    Raises:
        ValueError: it needs more memory than is free, on all ranks of this machine together.
    """
    crops = config.data.crops_kept
    if not crops:
        return None
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    each = clips * (_HEADER + crop_bytes(config)) * ranks
    free = _free_memory()
    if free is not None and each * crops > _FREE_SHARE * free:
        beside = f" on each of {ranks} ranks" if ranks > 1 else ""
        raise ValueError(
            f"data.crops_kept={crops}: {crops} crops of {clips:,} clips{beside} take {each * crops * 1e-9:.1f} GB of "
            f"memory, and {free * 1e-9:.1f} GB are free: must be at most {int(_FREE_SHARE * free // each)}; 0 decodes "
            "each time"
        )
    return KeptCrops(clips, config)


def _buffers(video: np.ndarray | None, wave: np.ndarray) -> list[memoryview]:
    return [part.data.cast("B") for part in (video, wave) if part is not None and part.size]


def _memory_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("diffmavil-crops")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _free_memory() -> int | None:
    """Bytes that this process may still take, by Linux and by its control group's limit; None where neither says."""
    found = []
    memory = Path("/proc/meminfo")
    if memory.exists():
        lines = dict(line.split(":", 1) for line in memory.read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    limit, used, kinds = (_GROUP / f"memory.{name}" for name in ("max", "current", "stat"))
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        # Files that nobody reads at present count as used, and are let go when memory is wanted.
        idle = dict(line.split() for line in kinds.read_text().splitlines()).get("inactive_file", "0")
        found.append(int(limit.read_text()) - int(used.read_text()) + int(idle))
    return min(found, default=None)
