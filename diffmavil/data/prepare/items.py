"""What is to be prepared: the rows of a CSV, or the videos of a folder, in an order that never changes.

CSV formats, told apart by their content:

- ours: a header with `path` and, as wanted, `start`, `duration`, `labels` (names with ';' between);
- AudioSet: `# YTID, start_seconds, end_seconds, positive_labels`, labels as '"/m/09x0r,/m/05zppz"';
- VGGSound: `YTID,start,"label",split`, without a header; clips of 10 s.

The last two name videos by their YouTube id. Their files are looked for below the folder as `ID`, `ID_START`,
`ID_START_END` (seconds, six digits as in VGGSound's own names, or milliseconds), with or without a `Y` in front. A file
with a time in its name, or no longer than the row's segment, is that segment already.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from diffmavil.config import require
from diffmavil.data.sources import find_videos, folder_classes, read_csv

VGGSOUND_SECONDS = 10.0


@dataclass(frozen=True)
class Item:
    """A file, or a part of it, with its classes.

    Attributes:
        number: place in the list.
        path: file to open; "" when there is none.
        source: the same relative to the folder, or the id that has no file.
        start, duration: the part, in seconds from the file's start; None: from its start, to its end.
        labels: names of its classes.
        maybe_cut: the file may hold that part alone; then `start` does not count.
        reason: why it cannot be used, when that is known beforehand.
    """

    number: int
    path: str
    source: str
    start: float | None = None
    duration: float | None = None
    labels: tuple[str, ...] = ()
    maybe_cut: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Catalog:
    """All items, and the names of all classes in their order."""

    items: list[Item]
    classes: list[str]


def read_catalog(
    src: Path, table: Path | None, *, split: str | None = None, names: Path | None = None, follow_links: bool = False
) -> Catalog:
    """The work that `SRC [--csv TABLE]` describes.

    Args:
        src: a folder, or a CSV of ours.
        table: a CSV over the videos of `src`.
        split: only rows of this split (VGGSound).
        names: fixes the classes and their order: AudioSet's class_labels_indices.csv (index, mid, display_name), or
            one name in each line. None: those that occur, sorted.
        follow_links: also read what links that lead out of `src` point to.

    Raises:
        ValueError: nothing there, or a file that cannot be understood, with the line.
    """
    require(src.exists(), "SRC", str(src), "a folder of videos or a .csv file")
    if table is None and src.is_file():
        require(src.suffix.lower() == ".csv", "SRC", str(src), "a folder of videos or a .csv file")
        table, src = src, src.parent
    require(split is None or table is not None, "--split", split, "given with a VGGSound --csv only")
    vocabulary = _Vocabulary.read(names)
    items = list(_folder_items(src, follow_links) if table is None else _table_items(src, table, split))
    return vocabulary.apply(items)


def _folder_items(src: Path, follow_links: bool) -> Iterator[Item]:
    videos = find_videos(src, "SRC")
    classes = folder_classes(videos)
    inside = os.path.realpath(src) + os.sep
    for number, (file, label) in enumerate(zip(videos, classes, strict=True)):
        path = str(src / file)
        leaves = not follow_links and not os.path.realpath(path).startswith(inside)
        reason = "a link that leads out of the folder (--follow-links reads it)" if leaves else ""
        yield Item(number, path, file, labels=(label,) if label else (), reason=reason)


def _table_items(src: Path, table: Path, split: str | None) -> Iterator[Item]:
    require(table.is_file(), "--csv", str(table), "a file")
    kind = _kind(table)
    require(split is None or kind == "vggsound", "--split", split, f"absent: {table} has no splits")
    if kind == "ours":
        clipset = read_csv(table, src)
        for number, clip in enumerate(clipset.clips):
            labels = tuple(clipset.classes[i] for i in clip.labels)
            yield Item(number, clip.path, os.path.relpath(clip.path, src), clip.start, clip.duration, labels)
        return
    rows = _audioset_rows(table) if kind == "audioset" else _vggsound_rows(table, split)
    files = _Files(src)
    count = 0
    for number, (name, start, end, labels) in enumerate(rows):
        count += 1
        file, cut = files.find(name, start, end)
        if file is None:
            yield Item(number, "", name, start, end - start, labels, reason="no file of this id")
        elif cut:
            yield Item(number, str(src / file), file, None, None, labels)
        else:
            yield Item(number, str(src / file), file, start, end - start, labels, maybe_cut=True)
    require(count > 0, "--csv", str(table), f"a table with rows{f' of split {split!r}' if split else ''}")


def _kind(table: Path) -> str:
    with table.open(newline="", encoding="utf-8-sig") as file:
        first = file.readline()
        if first.startswith("#"):
            return "audioset"
        row = next(csv.reader([first]), [])
        if "path" in row:
            return "ours"
        if len(row) == 4 and row[1].strip().isdigit():
            return "vggsound"
    raise ValueError(
        f"--csv={str(table)!r}: its first line is {first.strip()[:80]!r}: must be a header with a column 'path', "
        "AudioSet's '# ...', or VGGSound's 'id,start,label,split'"
    )


_Row = tuple[str, float, float, tuple[str, ...]]


def _audioset_rows(table: Path) -> Iterator[_Row]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.startswith("#") or not line.strip():
                continue
            row = next(csv.reader([line], skipinitialspace=True))
            where = f"{table}, line {number}"
            if len(row) != 4:
                raise ValueError(f"{where}: {len(row)} cells: must be id, start, end, labels")
            start, end = _seconds(row[1], where), _seconds(row[2], where)
            if end <= start:
                raise ValueError(f"{where}: ends at {end:g} s: must end after its start, {start:g} s")
            yield row[0], start, end, tuple(label.strip() for label in row[3].split(",") if label.strip())


def _vggsound_rows(table: Path, split: str | None) -> Iterator[_Row]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        for row in reader:
            where = f"{table}, line {reader.line_num}"
            if len(row) != 4:
                raise ValueError(f"{where}: {len(row)} cells: must be id, start, label, split")
            start = _seconds(row[1], where)
            if split is None or row[3].strip() == split:
                yield row[0], start, start + VGGSOUND_SECONDS, (row[2].strip(),)


def _seconds(cell: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{where}: {cell!r}: must be a number of seconds >= 0")
    return value


class _Files:
    """Finds a file by YouTube id and segment."""

    def __init__(self, src: Path) -> None:
        self._by_stem: dict[str, str] = {}
        for file in find_videos(src, "SRC"):
            self._by_stem.setdefault(Path(file).stem, file)

    def find(self, name: str, start: float, end: float) -> tuple[str | None, bool]:
        """(file relative to the folder, whether its name says that it holds the segment alone)."""
        times = [f"{start:06.0f}", f"{start:.0f}", f"{start:.3f}", f"{start * 1000:.0f}"]
        ends = [f"{end:06.0f}", f"{end:.0f}", f"{end:.3f}", f"{end * 1000:.0f}"]
        tails = [*(f"_{a}_{b}" for a, b in zip(times, ends, strict=True)), *(f"_{a}" for a in times)]
        for stem in (name, f"Y{name}"):
            for tail in tails:
                if file := self._by_stem.get(stem + tail):
                    return file, True
        for stem in (name, f"Y{name}"):
            if file := self._by_stem.get(stem):
                return file, False
        return None, False


@dataclass(frozen=True)
class _Vocabulary:
    """Names of the classes in order, and other words for them; without names: those that occur."""

    names: list[str]
    aliases: dict[str, str]

    @classmethod
    def read(cls, path: Path | None) -> _Vocabulary:
        if path is None:
            return cls([], {})
        require(path.is_file(), "--classes", str(path), "a file")
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
        if lines and lines[0].replace(" ", "") == "index,mid,display_name":
            rows = list(csv.reader(lines[1:]))
            return cls([row[2] for row in rows], {row[1]: row[2] for row in rows})
        names = [line.strip() for line in lines if line.strip()]
        require(len(names) > 0 and len(set(names)) == len(names), "--classes", str(path), "one new name in each line")
        return cls(names, {})

    def apply(self, items: list[Item]) -> Catalog:
        """The items with the classes' names. `ValueError` for a label that is none of them."""
        renamed = [replace(item, labels=tuple(self.aliases.get(x, x) for x in item.labels)) for item in items]
        found = {label for item in renamed for label in item.labels}
        unknown = sorted(found - set(self.names)) if self.names else []
        if unknown:
            raise ValueError(f"--classes: knows no class {unknown[0]!r}, which {len(unknown)} labels in all lack")
        return Catalog(renamed, self.names or sorted(found))
