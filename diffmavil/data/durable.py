"""Files that are there whole or not at all, after a kill or a power cut too."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from diffmavil.config.errors import CannotWrite


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
