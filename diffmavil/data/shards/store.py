"""Reading byte ranges of shards: from disk with `pread`, or from any store that fsspec knows.

What is wrong with the storage (a shard that is missing or cut off, a store that does not answer) is `StoreError` and
ends the run with that message: it would not get better with another clip. What is wrong with one sample (its checksum)
is a bad clip like any other.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from diffmavil.config import Modalities
from diffmavil.config.model import hears, sees
from diffmavil.data.clips import Clip, Stored
from diffmavil.data.library import BadClip
from diffmavil.data.samples import Sample
from diffmavil.data.shards.cache import RangeCache

TRIES = 6
BACK_OFF = 0.5
"""Seconds to wait before a read is tried again; doubled each time."""
_LASTING = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
"""What does not get better by itself."""
_OPEN_FILES = 128
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*::)*[a-z][a-z0-9+.-]*://", re.IGNORECASE)
"""How a URL begins, also one that fsspec chains: simplecache::s3://"""
_EXTRA = {"http": "aiohttp requests", "https": "aiohttp requests", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}


class StoreError(Exception):
    """The storage does not give what the index says it holds."""


def is_remote(root: str) -> bool:
    """Whether it is a URL; a path with colons in its names is none."""
    return _SCHEME.match(root) is not None


class Store(Protocol):
    """A folder of shards."""

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Exactly these bytes of a file; `StoreError`."""
        ...

    def read_all(self, name: str) -> bytes:
        """A whole, small file; `StoreError`."""
        ...


def _patiently(read: Callable[[], bytes], sleep: Callable[[float], None]) -> bytes:
    """What `read` gives, which is tried `TRIES` times; raises its last error, or the first that lasts."""
    wait = BACK_OFF
    for left in reversed(range(TRIES)):
        try:
            return read()
        except Exception as error:  # every store has errors of its own
            if not left or isinstance(error, _LASTING):
                raise
        # Processes that failed together do not come back together.
        sleep(wait * (1 + os.getpid() % 97 / 97))
        wait *= 2
    raise AssertionError


class LocalStore:
    """A folder on disk, or on a network's, with retries; `_OPEN_FILES` shards stay open."""

    def __init__(self, root: str, sleep: Callable[[float], None] = time.sleep) -> None:
        self.root = root
        self.sleep = sleep
        self._open: OrderedDict[str, int] = OrderedDict()

    def read(self, name: str, offset: int, size: int) -> bytes:
        path = os.path.join(self.root, name)
        try:
            data = _patiently(lambda: self._pread(path, offset, size), self.sleep)
        except OSError as error:
            raise StoreError(f"{path}: {_tries(error)}{error.strerror}; copy the shard again") from error
        if len(data) != size:
            raise StoreError(f"{path}: cut off: no {size} bytes at {offset}; copy the shard again")
        return data

    def read_all(self, name: str) -> bytes:
        path = Path(self.root, name)
        try:
            return _patiently(path.read_bytes, self.sleep)
        except OSError as error:
            raise StoreError(f"{path}: {_tries(error)}{error.strerror}") from error

    def _pread(self, path: str, offset: int, size: int) -> bytes:
        try:
            return os.pread(self._handle(path), size, offset)
        except OSError:
            # A handle on a file server that was started anew stays stale: the next try opens the file again.
            with contextlib.suppress(OSError, KeyError):
                os.close(self._open.pop(path))
            raise

    def _handle(self, path: str) -> int:
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        if len(self._open) >= _OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        self._open[path] = os.open(path, os.O_RDONLY)
        return self._open[path]

    def __del__(self) -> None:
        for handle in self._open.values():
            os.close(handle)


def _tries(error: Exception) -> str:
    return "" if isinstance(error, _LASTING) else f"tried {TRIES} times: "


class RemoteStore:
    """A folder at a URL, with retries; ranges that were read are kept in a local cache."""

    def __init__(self, url: str, cache: RangeCache | None, sleep: Callable[[float], None] = time.sleep) -> None:
        self.url = url.rstrip("/")
        self.cache = cache
        self.sleep = sleep
        self._fs, self._folder = _file_system(self.url)

    def read(self, name: str, offset: int, size: int) -> bytes:
        key = f"{self.url}/{name}:{offset}:{size}"
        data = self.cache.get(key) if self.cache else None
        if data is None or len(data) != size:
            data = self._tried(name, offset, offset + size)
            if len(data) != size:
                raise StoreError(
                    f"{self.url}/{name}: {len(data)} bytes came for {size} at {offset}: the shard is cut off, or the "
                    "server does not know byte ranges"
                )
            if self.cache:
                self.cache.put(key, data)
        return data

    def forget(self, name: str, offset: int, size: int) -> None:
        """Drop a range from the cache: it was damaged there."""
        if self.cache:
            self.cache.drop(f"{self.url}/{name}:{offset}:{size}")

    def read_all(self, name: str) -> bytes:
        return self._tried(name, None, None)

    def _tried(self, name: str, start: int | None, end: int | None) -> bytes:
        try:
            return _patiently(lambda: self._fs.cat_file(f"{self._folder}/{name}", start=start, end=end), self.sleep)
        except FileNotFoundError as error:
            raise StoreError(f"{self.url}/{name}: is not there") from error
        except PermissionError as error:
            raise StoreError(f"{self.url}/{name}: access is denied: {error}") from error
        except Exception as error:
            raise StoreError(f"{self.url}/{name}: {_tries(error)}{error!r}") from error


def _file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the folder's path in it; `ValueError` when a package is missing."""
    try:
        import fsspec

        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        extra = _EXTRA.get(url.partition("://")[0], "fsspec")
        raise ValueError(f"data.root={url!r}: cannot be opened: {error} (pip install {extra})") from error


class Reader:
    """Clips to what a decoder takes; opens what it needs in each process anew.

    Args:
        cache: folder for ranges of remote stores.
        cache_bytes: most that is kept there; 0: nothing.
        modalities: what is read of a sample.
    """

    def __init__(self, cache: Path, cache_bytes: int, modalities: Modalities = "av") -> None:
        self.cache = cache
        self.cache_bytes = cache_bytes
        self.modalities: Modalities = modalities
        self._stores: dict[str, Store] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stores": {}}

    def store(self, root: str) -> Store:
        if root not in self._stores:
            self._stores[root] = open_store(root, self.cache, self.cache_bytes)
        return self._stores[root]

    def __call__(self, clip: Clip) -> str | Sample:
        """The path of a plain file, or a sample of a shard.

        Raises:
            BadClip: the sample's checksum is wrong.
            StoreError: the storage fails.
        """
        if clip.stored is None:
            return clip.path
        store, place = self.store(clip.stored.root), clip.stored
        # Sound follows picture in the shard: one read gets both.
        begin = place.video if sees(self.modalities) else place.audio
        end = place.audio + place.audio_size if hears(self.modalities) else place.video + place.video_size
        sample = self._sample(clip, place, store.read(place.shard, begin, end - begin))
        if sample is None and isinstance(store, RemoteStore):
            store.forget(place.shard, begin, end - begin)
            sample = self._sample(clip, place, store.read(place.shard, begin, end - begin))
        if sample is None:
            raise BadClip(clip.path, "its checksum is wrong: the shard was changed or damaged")
        return sample

    def _sample(self, clip: Clip, place: Stored, data: bytes) -> Sample | None:
        """None when a checksum is wrong."""
        mp4 = flac = b""
        whole = True
        if sees(self.modalities):
            mp4 = data[: place.video_size]
            whole = zlib.crc32(mp4) == place.video_crc
        if hears(self.modalities):
            flac = data[len(data) - place.audio_size :]
            whole = whole and zlib.crc32(flac) == place.audio_crc
        return Sample(clip.path, mp4, flac) if whole else None


def open_store(root: str, cache: Path, cache_bytes: int) -> Store:
    """Where the shards of `root`, a folder or a URL, are read."""
    if not is_remote(root):
        return LocalStore(root)
    return RemoteStore(root, RangeCache(cache / "ranges", cache_bytes) if cache_bytes else None)
