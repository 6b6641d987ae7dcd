"""Where clips come from: a folder of videos, a CSV, or the synthetic set; and which of them are held out.

Folder: every video below it, sorted by relative path. When videos lie in two or more folders, the name of the folder
is the class. CSV: a header with `path` and, as wanted, `start`, `duration` (seconds) and `labels` (class names with
';' between); paths are relative to the CSV.
"""

from __future__ import annotations

import csv
import hashlib
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from diffmavil.config import DataConfig

EXTENSIONS = (".mp4", ".webm", ".mkv", ".mpg", ".mpeg", ".avi", ".mov", ".m4v")
HELD_OUT = 0.1
"""Share of the files held out when no held-out set is given."""
FEWEST_FOR_SPLIT = 20


@dataclass(frozen=True)
class Clip:
    """`duration` seconds from second `start` of a file (None: from its start, to its end); indices of its classes."""

    path: str
    start: float | None = None
    duration: float | None = None
    labels: tuple[int, ...] = ()


@dataclass(frozen=True)
class ClipSet:
    clips: list[Clip]
    classes: list[str]

    def __len__(self) -> int:
        return len(self.clips)


class Split(NamedTuple):
    """Training and held-out clips with one list of classes, and a sentence saying where the held-out ones come from."""

    train: ClipSet
    held_out: ClipSet
    note: str


def open_source(root: str, *, cache: str = "~/.cache/diffmavil", split: str = "train", clips: int = 768) -> ClipSet:
    """The clips of a folder, a CSV or 'synthetic' (of which `split`, `clips` and `cache` tell which part, made now if
    it is not there).

    Raises:
        ValueError: nothing there, no video in it, or a CSV that cannot be read, with the line.
    """
    if root == "synthetic":
        from diffmavil.data.synthetic import ensure_synthetic

        return _read_csv(Path(ensure_synthetic(Path(cache).expanduser(), split, clips, seed=0)) / "clips.csv")
    path = Path(root).expanduser()
    if path.is_dir():
        return _read_folder(path)
    if path.is_file() and path.suffix.lower() == ".csv":
        return _read_csv(path)
    what = "is not a CSV" if path.exists() else "does not exist"
    raise ValueError(f"data.root={root!r} {what}: must be a folder of videos, a .csv file, or 'synthetic'")


def split_source(data: DataConfig) -> Split:
    """Training clips of `data.root`, and held-out clips.

    Held out are: the clips of `data.eval_root` when it is set; the synthetic set's own held-out split; else a tenth of
    the files of `data.root`, chosen by a hash of their relative paths, so that the choice does not depend on order or
    place and all segments of a file are on one side. With fewer than 20 files the training clips serve for both.
    """
    train = open_source(data.root, cache=data.cache, split="train", clips=data.synthetic_train)
    if data.eval_root is not None:
        held_out = open_source(data.eval_root, cache=data.cache, split="eval", clips=data.synthetic_eval)
        return Split(*_share_classes(train, held_out), f"held-out clips: {len(held_out)} of {data.eval_root}")
    if data.root == "synthetic":
        held_out = open_source("synthetic", cache=data.cache, split="eval", clips=data.synthetic_eval)
        return Split(*_share_classes(train, held_out), f"held-out clips: {len(held_out)} of the synthetic set")
    files = sorted({clip.path for clip in train.clips})
    if len(files) < FEWEST_FOR_SPLIT:
        note = (
            f"no clips are held out: {len(files)} files are fewer than {FEWEST_FOR_SPLIT}, "
            "so evaluation uses the training clips (set data.eval_root)"
        )
        return Split(train, train, note)
    root = Path(data.root).expanduser()
    base = root if root.is_dir() else root.parent
    share = {path: _hash_share(os.path.relpath(path, base)) for path in files}
    chosen = {path for path in files if share[path] < HELD_OUT} or {min(files, key=share.__getitem__)}
    held_out = [clip for clip in train.clips if clip.path in chosen]
    kept = [clip for clip in train.clips if clip.path not in chosen]
    note = f"held-out clips: {len(held_out)} of {len(train)}, by a hash of their paths"
    return Split(ClipSet(kept, train.classes), ClipSet(held_out, train.classes), note)


def _hash_share(name: str) -> float:
    """A number in [0, 1) for each name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def _share_classes(first: ClipSet, second: ClipSet) -> tuple[ClipSet, ClipSet]:
    """Both with the same list of classes."""
    classes = sorted({*first.classes, *second.classes})
    index = {name: i for i, name in enumerate(classes)}

    def renamed(clipset: ClipSet) -> ClipSet:
        clips = [replace(c, labels=tuple(index[clipset.classes[i]] for i in c.labels)) for c in clipset.clips]
        return ClipSet(clips, classes)

    return renamed(first), renamed(second)


def _read_folder(root: Path) -> ClipSet:
    seen: set[str] = set()
    names: list[str] = []
    for folder, inner, files in os.walk(root, followlinks=True):
        # Links may lead back up.
        inner[:] = [d for d in inner if not d.startswith(".") and _unseen(os.path.join(folder, d), seen)]
        relative = os.path.relpath(folder, root)
        names += [
            os.path.normpath(os.path.join(relative, f))
            for f in files
            if f.lower().endswith(EXTENSIONS) and not f.startswith(".")
        ]
    if not names:
        raise ValueError(f"data.root={str(root)!r}: no video found in it or below ({', '.join(EXTENSIONS)})")
    names.sort()
    parents = [os.path.basename(os.path.dirname(name)) for name in names]
    classes = sorted({parent for parent in parents if parent})
    if len(classes) < 2:
        return ClipSet([Clip(str(root / name)) for name in names], [])
    index = {name: i for i, name in enumerate(classes)}
    clips = [
        Clip(str(root / name), labels=(index[parent],) if parent else ())
        for name, parent in zip(names, parents, strict=True)
    ]
    return ClipSet(clips, classes)


def _unseen(folder: str, seen: set[str]) -> bool:
    real = os.path.realpath(folder)
    if real in seen:
        return False
    seen.add(real)
    return True


def _read_csv(path: Path) -> ClipSet:
    rows: list[tuple[Clip, tuple[str, ...]]] = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if "path" not in (reader.fieldnames or []):
            raise ValueError(
                f"{path}: the header must have a column 'path' (and may have start, duration, labels), "
                f"it has {reader.fieldnames or 'nothing'}"
            )
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            name = (row["path"] or "").strip()
            if not name:
                raise ValueError(f"{where}: path is empty")
            start = _number(row.get("start"), f"{where}: start", lowest=0.0, open_below=False)
            duration = _number(row.get("duration"), f"{where}: duration", lowest=0.0, open_below=True)
            labels = tuple(label.strip() for label in (row.get("labels") or "").split(";") if label.strip())
            rows.append((Clip(str(path.parent / name), start, duration), labels))
    if not rows:
        raise ValueError(f"{path}: no clips, only a header")
    if not any(os.path.exists(clip.path) for clip, _ in rows):
        raise ValueError(f"{path}: none of its {len(rows)} paths exists, the first is {rows[0][0].path}")
    classes = sorted({label for _, labels in rows for label in labels})
    index = {name: i for i, name in enumerate(classes)}
    return ClipSet([replace(clip, labels=tuple(index[x] for x in labels)) for clip, labels in rows], classes)


def _number(text: str | None, what: str, *, lowest: float, open_below: bool) -> float | None:
    """The number in a cell; None when it is empty."""
    if text is None or not text.strip():
        return None
    allowed = f"empty or a number {'>' if open_below else '>='} {lowest:g} (seconds)"
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{what}={text!r}: must be {allowed}") from None
    if not math.isfinite(value) or value < lowest or (open_below and value == lowest):
        raise ValueError(f"{what}={text!r}: must be {allowed}")
    return value
