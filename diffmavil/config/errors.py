"""What ends a command with a message in place of a traceback; `run_main` turns it into an exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(Exception):
    """A mistake of the user's: printed without a traceback, exit code 2."""


class RunError(Exception):
    """The run cannot go on (bad data, divergence): printed without a traceback, exit code 1."""


class TooManyBadClips(RunError):
    """More clips than `data.max_bad_share` allows could not be used, or none could, or the storage failed."""


class CannotWrite(RunError):
    """The output cannot be written: the disk is full, or it is read-only."""


@contextmanager
def usage_errors() -> Iterator[None]:
    """`ValueError`s inside are the user's mistakes: values that do not fit what was found."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error
