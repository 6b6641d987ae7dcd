"""Whether clips that a model is judged by are among those that it is trained on."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from diffmavil.data.clips import Clip, ClipSet

File = tuple[str, str]


def file_of(clip: Clip) -> str:
    """The file that a clip is a part of."""
    return clip.origin or clip.path


class Files:
    """Tells files apart by where they really lie: of links to folders, what they lead to.

    Of prepared clips it is the name that the file had and the folder of the set: that two prepared sets, or a prepared
    set and plain files, hold the same recording is not seen.
    """

    def __init__(self) -> None:
        self._real: dict[str, str] = {}

    def __call__(self, clip: Clip) -> File:
        if clip.stored is not None:
            return clip.stored.root, file_of(clip)
        folder, name = os.path.split(clip.path)
        if folder not in self._real:  # of millions of files few folders have to be looked at
            self._real[folder] = os.path.realpath(folder)
        return self._real[folder], name


def shared(train: Iterable[Clip], judged: Sequence[Clip]) -> list[Clip]:
    """Those of `judged` that show or play some of what a training clip does."""
    file_by, spans = Files(), defaultdict(list)
    wanted = {file_by(clip) for clip in judged}
    for clip in train:
        key = file_by(clip)
        if key in wanted:
            spans[key].append(_span(clip))
    return [clip for clip in judged if any(_meet(_span(clip), other) for other in spans[file_by(clip)])]


def telling(judged: ClipSet, train: ClipSet) -> ClipSet:
    """`judged`, whose note tells how many of its clips are training clips too, if any."""
    both = len(shared(train.clips, judged.clips))
    note = f"{judged.note}; {both} of them are training clips too: of new clips, the numbers say less"
    return replace(judged, note=note) if both else judged


def _span(clip: Clip) -> tuple[float, float]:
    if clip.stored is not None:  # a whole piece, whose place in its file is not known here
        return float("-inf"), float("inf")
    start = clip.start or 0.0
    return start, float("inf") if clip.duration is None else start + clip.duration


def _meet(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] < other[1] and other[0] < one[1]
