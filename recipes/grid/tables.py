"""GRID as published to tables of words and sentences: `python -m recipes.grid.tables grid tables/grid`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from diffmavil.config import require
from diffmavil.config.cli import run_main
from diffmavil.data.csv_table import read_text
from recipes.common import Clip, Tables, make_tables

SECONDS = 0.64
"""Of the window around a word: 16 frames, and 64 steps of 10 ms."""
_TICKS = 25_000
"""Of an alignment's clock, in a second."""
_SENTENCE = re.compile(r"[blps][bgrw][abiw][a-z][z1-9][anps]")
"""Command, colour, preposition, letter, digit and adverb, by which the corpus names its files."""
_TEST_PART = 5
"""About one sentence of so many is for testing."""
_VIDEOS = {".mpg", ".mp4"}


def tables(src: Path) -> Tables:
    """GRID, one speaker: SRC holds, at any depth, videos named as the corpus does (bbaf2n.mpg) and .align files.

    Whole sentences labelled by their digit, and windows of 0.64 s around each word labelled by it. Which sentences are
    for testing is decided by a hash of their names.
    """
    videos = _by_name([file for file in src.rglob("*") if file.suffix in _VIDEOS and _SENTENCE.fullmatch(file.stem)])
    alignments = _by_name(list(src.rglob("*.align")))
    require(bool(videos), "SRC", str(src), "a folder with videos as bbaf2n.mpg")
    found: Tables = {"train-words": [], "test-words": [], "train-digit": [], "test-digit": []}
    for name, video in videos.items():
        require(name in alignments, f"SRC: words of {video.name}", "no file", f"a file {name}.align")
        split = "train" if _hash(name) % _TEST_PART else "test"
        found[f"{split}-words"] += [Clip(video, *window) for window in _windows(alignments[name])]
        found[f"{split}-digit"].append(Clip(video, name[4].replace("z", "0")))
    return found


def _by_name(files: list[Path]) -> dict[str, Path]:
    """Sentence -> its file, sorted. Raises `ValueError` for a sentence with two."""
    found: dict[str, Path] = {}
    for file in sorted(files, key=lambda file: (file.stem, file)):
        require(file.stem not in found, f"SRC: files of {file.stem}", [str(found.get(file.stem)), str(file)], "one: "
                "SRC is the folder of one speaker")  # fmt: skip
        found[file.stem] = file
    return found


def _windows(alignment: Path) -> list[tuple[str, float, float]]:
    """(word, start, duration) around the middle of each word; lines are 'FROM TO WORD', with silences as sil and sp."""
    found = []
    for line in filter(None, read_text(alignment).split("\n")):
        cells = line.split()
        right = len(cells) == 3 and cells[0].isdigit() and cells[1].isdigit()
        require(right, f"{alignment}: a line", line, "FROM TO WORD")
        if cells[2] not in ("sil", "sp"):
            middle = (int(cells[0]) + int(cells[1])) / 2 / _TICKS
            found.append((cells[2], max(0.0, middle - SECONDS / 2), SECONDS))
    return found


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest(), "big")


def main(argv: Sequence[str]) -> None:
    make_tables(argv, "grid", tables)


if __name__ == "__main__":
    run_main(main)
