"""The videos and the sound files of a folder, and what else lies in it.

Symbolic links are followed, wherever they lead; a folder that is reached twice is read once, where it really lies if
that is inside. Hidden files and folders (".x") are not looked at.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from diffmavil.config import Modalities

SUFFIXES = (
    *(".mp4", ".webm", ".mkv", ".mpg", ".mpeg", ".mpe", ".avi", ".mov", ".m4v", ".f4v", ".flv", ".3gp", ".3g2", ".wmv"),
    *(".asf", ".ogv", ".ogm", ".ts", ".mts", ".m2ts", ".m2t", ".vob", ".mxf", ".qt", ".divx", ".nut"),
)
"""What libav opens as a video with sound."""
SOUND_SUFFIXES = (
    *(".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".aif", ".aiff", ".aifc", ".wma", ".amr"),
    *(".3ga", ".ac3", ".ape", ".au", ".caf", ".m4b", ".mka", ".mp2", ".snd", ".spx", ".tta", ".w64", ".weba", ".wv"),
)
"""What libav opens as sound."""
_NAMED = 8
"""Kinds of other files that are named."""


@dataclass(frozen=True)
class Found:
    """What lies in a folder and below.

    Attributes:
        files: relative paths of what was looked for, sorted.
        sounds: how many of them are sound files.
        others: suffix -> how many files have it that were not looked at.
        closed: folders that cannot be read.
    """

    files: list[str] = field(default_factory=list)
    sounds: int = 0
    others: Counter[str] = field(default_factory=Counter)
    closed: list[str] = field(default_factory=list)

    @property
    def note(self) -> str:
        """What was taken, where that is of both kinds, and what was not looked at, in words."""
        both = f"{len(self.files) - self.sounds:,} videos, {self.sounds:,} sound files"
        return "; ".join(filter(None, [both if 0 < self.sounds < len(self.files) else "", self.aside]))

    @property
    def aside(self) -> str:
        """What was not looked at, in words; "" for nothing."""
        said = [f"not looked at: {_counted(self.others)}"] if self.others else []
        if self.closed:
            more = f" and {len(self.closed) - 1} more" if len(self.closed) > 1 else ""
            said.append(f"folders that cannot be read: {min(self.closed)}{more}")
        return "; ".join(said)


def find_files(root: Path, name: str, modalities: Modalities, flag: str) -> Found:
    """All videos in a folder and below, and for sound alone all sound files too.

    Args:
        name: the setting of the folder, for messages.
        flag: the setting of `modalities`, likewise.

    Raises:
        ValueError: none is there; it says what is, and what would be taken.
    """
    wanted = (*SOUND_SUFFIXES, *SUFFIXES) if modalities == "audio" else SUFFIXES
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
            if suffix in wanted:
                found.files.append(os.path.normpath(os.path.join(relative, file)))
            else:
                found.others[suffix] += 1
    if not found.files:
        what = "sound file or video" if modalities == "audio" else "video"
        said = [f"{name}={str(root)!r}: no {what} found in it or below ({', '.join(wanted)})", found.aside]
        if sounds := {suffix: count for suffix, count in found.others.items() if suffix in SOUND_SUFFIXES}:
            said.append(f"{_counted(sounds)}: sound alone needs {flag} audio")
        raise ValueError("; ".join(filter(None, said)))
    found.files.sort()
    return replace(found, sounds=sum(os.path.splitext(file)[1].lower() in SOUND_SUFFIXES for file in found.files))


def _counted(kinds: Mapping[str, int]) -> str:
    """How many files there are of the most frequent suffixes."""
    ranked = sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0]))
    parts = [f"{count:,} {suffix or 'without a suffix'}" for suffix, count in ranked[:_NAMED]]
    if len(ranked) > _NAMED:
        rest = ranked[_NAMED:]
        parts.append(f"{sum(count for _, count in rest):,} of {len(rest)} more kinds")
    return ", ".join(parts)


def folder_classes(files: list[str]) -> list[str]:
    """The class of each file: the name of its folder, when there are two or more; else ""."""
    parents = [os.path.basename(os.path.dirname(file)) for file in files]
    return parents if len({parent for parent in parents if parent}) > 1 else [""] * len(files)
