"""What is to be prepared: the rows of a CSV, or the videos of a folder, in an order that never changes.

CSV formats, told apart by their content:

- ours: a header with `path` and, as wanted, `start`, `duration` or `end`, `labels` (`diffmavil.data.csv_table`);
- AudioSet: `YTID, start_seconds, end_seconds, positive_labels`, labels as '"/m/09x0r,/m/05zppz"';
- VGGSound: `YTID,start,"label",split`; clips of 10 s.

The last two may begin with lines after '#' or a header, and name videos by their YouTube id (`segment_files`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from diffmavil.config import Modalities, require
from diffmavil.data.csv_table import Row, read_csv, read_rows, read_text
from diffmavil.data.media_files import Found, find_files, folder_classes
from diffmavil.data.prepare.segment_files import SegmentFiles

VGGSOUND_SECONDS = 10.0
_IDS = ("ytid", "youtube_id", "youtube id", "video_id", "video id", "id")
"""What a header calls the column of ids."""


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
        segment: id, start and end of a row that names no file; the file may be fetched later.
    """

    number: int
    path: str
    source: str
    start: float | None = None
    duration: float | None = None
    labels: tuple[str, ...] = ()
    maybe_cut: bool = False
    reason: str = ""
    segment: tuple[str, float, float] | None = None


@dataclass(frozen=True)
class Catalog:
    """All items, the names of all classes in their order, and a note on what was not looked at ("": nothing)."""

    items: list[Item]
    classes: list[str]
    note: str = ""


def read_catalog(
    src: Path,
    table: Path | None,
    *,
    split: str | None = None,
    names: Path | None = None,
    follow_links: bool = True,
    modalities: Modalities = "av",
) -> Catalog:
    """The work that `SRC [--csv TABLE]` describes.

    Args:
        src: a folder, or a CSV of ours.
        table: a CSV over the videos of `src`.
        split: only rows of this split (VGGSound).
        names: fixes the classes and their order: AudioSet's class_labels_indices.csv (index, mid, display_name), or
            one name in each line. None: those that occur, sorted.
        follow_links: read what links that lead out of `src` point to, as training does; else they get a reason. Paths
            that a CSV of ours names are taken as they are.
        modalities: what of the clips is wanted; for sound alone sound files are found too.

    Raises:
        ValueError: nothing there, or a file that cannot be understood, with the line.
    """
    require(src.exists(), "SRC", str(src), "a folder of videos or a .csv file")
    if table is None and src.is_file():
        require(src.suffix.lower() == ".csv", "SRC", str(src), "a folder of videos or a .csv file")
        table, src = src, src.parent
    require(split is None or table is not None, "--split", split, "given with a VGGSound --csv only")
    vocabulary = _Vocabulary.read(names)
    folder = _Folder(src, follow_links, modalities)
    items, note = _folder_items(folder) if table is None else _table_items(folder, table, split)
    return vocabulary.apply(items, note)


@dataclass(frozen=True)
class _Folder:
    src: Path
    follow_links: bool
    modalities: Modalities

    def found(self) -> Found:
        """The files below it; `ValueError` for none."""
        return find_files(self.src, "SRC", self.modalities, "--modalities")

    def path(self, file: str) -> str:
        # Absolute, since libav takes what comes before the colon of a relative 10:30.mp4 for a protocol.
        return str(self.src.absolute() / file)

    def reason(self, file: str) -> str:
        """Why a file below the folder is left out; "": it is not."""
        if self.follow_links or os.path.realpath(self.path(file)).startswith(os.path.realpath(self.src) + os.sep):
            return ""
        return "a link that leads out of the folder (--follow-links reads it)"


def _folder_items(folder: _Folder) -> tuple[list[Item], str]:
    found = folder.found()
    classes = folder_classes(found.files)
    items = [
        Item(number, folder.path(file), file, labels=(label,) if label else (), reason=folder.reason(file))
        for number, (file, label) in enumerate(zip(found.files, classes, strict=True))
    ]
    return items, found.note


def _table_items(folder: _Folder, table: Path, split: str | None) -> tuple[list[Item], str]:
    require(table.is_file(), "--csv", str(table), "a file")
    rows = read_rows(table)
    first = next(rows, Row(1, [""]))
    ours = "path" in [cell.lower() for cell in first.cells]
    kind, segments = ("ours", []) if ours else _kind([first, *rows], table)
    require(split is None or kind == "vggsound", "--split", split, f"absent: {table} has no splits")
    if ours:
        clipset = read_csv(table, folder.src)
        items = [
            Item(number, clip.path, os.path.relpath(clip.path, folder.src), clip.start, clip.duration,
                 tuple(clipset.classes[i] for i in clip.labels))
            for number, clip in enumerate(clipset.clips)
        ]  # fmt: skip
        return items, clipset.note
    parts = _audioset_rows(segments, table) if kind == "audioset" else _vggsound_rows(segments, table, split)
    found = folder.found()
    files = SegmentFiles(found.files)
    items = [_segment_item(folder, files, number, *part) for number, part in enumerate(parts)]
    require(len(items) > 0, "--csv", str(table), f"a table with rows{f' of split {split!r}' if split else ''}")
    return items, found.note


def _segment_item(
    folder: _Folder, files: SegmentFiles, number: int, name: str, start: float, end: float, labels: tuple[str, ...]
) -> Item:
    file, cut = files.find(name, start, end)
    segment = (name, start, end)
    if file is None:
        reason = "files of this id, but of other times" if files.knows(name) else "no file of this id"
        return Item(number, "", name, start, end - start, labels, reason=reason, segment=segment)
    part = (None, None) if cut else (start, end - start)
    path, reason = folder.path(file), folder.reason(file)
    return Item(number, path, file, *part, labels, maybe_cut=not cut, reason=reason, segment=segment)


def _kind(rows: list[Row], table: Path) -> tuple[str, list[Row]]:
    """audioset or vggsound; and the rows without comments and header."""
    segments = [row for row in rows if not row.cells[0].startswith("#")]
    headed = len(segments) > 0 and segments[0].cells[0].lower() in _IDS and not _is_number(segments[0], 1)
    segments = segments[headed:]
    if segments and len(segments[0].cells) == 4 and _is_number(segments[0], 1):
        return ("audioset" if _is_number(segments[0], 2) else "vggsound"), segments
    if headed or rows[0].cells[0].startswith("#"):
        return "audioset", segments  # what is wrong with its rows, or that there are none, is said there
    first = ",".join(rows[0].cells)[:80]
    raise ValueError(
        f"--csv={str(table)!r}: its first line is {first!r}: must be a header with a column 'path', "
        "AudioSet's 'id, start, end, labels', or VGGSound's 'id,start,label,split'"
    )


def _is_number(row: Row, column: int) -> bool:
    try:
        return math.isfinite(float(row.cells[column]))
    except (ValueError, IndexError):
        return False


_Part = tuple[str, float, float, tuple[str, ...]]
"""Id, start and end in seconds, labels."""


def _audioset_rows(rows: list[Row], table: Path) -> Iterator[_Part]:
    for row in rows:
        name, *times, labels = row.one_line(table, 4, 'id, start, end, "labels"')
        where = f"{table}, line {row.line}"
        start, end = (_seconds(cell, where) for cell in times)
        if end <= start:
            raise ValueError(f"{where}: ends at {end:g} s: must end after its start, {start:g} s")
        yield name, start, end, tuple(label.strip() for label in labels.split(",") if label.strip())


def _vggsound_rows(rows: list[Row], table: Path, split: str | None) -> Iterator[_Part]:
    for row in rows:
        name, time, label, part = row.one_line(table, 4, 'id, start, "label", split')
        start = _seconds(time, f"{table}, line {row.line}")
        if split is None or part == split:
            yield name, start, start + VGGSOUND_SECONDS, (label,)


def _seconds(cell: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{where}: {cell!r}: must be a number of seconds >= 0")
    return value


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
        lines = [line.strip() for line in read_text(path).split("\n") if line.strip()]
        aliases: dict[str, str] = {}
        if lines and lines[0].replace(" ", "").replace('"', "").lower() == "index,mid,display_name":
            rows = [_class_row(row, path) for row in list(read_rows(path))[1:]]
            names = [name for _, _, name in sorted(rows)]
            aliases = {mid: name for _, mid, name in rows}
            once = len(aliases) == len({index for index, _, _ in rows}) == len(rows)
            require(once, "--classes", str(path), "a list that names each index and each mid once")
        else:
            names = lines
        require(len(names) > 0 and len(set(names)) == len(names), "--classes", str(path), "one new name in each line")
        return cls(names, aliases)

    def apply(self, items: list[Item], note: str) -> Catalog:
        """The items with the classes' names. `ValueError` for a label that is none of them."""
        renamed = [replace(item, labels=tuple(self.aliases.get(x, x) for x in item.labels)) for item in items]
        found = {label for item in renamed for label in item.labels}
        unknown = sorted(found - set(self.names)) if self.names else []
        if unknown:
            raise ValueError(f"--classes: knows no class {unknown[0]!r}, which {len(unknown)} labels in all lack")
        return Catalog(renamed, self.names or sorted(found), note)


def _class_row(row: Row, path: Path) -> tuple[int, str, str]:
    """Index, mid and name of a class of AudioSet's list."""
    index, mid, name = row.one_line(path, 3, 'index, mid, "display_name"')
    require(index.isdigit(), f"{path}, line {row.line}: index", index, "a whole number")
    require(bool(mid and name), f"{path}, line {row.line}", row.cells, "a mid and a name")
    return int(index), mid, name
