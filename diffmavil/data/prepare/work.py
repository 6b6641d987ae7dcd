"""One item of the list: transcode it and leave the result in a staging folder, whole or not at all.

The result is two files: NUMBER.tar, the members of the shard that is to be made (no end-of-archive blocks), and
NUMBER.json, which says what is in it and what was wrong; the second is written last, so it means done.
"""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from diffmavil.data.durable import to_json, write_whole
from diffmavil.data.media import BadClip
from diffmavil.data.prepare.items import Item
from diffmavil.data.prepare.settings import Settings
from diffmavil.data.prepare.transcode import Piece, transcode

BLOCK = 512
"""Bytes of a tar header; members are padded to a multiple."""


@dataclass(frozen=True)
class Worker:
    """What a process needs to do any item; calling it does one."""

    settings: Settings
    state: Path
    """Folder of all staging folders."""
    deadline: float
    """Seconds that a piece may take."""

    def __call__(self, item: Item, begun: Callable[[], None] = lambda: None) -> None:
        """Raises `CannotWrite`; what is wrong with the item is part of the result."""
        pieces: list[Piece] = []
        bad: list[BadClip] = []
        for found in transcode(item, self.settings, self.deadline, begun):
            if isinstance(found, Piece):
                pieces.append(found)
            else:
                bad.append(found)
        self.leave(item, pieces, [error.reason for error in bad])

    def leave(self, item: Item, pieces: list[Piece], reasons: list[str]) -> None:
        """Write the result of an item."""
        tar = io.BytesIO()
        samples = [_add(tar, item, index, piece) for index, piece in enumerate(pieces)]
        outcome = {
            "source": item.source,
            "start": item.start,
            "bytes_in": size_of(item.path),
            "samples": samples,
            "bad": reasons,
        }
        files = self._files(item)
        write_whole(files.tar, tar.getvalue())
        write_whole(files.done, to_json(outcome))

    def done(self, item: Item) -> Path:
        """The file whose presence says that the item is done."""
        return self._files(item).done

    def _files(self, item: Item) -> ItemFiles:
        return item_files(staging_of(self.state, item.number // self.settings.per_shard), item)


class ItemFiles(NamedTuple):
    """Where the result of an item is left; `done`, which says what is in `tar`, comes last."""

    tar: Path
    done: Path


def number_of(key: str) -> int:
    """Of the item that a sample, or a member of a shard, was made of, by its name."""
    return int(key.split("-")[0])


def staging_of(state: Path, shard: int) -> Path:
    """Where the results of a shard's items are left."""
    return state / f"shard-{shard:06d}"


def item_files(staging: Path, item: Item) -> ItemFiles:
    return ItemFiles(staging / f"{item.number:08d}.tar", staging / f"{item.number:08d}.json")


def size_of(path: str) -> int:
    """Bytes of a file; 0: there is none."""
    try:
        return Path(path).stat().st_size if path else 0
    except OSError:
        return 0


def _add(tar: io.BytesIO, item: Item, index: int, piece: Piece) -> dict[str, Any]:
    """Append .mp4, .flac and .json of a piece, or those that it has; what the index must know of it.

    Offsets are from the start of `tar`.
    """
    key = f"{item.number:08d}-{index:04d}"
    crc = {"mp4": zlib.crc32(piece.mp4), "flac": zlib.crc32(piece.flac)}
    facts = {
        "source": item.source,
        "start": piece.start,
        "seconds": piece.seconds,
        "frames": piece.frames,
        "width": piece.width,
        "height": piece.height,
        "samples": piece.samples,
        "heard": piece.heard,
        "damaged": piece.damaged,
        "silent": piece.silent,
        "labels": list(item.labels),
        "crc32": crc,
    }
    video = _append(tar, f"{key}.mp4", piece.mp4)
    audio = _append(tar, f"{key}.flac", piece.flac)
    _append(tar, f"{key}.json", to_json(facts))
    places = {"video": (video, len(piece.mp4)), "audio": (audio, len(piece.flac))}
    return {"key": key, **facts, **places, "log_mel": piece.log_mel}


def _append(tar: io.BytesIO, name: str, data: bytes) -> int:
    """Append a member, unless it is empty; where its data starts.

    Owner and time are left out, so that the bytes are always the same.
    """
    if not data:
        return tar.tell()
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    tar.write(info.tobuf(tarfile.USTAR_FORMAT))
    begin = tar.tell()
    tar.write(data + b"\0" * (-len(data) % BLOCK))
    return begin
