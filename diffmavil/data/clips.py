"""A clip, and the sets that clips come in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import NamedTuple


class Stored(NamedTuple):
    """Where a prepared clip lies: bytes of its mp4 and of its FLAC in a shard, and their CRC-32.

    What it was prepared without has a size of 0.
    """

    root: str
    shard: str
    video: int
    video_size: int
    audio: int
    audio_size: int
    video_crc: int
    audio_crc: int


@dataclass(frozen=True)
class Clip:
    """`duration` seconds from second `start` of a file (None: from its start, to its end); indices of its classes.

    A prepared clip has `stored`, its `path` is a name, `origin` names the file it was cut from, and `cut_at` is the
    second of that at which it begins.
    """

    path: str
    start: float | None = None
    duration: float | None = None
    labels: tuple[int, ...] = ()
    stored: Stored | None = None
    origin: str = ""
    cut_at: float = 0.0


def file_of(clip: Clip) -> str:
    """The file that a clip is a part of."""
    return clip.origin or clip.path


def cut_from(clip: Clip) -> tuple[str, float | None]:
    """That file, and the second of it at which the clip begins; None: the source does not say."""
    return file_of(clip), clip.cut_at if clip.origin else clip.start


@dataclass(frozen=True)
class ClipSet:
    """Clips and what is known of them together.

    Attributes:
        classes: names of the classes, in the order of their indices.
        note: a sentence on where the clips come from.
        audio_stats: mels -> (mean, std) of the log-mel, where that is known already.
        parts: (clips, weight) of each of several sets, which lie one after the other in `clips`; empty: one set.
        often: how often each clip comes in training, relative to the others; empty: once an epoch.
    """

    clips: list[Clip]
    classes: list[str]
    note: str = ""
    audio_stats: dict[int, tuple[float, float]] = field(default_factory=dict)
    parts: tuple[tuple[int, float], ...] = ()
    often: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def sets(self) -> tuple[tuple[int, float], ...]:
        """(clips, weight) of each of them, also of one alone."""
        return self.parts or ((len(self.clips), 1.0),)

    def spread(self, count: int) -> ClipSet:
        """At most `count` of the clips, evenly over the set, which may be sorted by class."""
        step = max(1.0, len(self.clips) / count)
        chosen = [self.clips[int(i * step)] for i in range(min(count, len(self.clips)))]
        return replace(self, clips=chosen, parts=(), often=())


def signature(clips: ClipSet) -> str:
    """How many clips there are, and a digest of their names and parts, wherever their folder lies."""
    digest = hashlib.sha256()
    for clip in clips.clips:
        place = clip.stored and clip.stored[1:]  # but for the folder
        told = PurePath(clip.path).name, clip.start, clip.duration, clip.labels, place
        digest.update(repr(told).encode("utf-8", "replace"))
    return f"{len(clips):,} clips (digest {digest.hexdigest()[:12]})"


class Split(NamedTuple):
    """Training and held-out clips, with one list of classes."""

    train: ClipSet
    held_out: ClipSet
