"""Byte ranges of remote stores on the local disk: the least recently used ones leave when it is full.

Many processes share it without talking to each other: a range is one file, written whole or not at all, and its time of
modification says when it was last used.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from pathlib import Path

from diffmavil.data.durable import draft_of

_LOOK = 64
"""A process looks at the whole cache each time it has added 1/_LOOK of the limit."""
_KEEP = 0.75
"""What is left after ranges were removed. So 16 processes together never go beyond the limit."""


class RangeCache:
    """At most `limit` bytes in `folder`."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._added = limit  # look at once: somebody else's cache may be larger

    def get(self, key: str) -> bytes | None:
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        with contextlib.suppress(OSError):  # another's file, or a disk that takes nothing
            os.utime(path)
        return data

    def put(self, key: str, data: bytes) -> None:
        """Keep a range, if the disk takes it: the cache is there for speed alone."""
        if len(data) > self.limit * (1 - _KEEP):
            return
        if self._added + len(data) > self.limit / _LOOK:
            with contextlib.suppress(OSError):
                self._make_room()
            self._added = 0
        path = self._path(key)
        draft = draft_of(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(data)
            draft.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                draft.unlink()
            return
        self._added += len(data)

    def drop(self, key: str) -> None:
        with contextlib.suppress(OSError):
            self._path(key).unlink()

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        return self.folder / name[:2] / name[2:]

    def _make_room(self) -> None:
        """Remove the ranges used longest ago until `_KEEP` of the limit is left, unless it fits anyway."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # another process is at it
            except OSError:
                pass  # no locks are known there: several at once remove too much at worst
            found: list[tuple[int, int, str]] = []
            for inner in os.scandir(self.folder):
                if inner.is_dir():
                    for file in os.scandir(inner):
                        with contextlib.suppress(OSError):
                            info = file.stat()
                            found.append((info.st_mtime_ns, info.st_size, file.path))
            size = sum(one[1] for one in found)
            if size <= self.limit * _KEEP:
                return
            for _, bytes_, path in sorted(found):
                with contextlib.suppress(OSError):
                    os.unlink(path)
                size -= bytes_
                if size <= self.limit * _KEEP:
                    break
