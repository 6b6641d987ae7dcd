"""ESC-10 as published to a table for each fold: `python -m recipes.esc10.tables ESC-10-master tables/esc10`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from diffmavil.config import require
from diffmavil.config.cli import run_main
from recipes.common import Clip, Tables, by_folds, make_tables

_CLASS = re.compile(r"\d{3} - (.+)")
_FILE = re.compile(r"([1-5])-\d+-[A-Z]\.(ogg|wav)")
"""Fold, number at Freesound, take."""


def tables(src: Path) -> Tables:
    """Five folds of ESC-10: SRC holds a folder for each class, '001 - Dog bark/1-100032-A.ogg', fold first."""
    clips = []
    for folder in sorted(src.iterdir()):
        if found := _CLASS.fullmatch(folder.name):
            for file in sorted(folder.iterdir()):
                named = _FILE.fullmatch(file.name)
                require(named is not None, "a file of SRC", str(file), "named FOLD-NUMBER-TAKE.ogg")
                assert named
                clips.append((int(named[1]), Clip(file, found[1].lower())))
    require(bool(clips), "SRC", str(src), "a folder with '001 - Dog bark' and the other classes of ESC-10")
    return by_folds(clips)


def main(argv: Sequence[str]) -> None:
    make_tables(argv, "esc10", tables)


if __name__ == "__main__":
    run_main(main)
