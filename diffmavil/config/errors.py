"""Errors that end a command with a message instead of a traceback; `run_main` turns them into exit codes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(Exception):
    """A mistake by the user: printed without a traceback, exit code 2."""


class RunError(Exception):
    """The run cannot continue (bad data, divergence): printed without a traceback, exit code 1."""


class TooManyBadClips(RunError):
    """More clips than `data.max_bad_share` allows were unusable, or all of them were, or the storage failed."""


class CannotWrite(RunError):
    """The output cannot be written: the disk is full, or it is read-only."""


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn `ValueError`s raised inside into `UsageError`s: values that do not fit what was found."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error
