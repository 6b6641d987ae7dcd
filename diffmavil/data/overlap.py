"""Whether clips that a model is judged by are among those that it is trained on."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from diffmavil.data.clips import Clip, ClipSet, file_of
from diffmavil.data.media_files import SOUND_SUFFIXES, SUFFIXES
from diffmavil.data.shards.store import is_remote

File = tuple[str, str]
Seconds = tuple[float, float]
_SLACK = 1e-3
"""Seconds by which clips may meet and still be neighbours: times in tables are rounded."""


class Files:
    """Tells files apart by where they really are: of links, to folders and to files, what they lead to.

    Of prepared clips it is the name that the file had, and the folder of the set: that two prepared sets, or a prepared
    set and plain files, hold the same recording is not seen.
    """

    def __init__(self) -> None:
        self._real: dict[str, str] = {}
        self._links: dict[str, frozenset[str]] = {}

    def __call__(self, clip: Clip) -> File:
        stored = clip.stored
        folder, name = (stored.root, file_of(clip)) if stored is not None else os.path.split(self.target(clip))
        if folder not in self._real:
            self._real[folder] = folder if is_remote(folder) else os.path.realpath(folder)
        return self._real[folder], name

    def target(self, clip: Clip) -> str:
        """The file of a clip; of a link to a file, what that leads to."""
        if clip.stored is not None:
            return file_of(clip)
        folder, name = os.path.split(clip.path)
        if folder not in self._links:  # a folder at once: millions of files are not asked one by one
            self._links[folder] = _links_in(folder)
        return os.path.realpath(clip.path) if name in self._links[folder] else clip.path


def _links_in(folder: str) -> frozenset[str]:
    """Names of the symbolic links in a folder; none where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_symlink())
    except OSError:
        return frozenset()


def shared(train: Iterable[Clip], judged: Sequence[Clip]) -> list[Clip]:
    """Those of `judged` that show or play some of what a training clip does."""
    file_by, spans = Files(), defaultdict(list)
    names = {os.path.basename(path) for clip in judged for path in (file_of(clip), file_by.target(clip))}
    for clip in train:
        # By their names few of millions of files remain; a link whose own name differs is looked at too.
        if os.path.basename(file_of(clip)) in names or os.path.basename(file_by.target(clip)) in names:
            spans[file_by(clip)].append(_span(clip))
    trained = {file: _merged(found) for file, found in spans.items()}
    return [clip for clip in judged if _meets(_span(clip), trained.get(file_by(clip), []))]


def recordings(files: Sequence[str]) -> dict[str, str]:
    """File -> the first of those that differ from it in their suffix alone, as clip.mp4 and its sound, clip.wav."""
    first: dict[str, str] = {}
    for file in sorted(files):
        first.setdefault(_without_suffix(file), file)
    return {file: first[_without_suffix(file)] for file in files}


def _without_suffix(file: str) -> str:
    """Without that of a video or sound file; what else follows a dot is part of a name, as in take.1 and take.2."""
    name, suffix = os.path.splitext(file)
    return name if suffix.lower() in (*SUFFIXES, *SOUND_SUFFIXES) else file


def telling(judged: ClipSet, train: ClipSet) -> ClipSet:
    """`judged`, whose note tells how many of its clips are training clips too, if any."""
    both = len(shared(train.clips, judged.clips))
    note = f"{judged.note}; {both} of them are training clips too: of new clips, the numbers say less"
    return replace(judged, note=note) if both else judged


def _span(clip: Clip) -> Seconds:
    if clip.stored is not None:  # how long a piece is, is not known here
        return float("-inf"), float("inf")
    start = clip.start or 0.0
    return start, float("inf") if clip.duration is None else start + clip.duration


def _merged(spans: Iterable[Seconds]) -> list[Seconds]:
    """The same seconds as spans in order, none of which meets another."""
    found: list[Seconds] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((start, end))
    return found


def _meets(span: Seconds, merged: Sequence[Seconds]) -> bool:
    """Whether it has more than `_SLACK` in common with one of them: with the last that begins before it ends."""
    last = bisect_left(merged, (span[1] - _SLACK,)) - 1
    return last >= 0 and span[0] + _SLACK < merged[last][1]
