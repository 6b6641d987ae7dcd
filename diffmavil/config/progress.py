"""Progress of long commands: a bar on a terminal; in a file, a line now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_FIRST, _MOST = 10.0, 60.0  # seconds before the first line, and at most between two lines


_LOG_WIDTH = 120


def open_console() -> Console:
    """The console of a command. A log has no width of its own, and 80 columns would wrap tables."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if not console.is_terminal:
        console.width = _LOG_WIDTH
    return console


class Tracker(Protocol):
    def update(self, done: int, total: int | None = None) -> None:
        """`done` of `total` (None: unchanged) are finished."""
        ...

    def found(self, count: int) -> None:
        """`count` more were finished earlier: they count as done, but not towards the speed."""
        ...


@contextmanager
def tracking(console: Console | None, what: str, total: int | None) -> Iterator[Tracker]:
    """Show how many of `total` `what` are finished. `console` None: show nothing; `total` None: not known yet."""
    if console is None:
        yield _Silent()
    elif console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            yield _Bar(bar, what, total)
    else:
        yield _Lines(console, what, total)


class _Silent:
    def update(self, done: int, total: int | None = None) -> None:
        pass

    def found(self, count: int) -> None:
        pass


class _Bar:
    def __init__(self, bar: Progress, what: str, total: int | None) -> None:
        self._bar, self._task = bar, bar.add_task(what, total=total)

    def update(self, done: int, total: int | None = None) -> None:
        self._bar.update(self._task, completed=done, total=total)

    def found(self, count: int) -> None:
        self._bar.advance(self._task, count)


class _Lines:
    """Print the first line after ten seconds, then less and less often, down to one a minute."""

    def __init__(self, console: Console, what: str, total: int | None) -> None:
        self._console, self._what, self._total = console, what, total
        self._begin, self._due, self._before = time.monotonic(), _FIRST, 0

    def update(self, done: int, total: int | None = None) -> None:
        self._total = total or self._total
        spent = time.monotonic() - self._begin
        if spent < self._due:
            return
        self._due = spent + min(spent, _MOST)
        rate = (done - self._before) / spent
        line = f"{self._what}: {done:,}" + (f" of {self._total:,}" if self._total else "") + f", {rate:.1f} a second"
        if self._total and rate > 0:
            line += f", {format_seconds((self._total - done) / rate)} to go"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def found(self, count: int) -> None:
        self._before += count


def format_seconds(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}" if hours else f"{minutes}:{s:02d}"
