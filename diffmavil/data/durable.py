"""Files that are there whole or not at all, after a kill or a power cut too."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from diffmavil.config.errors import CannotWrite


def digest_of(file: Path) -> str:
    """SHA-256 of its bytes."""
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def draft_of(path: Path) -> Path:
    """A name beside `path` for what is to be renamed to it, which no other process takes, on any machine.

    The number of the process would not do: in a container it is 1.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def write_whole(path: Path, data: bytes) -> None:
    """Write, make durable, rename: after a kill or a power cut at any instant the file is there whole or not at all.

    Raises:
        CannotWrite: with the reason; nothing is left behind.
    """
    with whole_file(path) as draft:
        draft.write_bytes(data)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """The same for what is written in the block to the path it gets, by whatever library; errors as `write_whole`."""
    draft = draft_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            mode = os.fstat(file.fileno()).st_mode
        yield draft
        draft.chmod(mode)  # safetensors makes files that nobody else can read
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        raise CannotWrite(f"{path}: {error.strerror or error}") from error


def to_json(value: Any) -> bytes:
    """The same bytes for the same value; names that are no valid text are kept by escapes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")
