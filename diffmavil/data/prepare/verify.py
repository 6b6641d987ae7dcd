"""Is a prepared set whole? Reads every byte, extracts nothing."""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

from diffmavil.config import require
from diffmavil.data.shards.index import DATASET_FILE, INDEX_FILE, Description

_MOST = 1000
"""Problems named."""


def verify(out: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
    """Everything wrong with a set, in words; nothing: each sample of the index is in its shard, whole, and no other.

    Names inside a tar are compared, never used as paths, so one with `../` in it is a problem and no danger.

    Raises:
        ValueError: no prepared set is there.
    """
    require((out / DATASET_FILE).is_file(), "--verify", str(out), f"a prepared folder, with a {DATASET_FILE}")
    description = Description.from_bytes((out / DATASET_FILE).read_bytes())
    try:
        index = description.read_index((out / INDEX_FILE).read_bytes())
    except (OSError, ValueError) as error:
        return [f"{INDEX_FILE}: {error}"]
    problems: list[str] = []
    for number, (name, size) in enumerate(description.shards):
        entries = index.entries[index.entries["shard"] == number]
        expected = {
            f"{entry['number']:08d}-{entry['piece']:04d}.{suffix}": (
                int(entry[part]),
                int(entry[part + "_size"]),
                int(entry[part + "_crc"]),
            )
            for entry in entries
            for part, suffix in (("video", "mp4"), ("audio", "flac"))
            if entry[part + "_size"]
        }
        problems += [f"{name}: {problem}" for problem in _shard(out / name, size, expected)]
        progress(number + 1, len(description.shards))
        if len(problems) > _MOST:
            return problems[:_MOST]
    return problems


def _shard(path: Path, size: int, expected: dict[str, tuple[int, int, int]]) -> list[str]:
    """What is wrong with one tar; `expected`: member -> offset, bytes, checksum."""
    if not path.is_file():
        return ["is missing"]
    problems: list[str] = []
    if path.stat().st_size != size:
        problems.append(f"{path.stat().st_size} bytes, written were {size}: cut off, or changed")
    seen: set[str] = set()
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                problems += _member(tar, member, expected, seen)
    except (tarfile.TarError, EOFError, OSError) as error:
        problems.append(f"cannot be read to its end: {error}")
    problems += [f"{name} is missing" for name in expected if name not in seen]
    return problems


def _member(
    tar: tarfile.TarFile, member: tarfile.TarInfo, expected: dict[str, tuple[int, int, int]], seen: set[str]
) -> list[str]:
    name = member.name
    if name in seen:
        return [f"{name!r} is there twice"]
    seen.add(name)
    stem, _, suffix = name.partition(".")
    beside = suffix == "json" and any(f"{stem}.{kind}" in expected for kind in ("mp4", "flac"))
    known = name in expected or beside
    file = tar.extractfile(member) if known and member.isreg() else None
    if file is None:
        return [f"{name!r} does not belong there"]
    data = file.read()
    if suffix == "json":
        try:
            json.loads(data)
        except ValueError as error:
            return [f"{name}: {error}"]
        return []
    if (member.offset_data, member.size, zlib.crc32(data)) != expected[name]:
        return [f"{name}: its place or its checksum is not what the index says"]
    return []
