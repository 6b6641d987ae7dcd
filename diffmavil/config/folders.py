"""Paths given by the user: `~` is the home folder, and unwritable ones are reported before work is lost."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def expand(path: str | Path) -> Path:
    """The path with a leading `~` or `~user` expanded; an unknown user is left as written."""
    return Path(os.path.expanduser(path))


def expanded(options: T) -> T:
    """A dataclass of options with `~` expanded in each of its `Path`s and in those of nested dataclasses."""
    changed: dict[str, Any] = {}
    for one in fields(options):  # type: ignore[arg-type]
        value = getattr(options, one.name)
        if isinstance(value, Path):
            changed[one.name] = expand(value)
        elif is_dataclass(value):
            changed[one.name] = expanded(value)
    return replace(options, **changed)  # type: ignore[type-var]


def check_no_run(name: str, folder: Path) -> None:
    """Raises `ValueError` naming the setting if the folder holds a run, whose weights would be replaced."""
    for left in ("checkpoints", "metrics.jsonl"):
        if (folder / left).exists():
            raise ValueError(f"{name}={str(folder)!r}: must be another folder: this one holds a run ({left})")


@contextmanager
def writing(name: str, path: str | Path) -> Iterator[None]:
    """Turn `OSError`s raised inside into `ValueError`s that name the setting."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{name}={str(path)!r}: cannot be written: {error.strerror or error}") from error


def check_writable(name: str, folder: Path) -> bool:
    """True, or `ValueError` naming the setting if the folder or a file in it cannot be created. Leaves no trace."""
    with writing(name, folder):
        # Do not create and remove the folder to find out: another process may just be starting to write there.
        there = next(path for path in (folder, *folder.parents) if path.exists() or path.is_symlink())
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        # Permission bits are not enough: root passes them all, and a mount may be read-only.
        with tempfile.TemporaryFile(dir=there):
            pass
    return True
