"""What the recipes share: from a set's own layout to our tables of clips, `path,start,duration,labels`."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import tyro

from diffmavil.config import require
from diffmavil.config.cli import parse_flags
from diffmavil.config.errors import usage_errors
from diffmavil.config.folders import check_writable
from diffmavil.data.csv_table import Row, read_rows

FOLDS = (1, 2, 3, 4, 5)
"""Of ESC-50 and ESC-10."""


class Clip(NamedTuple):
    file: Path
    label: str
    start: float | None = None
    """Seconds; None: from the beginning to the end."""
    duration: float | None = None


Tables = dict[str, list[Clip]]
"""Name of a table, as in NAME.csv -> its clips."""


@dataclass(frozen=True)
class Options:
    """What every recipe's tables.py takes."""

    src: tyro.conf.Positional[Path]
    """Folder of the set as it is published."""
    out: tyro.conf.Positional[Path]
    """Folder of the tables."""


def make_tables(argv: Sequence[str], recipe: str, tables: Callable[[Path], Tables]) -> None:
    """`SRC OUT`: write the tables of the set in SRC, and say how many clips and classes each has.

    Raises:
        UsageError: SRC is not laid out as the recipe's set, or OUT cannot be written.
    """
    with usage_errors():
        options = parse_flags(Options, argv, prog=f"python -m recipes.{recipe}.tables", description=tables.__doc__)
        require(options.src.is_dir(), "SRC", str(options.src), "a folder")
        found = tables(options.src)
        check_writable("OUT", options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, clips in found.items():
        path = options.out / f"{name}.csv"
        write_table(path, clips)
        print(f"{path}: {len(clips)} clips, {len({clip.label for clip in clips})} classes")


def write_table(path: Path, clips: Sequence[Clip]) -> None:
    """A table with paths relative to its folder, so that set and tables can be moved together."""
    windows = any(clip.start is not None for clip in clips)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "start", "duration", "labels"] if windows else ["path", "labels"])
        for clip in clips:
            place = [f"{clip.start:.3f}", f"{clip.duration:.3f}"] if windows else []
            rows.writerow([os.path.relpath(clip.file, path.parent), *place, clip.label])


def read_columns(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """The rows of a CSV with a header, as column -> cell.

    Raises:
        ValueError: no such file, a column that is missing, a row of another length, or as `read_rows`.
    """
    rows = read_rows(path)
    header = next(rows, Row(1, [])).cells
    missing = [name for name in columns if name not in header]
    require(not missing, str(path), ",".join(header), f"a CSV with the columns {', '.join(columns)}")
    for row in rows:
        require(len(row.cells) == len(header), f"{path}, line {row.line}", row.cells, f"{len(header)} cells")
        yield dict(zip(header, row.cells, strict=True))


def there(file: Path, named_in: Path) -> Path:
    """The file; `ValueError` if the set lacks it."""
    require(file.is_file(), f"{named_in}: a file that it names", str(file), "there: the set is not whole")
    return file


def by_folds(clips: Sequence[tuple[int, Clip]]) -> Tables:
    """For each fold a table of its clips, fold1-test, and one of all others, fold1-train."""
    folds = sorted({fold for fold, _ in clips})
    require(folds == list(FOLDS), "folds", folds, f"those of {list(FOLDS)}, each with clips")
    tables: Tables = {}
    for held_out in FOLDS:
        tables[f"fold{held_out}-train"] = [clip for fold, clip in clips if fold != held_out]
        tables[f"fold{held_out}-test"] = [clip for fold, clip in clips if fold == held_out]
    return tables
