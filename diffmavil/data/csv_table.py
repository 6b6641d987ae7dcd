"""Tables as people write them: commas with spaces around cells, quotes, byte order marks; and the clips in one of ours.

What cannot be read as it was meant is refused with file, line and column; nothing is dropped without a word.
"""

from __future__ import annotations

import codecs
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from diffmavil.data.clips import Clip, ClipSet

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
_CELL = re.compile(r'[^\S\n]*+(?:"([^"]*+(?:""[^"]*+)*+)"[^\S\n]*+|([^",\n][^,\n]*+|))(,|\n|\Z)')
"""A cell, in quotes or not, with what ends it."""
_MEANING = {
    "path": "path",
    "start": "start",
    "end": "end",
    "duration": "duration",
    "label": "labels",
    "labels": "labels",
}
"""Name of a column -> what it holds."""
_SEVERAL_MIDS = re.compile(r"/[mgt]/\w+(\s*,\s*/[mgt]/\w+)+")
"""AudioSet's identifiers as its own tables have them, several in a cell."""
_SLACK = 1e-3
"""Seconds by which `end` and `start` + `duration` may differ: both were rounded."""


class Row(NamedTuple):
    """A row and the line on which it begins, counted from 1; its cells without spaces around them."""

    line: int
    cells: list[str]

    def one_line(self, path: Path, cells: int, wanted: str) -> list[str]:
        """The cells. `ValueError` unless there are `cells` of them, each on one line."""
        where = f"{path}, line {self.line}"
        if len(self.cells) != cells:
            raise ValueError(f"{where}: {len(self.cells)} cells: must be {wanted}")
        for cell in self.cells:
            check_line(cell, where)
        return self.cells


def check_line(cell: str, where: str) -> None:
    """`ValueError` for a cell of several lines: its quote was opened and closed by another row's."""
    if "\n" in cell:
        first = cell.partition("\n")[0]
        raise ValueError(f"{where}: the quote before {first[:40]!r} is not closed on its line")


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark; lines end with "\\n".

    Raises:
        ValueError: another encoding, or no such file, with its name, and line and column of the first wrong byte.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        before = data[: error.start].decode(encoding, "replace")
        what = f"byte 0x{data[error.start]:02x} is not {encoding.removesuffix('-sig').upper()}"
        raise ValueError(f"{path}, {_place(before)}: {what}: save the table as UTF-8 (is it Latin-1?)") from None
    if "\0" in text:
        before = text[: text.index("\0")]
        raise ValueError(f"{path}, {_place(before)}: a zero byte: save the table as UTF-8 (is it UTF-16, or no table?)")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _place(before: str) -> str:
    """Line and column, from 1, of what comes after `before`."""
    lines = before.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return f"line {len(lines)}, column {len(lines[-1]) + 1}"


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a table; those without a word in any cell are left out.

    Raises:
        ValueError: a quote that is not closed, or text after one, or as `read_text`.
    """
    text = read_text(path)
    at, line = 0, 1
    while at < len(text):
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        if '"' in text[at:end]:
            cells, behind = _quoted(text, at, path)
        else:
            cells, behind = text[at:end].split(","), end + 1
        cells = [cell.strip() for cell in cells]
        if any(cells):
            yield Row(line, cells)
        line += text.count("\n", at, behind)
        at = behind


def _quoted(text: str, at: int, path: Path) -> tuple[list[str], int]:
    """The cells of the row at `at`, some of them in quotes, and where the next row begins."""
    cells: list[str] = []
    while True:
        found = _CELL.match(text, at)
        if found is None:
            cell = text[at:].lstrip().partition("\n")[0][:40]
            raise ValueError(
                f"{path}, {_place(text[:at])}: the quote before {cell[1:]!r} is not closed, or text follows the "
                'closing one: a cell is "in quotes" as a whole, and a quote inside it is doubled: ""'
            )
        quoted, plain, stop = found.groups()
        cells.append(plain if quoted is None else quoted.replace('""', '"'))
        at = found.end()
        if stop != ",":
            return cells, at


def read_csv(path: Path, base: Path | None = None) -> ClipSet:
    """Clips of a table of ours; their paths are relative to `base`, by default the table's folder, and made absolute.

    Columns, in any order: `path`, and as wanted `start`, `duration` or `end` (seconds), `labels` or `label` (names of
    classes with ';' between). Rows with the same clip and other labels are one clip with all of them. The note names
    the columns that are not read, and counts such rows.

    Raises:
        ValueError: with file, line and column, for what cannot be read; no `path` column; no clip; no file there.
    """
    rows = read_rows(path)
    columns, note = _header(next(rows, Row(1, [])), path)
    folder = (base or path.parent).absolute()
    found, merged = _merged((row.line, _clip(row, columns, folder, path)) for row in rows)
    if not found:
        raise ValueError(f"{path}: no clips, only a header")
    if not any(os.path.exists(clip.path) for clip, _ in found):
        raise ValueError(f"{path}: none of its {len(found)} paths exists, the first is {found[0][0].path}")
    classes = sorted({label for _, labels in found for label in labels})
    index = {name: i for i, name in enumerate(classes)}
    note = "; ".join(filter(None, [note, merged]))
    return ClipSet([replace(clip, labels=tuple(index[x] for x in labels)) for clip, labels in found], classes, note)


def _merged(rows: Iterable[tuple[int, tuple[Clip, tuple[str, ...]]]]) -> tuple[list[tuple[Clip, tuple[str, ...]]], str]:
    """Clips with all their labels, and a note on rows that only give a further label to a clip of an earlier row. Rows
    that repeat a clip and add nothing stay.
    """
    clips: list[Clip] = []
    carried: dict[Clip, dict[str, None]] = {}
    further: list[int] = []
    for line, (clip, labels) in rows:
        if clip in carried and not carried[clip].keys() >= set(labels):
            further.append(line)
        else:
            clips.append(clip)
        carried.setdefault(clip, {}).update(dict.fromkeys(labels))
    found = [(clip, tuple(carried[clip])) for clip in clips]
    if not further:
        return found, ""
    return found, f"{len(further)} rows give further labels to a clip of an earlier row, the first is line {further[0]}"


def _header(row: Row, path: Path) -> tuple[list[str], str]:
    """What each column holds ("": nothing of ours), and a note on those that are not read."""
    columns = [_MEANING.get(name.lower(), "") for name in row.cells]
    if "path" not in columns:
        mark = next((mark for mark in ";\t|" if mark in "".join(row.cells)), None)
        hint = f"; separate them by commas, not by {mark!r}" if mark else ""
        raise ValueError(
            f"{path}: the header must have a column 'path' (and may have start, duration or end, labels), "
            f"it has {row.cells or 'nothing'}{hint}"
        )
    for meaning in dict.fromkeys(filter(None, columns)):
        names = [name for name, column in zip(row.cells, columns, strict=True) if column == meaning]
        if len(names) > 1:
            raise ValueError(f"{path}, line {row.line}: columns {names} all mean {meaning!r}: leave one of them")
    unread = [name or f"(column {i + 1}, without a name)" for i, name in enumerate(row.cells) if not columns[i]]
    return columns, f"columns not read: {', '.join(unread)}" if unread else ""


def _clip(row: Row, columns: list[str], folder: Path, path: Path) -> tuple[Clip, tuple[str, ...]]:
    """A clip without its labels, and their names."""
    where = f"{path}, line {row.line}"
    if len(row.cells) > len(columns):
        raise ValueError(
            f"{where}: {len(row.cells)} cells, the header has {len(columns)} columns; the first too many is "
            f"{row.cells[len(columns)]!r} (a cell with a comma in it must be in quotes)"
        )
    cells = {name: cell for name, cell in zip(columns, row.cells, strict=False) if name}
    for name, cell in cells.items():
        check_line(cell, f"{where}: {name}")
    if not cells.get("path"):
        raise ValueError(f"{where}: path is empty")
    start = _number(cells.get("start"), f"{where}: start", lowest=0.0, open_below=False)
    duration = _number(cells.get("duration"), f"{where}: duration", lowest=0.0, open_below=True)
    end = _number(cells.get("end"), f"{where}: end", lowest=start or 0.0, open_below=True)
    if end is not None:
        length = end - (start or 0.0)
        if duration is not None and abs(duration - length) > _SLACK:
            raise ValueError(
                f"{where}: end={end:g} and duration={duration:g} disagree: from start={start or 0.0:g} to the end are "
                f"{length:g} s"
            )
        duration = length if duration is None else duration
    labels = dict.fromkeys(label.strip() for label in cells.get("labels", "").split(";") if label.strip())
    for label in labels:
        if _SEVERAL_MIDS.fullmatch(label):
            raise ValueError(f"{where}: labels={label!r}: must have ';' between the names of classes, not ','")
    return Clip(str(folder / cells["path"]), start, duration), tuple(labels)


def _number(text: str | None, what: str, *, lowest: float, open_below: bool) -> float | None:
    """The number in a cell; None when it is empty."""
    if not text:
        return None
    allowed = f"empty or a number {'>' if open_below else '>='} {lowest:g} (seconds)"
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{what}={text!r}: must be {allowed}") from None
    if not math.isfinite(value) or value < lowest or (open_below and value == lowest):
        raise ValueError(f"{what}={text!r}: must be {allowed}")
    return value
