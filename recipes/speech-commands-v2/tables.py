"""Speech Commands V2 as published to three tables: `python -m recipes.speech-commands-v2.tables SRC tables/speech`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffmavil.config import require
from diffmavil.config.cli import run_main
from diffmavil.data.csv_table import read_text
from recipes.common import Clip, Tables, make_tables, there


def tables(src: Path) -> Tables:
    """Speech Commands V2, 35 words: SRC holds a folder for each, validation_list.txt and testing_list.txt.

    Every other clip is for training. Folders that begin with _, as _background_noise_, are no words.
    """
    lists = {name: src / f"{name}_list.txt" for name in ("validation", "testing")}
    listed = {name: _listed(path) for name, path in lists.items()}
    held_out = {name for names in listed.values() for name in names}
    words = sorted(folder for folder in src.iterdir() if folder.is_dir() and not folder.name.startswith(("_", ".")))
    train = [
        Clip(file, folder.name)
        for folder in words
        for file in sorted(folder.glob("*.wav"))
        if f"{folder.name}/{file.name}" not in held_out
    ]
    require(bool(train), "SRC", str(src), "a folder with a folder of .wav files for each word")
    names = {"validation": "validation", "testing": "test"}
    return {"train": train} | {
        names[which]: [Clip(there(src / name, lists[which]), Path(name).parent.name) for name in files]
        for which, files in listed.items()
    }


def _listed(path: Path) -> list[str]:
    """Clips named in a list, one a line, as WORD/FILE.wav. Raises `ValueError` for another line."""
    names = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    for name in names:
        require(name.count("/") == 1, f"{path}: a line", name, "WORD/FILE.wav")
    return names


def main(argv: Sequence[str]) -> None:
    make_tables(argv, "speech-commands-v2", tables)


if __name__ == "__main__":
    run_main(main)
