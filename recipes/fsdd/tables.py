"""Free Spoken Digits as published to two tables: `python -m recipes.fsdd.tables FSDD tables/fsdd`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from diffmavil.config import require
from diffmavil.config.cli import run_main
from recipes.common import Clip, Tables, make_tables

_FILE = re.compile(r"(\d)_[a-z]+_(\d+)\.wav")
"""Digit, speaker, number of the recording."""
_TEST = range(5)
"""Numbers of the recordings, of each speaker and digit, that are for testing: as the set's own README has it."""


def tables(src: Path) -> Tables:
    """Free Spoken Digits: SRC holds recordings/DIGIT_SPEAKER_NUMBER.wav; numbers 0 to 4 are for testing."""
    files = sorted((src / "recordings").glob("*.wav"))
    require(bool(files), "SRC", str(src), "a folder with recordings/0_george_0.wav and the others")
    found: Tables = {"train": [], "test": []}
    for file in files:
        named = _FILE.fullmatch(file.name)
        require(named is not None, "a file of SRC", str(file), "named DIGIT_SPEAKER_NUMBER.wav")
        assert named
        found["test" if int(named[2]) in _TEST else "train"].append(Clip(file, named[1]))
    return found


def main(argv: Sequence[str]) -> None:
    make_tables(argv, "fsdd", tables)


if __name__ == "__main__":
    run_main(main)
