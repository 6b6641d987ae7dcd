"""Finds the file of a segment of a YouTube video by its name, as the tools that fetch such sets write it.

`ID`, or `ID` with the segment's start, or start and end, behind: `ID_30`, `ID_000030`, `ID_30.0_40.0`, `ID-30-40`,
`ID_30000_40000`; in seconds or milliseconds, after '_' or '-', with or without a `Y` in front. A name with a time says
that the file holds the segment alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

_TIME = r"[_-](\d+(?:\.\d+)?)"
_ONE, _TWO = re.compile(rf"(.+){_TIME}"), re.compile(rf"(.+){_TIME}{_TIME}")
_MILLISECOND = 0.001


class SegmentFiles:
    """Paths of files, sought by id and segment."""

    def __init__(self, files: Sequence[str]) -> None:
        self._whole: dict[str, str] = {}
        """Name without suffix -> file."""
        self._parts: dict[str, list[tuple[tuple[str, ...], str]]] = {}
        """Name without times -> (times as written, file); an id may end like a time, so a name can be read two ways."""
        for file in files:
            stem = Path(file).stem
            if stem in self._whole:
                continue
            self._whole[stem] = file
            for pattern in (_TWO, _ONE):
                if match := pattern.fullmatch(stem):
                    self._parts.setdefault(match[1], []).append((match.groups()[1:], file))

    def find(self, name: str, start: float, end: float) -> tuple[str | None, bool]:
        """(file, whether its name says that it holds the segment alone) of the segment, in seconds, of a video."""
        for head in (name, f"Y{name}"):
            # Names with both times say more than those with one, and the nearest is meant.
            found = [(-len(times), apart, file) for times, file in self._parts.get(head, [])
                     if (apart := _apart(times, start, end)) is not None]  # fmt: skip
            if found:
                return min(found)[2], True
        for head in (name, f"Y{name}"):
            if file := self._whole.get(head):
                return file, False
        return None, False

    def knows(self, name: str) -> bool:
        """Whether there are files of this id, of whatever times."""
        return any(head in self._whole or head in self._parts for head in (name, f"Y{name}"))


def _apart(times: tuple[str, ...], start: float, end: float) -> float | None:
    """Seconds by which times as written and a segment differ; None: they are not of that segment."""
    wanted = (start, end)[: len(times)]
    nearest: float | None = None
    for unit in (1.0, _MILLISECOND):
        # A time may have been rounded, up or down, to the last digit that is written.
        allowed = [unit / 10 ** len(text.partition(".")[2]) for text in times]
        apart = [abs(float(text) * unit - seconds) for text, seconds in zip(times, wanted, strict=True)]
        if all(a < most for a, most in zip(apart, allowed, strict=True)):
            nearest = sum(apart) if nearest is None else min(nearest, sum(apart))
    return nearest
