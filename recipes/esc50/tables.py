"""ESC-50 as published to a table for each fold: `python -m recipes.esc50.tables ESC-50-master tables/esc50`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffmavil.config import require
from diffmavil.config.cli import run_main
from recipes.common import Clip, Tables, by_folds, make_tables, read_columns, there


def tables(src: Path) -> Tables:
    """Five folds of ESC-50: SRC holds meta/esc50.csv (filename, fold, target, category, ...) and audio/."""
    meta = src / "meta" / "esc50.csv"
    clips = []
    for row in read_columns(meta, ("filename", "fold", "category")):
        require(row["fold"].isdigit(), f"{meta}: fold of {row['filename']}", row["fold"], "1 to 5")
        clips.append((int(row["fold"]), Clip(there(src / "audio" / row["filename"], meta), row["category"])))
    return by_folds(clips)


def main(argv: Sequence[str]) -> None:
    make_tables(argv, "esc50", tables)


if __name__ == "__main__":
    run_main(main)
