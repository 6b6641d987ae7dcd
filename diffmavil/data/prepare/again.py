"""Back from what is done to what is to be done: items that failed are tried again, all others stay as they are.

A finished shard is taken apart into the results of its items, from which it will be made again, to the same bytes where
nothing new comes of it. Its record goes last: until then a kill loses nothing, since the shard still counts as done.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffmavil.config.errors import CannotWrite
from diffmavil.data.durable import to_json, write_whole
from diffmavil.data.prepare.items import Item
from diffmavil.data.prepare.layout import Layout
from diffmavil.data.prepare.work import BLOCK, item_files, number_of, size_of
from diffmavil.data.shards.index import DATASET_FILE


def forget_failed(layout: Layout, part: int, parts: int) -> int:
    """Take back the results of all items of a part that failed, in whole or in some piece; how many these are.

    What is known to have no file is left as it is. While there is something to do again, the set has no description and
    cannot be read. The caller holds `layout.alone`, or another part would finish the set meanwhile.

    Raises:
        CannotWrite: the folder cannot be changed.
        ValueError: a shard is not there, or not what was written.
    """
    failed = [(shard, items) for shard in range(part, layout.shards, parts) if (items := list(_failed(layout, shard)))]
    for shard, _ in failed:
        _check_there(layout, shard)
    try:
        if failed:
            (layout.out / DATASET_FILE).unlink(missing_ok=True)
            layout.renew_sizes({item.source for _, items in failed for item in items})  # they may be mended
        for shard, items in failed:
            if layout.record(shard).exists():
                _take_apart(layout, shard, {item.number for item in items})
            for item in items:
                item_files(layout.staging(shard), item).done.unlink(missing_ok=True)
    except OSError as error:
        raise CannotWrite(f"{layout.out}: {error.strerror}") from error
    return sum(len(items) for _, items in failed)


def _failed(layout: Layout, shard: int) -> Iterator[Item]:
    """Items of a shard that failed and could do better now."""
    items = [item for item in layout.items(shard) if not item.reason]
    return (outcome.item for outcome in layout.outcomes(shard, items) if outcome.bad)


def _check_there(layout: Layout, shard: int) -> None:
    """Raises `ValueError` for a finished shard that is not there as it was written, before anything is taken back."""
    if layout.record(shard).exists():
        record = json.loads(layout.record(shard).read_bytes())
        if size_of(str(layout.out / record["name"])) != record["bytes"]:
            raise ValueError(f"{layout.out / record['name']}: is missing, or not the shard that was written")


def _take_apart(layout: Layout, shard: int, without: set[int]) -> None:
    """A shard to the results of its items, but for some; its record is gone then."""
    record = json.loads(layout.record(shard).read_bytes())
    staging = layout.staging(shard)
    shutil.rmtree(staging, ignore_errors=True)  # what a kill has left of its making
    samples: dict[int, list[dict[str, Any]]] = {}
    for sample in record["samples"]:
        samples.setdefault(number_of(sample["key"]), []).append(sample)
    path = layout.out / record["name"]
    spans = _spans(path) if samples else {}
    for item, outcome in zip(layout.items(shard), record["outcomes"], strict=True):
        if item.number in without:
            continue
        begin, end = spans.get(item.number, (0, 0))
        own = [_moved(sample, -begin) for sample in samples.get(item.number, [])]
        files = item_files(staging, item)
        write_whole(files.tar, _read(path, begin, end) if own else b"")
        write_whole(files.done, to_json({**outcome, "samples": own}))
    layout.record(shard).unlink()


def _moved(sample: dict[str, Any], by: int) -> dict[str, Any]:
    return {**sample, **{part: (sample[part][0] + by, sample[part][1]) for part in ("video", "audio")}}


def _spans(path: Path) -> dict[int, tuple[int, int]]:
    """Number of an item -> where its members begin and end in a shard."""
    spans: dict[int, tuple[int, int]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                number = number_of(member.name)
                begin = spans.get(number, (member.offset, 0))[0]
                spans[number] = begin, member.offset_data + -(-member.size // BLOCK) * BLOCK
    except (tarfile.TarError, ValueError) as error:
        raise ValueError(f"{path}: is missing, or not the shard that was written: {error}") from error
    return spans


def _read(path: Path, begin: int, end: int) -> bytes:
    with path.open("rb") as file:
        file.seek(begin)
        return file.read(end - begin)
