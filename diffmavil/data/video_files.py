"""The videos of a folder, and what else lies in it.

Symbolic links are followed, wherever they lead; a folder that is reached twice is read once, where it really lies if
that is inside. Hidden files and folders (".x") are not looked at.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

SUFFIXES = (
    *(".mp4", ".webm", ".mkv", ".mpg", ".mpeg", ".mpe", ".avi", ".mov", ".m4v", ".f4v", ".flv", ".3gp", ".3g2", ".wmv"),
    *(".asf", ".ogv", ".ogm", ".ts", ".mts", ".m2ts", ".m2t", ".vob", ".mxf", ".qt", ".divx", ".nut"),
)
"""What libav opens as a video with sound."""
_NAMED = 8
"""Kinds of other files that are named."""


@dataclass(frozen=True)
class Found:
    """What lies in a folder and below.

    Attributes:
        videos: relative paths, sorted.
        others: suffix -> how many files have it that were not looked at.
        closed: folders that cannot be read.
    """

    videos: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    closed: list[str] = field(default_factory=list)

    @property
    def aside(self) -> str:
        """What was not looked at, in words; "" for nothing."""
        ranked = sorted(self.others.items(), key=lambda pair: (-pair[1], pair[0]))
        parts = [f"{count:,} {suffix or 'without a suffix'}" for suffix, count in ranked[:_NAMED]]
        if len(ranked) > _NAMED:
            rest = ranked[_NAMED:]
            parts.append(f"{sum(count for _, count in rest):,} of {len(rest)} more kinds")
        said = [f"not looked at: {', '.join(parts)}"] if parts else []
        if self.closed:
            more = f" and {len(self.closed) - 1} more" if len(self.closed) > 1 else ""
            said.append(f"folders that cannot be read: {min(self.closed)}{more}")
        return "; ".join(said)


def find_videos(root: Path, name: str) -> Found:
    """All videos in a folder and below; `ValueError`, naming the setting, for none."""
    found = Found()
    seen: set[str] = set()
    closed = found.closed

    def note(error: OSError) -> None:
        closed.append(os.path.relpath(os.fsdecode(error.filename), root))

    for folder, inner, files in os.walk(root, followlinks=True, onerror=note):
        real = os.path.realpath(folder)
        if real in seen:  # links may lead back up, or to where another one leads
            inner.clear()
            continue
        seen.add(real)
        # The order decides which of two ways to a folder counts: the same everywhere, links last.
        inner[:] = sorted(
            (one for one in inner if not one.startswith(".")),
            key=lambda one, here=folder: (os.path.islink(os.path.join(here, one)), one),
        )
        relative = os.path.relpath(folder, root)
        for file in files:
            suffix = os.path.splitext(file)[1].lower()
            if file.startswith("."):
                continue
            if suffix in SUFFIXES:
                found.videos.append(os.path.normpath(os.path.join(relative, file)))
            else:
                found.others[suffix] += 1
    if not found.videos:
        aside = f"; {found.aside}" if found.aside else ""
        raise ValueError(f"{name}={str(root)!r}: no video found in it or below ({', '.join(SUFFIXES)}){aside}")
    found.videos.sort()
    return found


def folder_classes(videos: list[str]) -> list[str]:
    """The class of each video: the name of its folder, when there are two or more; else ""."""
    parents = [os.path.basename(os.path.dirname(file)) for file in videos]
    return parents if len({parent for parent in parents if parent}) > 1 else [""] * len(videos)
