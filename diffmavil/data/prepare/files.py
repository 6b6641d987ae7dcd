"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from diffmavil.durable import sync_folder


class CannotWrite(Exception):
    """The output cannot be written: the disk is full, or it is read-only."""


def write_whole(path: Path, data: bytes) -> None:
    """Write, make durable, rename: after a kill or a power cut at any instant the file is there whole or not at all.

    Raises:
        CannotWrite: with the reason; nothing is left behind.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise CannotWrite(f"{path}: {error.strerror}") from error


def to_json(value: Any) -> bytes:
    """The same bytes for the same value; names that are no valid text are kept by escapes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")
