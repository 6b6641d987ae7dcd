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
from typing import Literal, NamedTuple

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
    """Clips, the names of their classes in order, and a sentence on where they come from."""

    clips: list[Clip]
    classes: list[str]
    note: str = ""

    def __len__(self) -> int:
        return len(self.clips)


class Split(NamedTuple):
    """Training and held-out clips, with one list of classes."""

    train: ClipSet
    held_out: ClipSet


def open_source(data: DataConfig, split: Literal["train", "eval"] = "train") -> ClipSet:
    """The training or the held-out clips of a run; see `split_source`."""
    if data.root == "synthetic" and data.eval_root is None:
        return _read_synthetic(data, split)
    train, held_out = split_source(data)
    return train if split == "train" else held_out


def split_source(data: DataConfig) -> Split:
    """Training clips of `data.root`, and held-out clips.

    Held out are: the clips of `data.eval_root` when it is set; the synthetic set's own held-out split; else a tenth of
    the files of `data.root`, chosen by a hash of their relative paths, so that the choice does not depend on order or
    place and all segments of a file are on one side. With fewer than 20 files the training clips serve for both, and
    the note says so.

    Raises:
        ValueError: nothing there, no video in it, or a CSV that cannot be read, with the line.
    """
    train = _read(data, data.root, "data.root", "train")
    if data.eval_root is not None:
        return _share_classes(train, _read(data, data.eval_root, "data.eval_root", "eval"))
    if data.root == "synthetic":
        return _share_classes(train, _read_synthetic(data, "eval"))
    files = sorted({clip.path for clip in train.clips})
    if len(files) < FEWEST_FOR_SPLIT:
        note = (
            f"the {len(train)} training clips: none are held out of fewer than {FEWEST_FOR_SPLIT} files; "
            "set data.eval_root"
        )
        return Split(train, replace(train, note=note))
    root = Path(data.root).expanduser()
    base = root if root.is_dir() else root.parent
    share = {path: _hash_share(os.path.relpath(path, base)) for path in files}
    chosen = {path for path in files if share[path] < HELD_OUT} or {min(files, key=share.__getitem__)}
    held_out = [clip for clip in train.clips if clip.path in chosen]
    kept = [clip for clip in train.clips if clip.path not in chosen]
    return Split(
        ClipSet(kept, train.classes, f"{len(kept)} of the {len(train)} clips of {data.root}"),
        ClipSet(held_out, train.classes, f"{len(held_out)} clips of {data.root} held out by a hash of their paths"),
    )


def _read(data: DataConfig, root: str, name: str, split: Literal["train", "eval"]) -> ClipSet:
    if root == "synthetic":
        return _read_synthetic(data, split)
    path = Path(root).expanduser()
    if path.is_dir():
        clipset = _read_folder(path, name)
    elif path.is_file() and path.suffix.lower() == ".csv":
        clipset = _read_csv(path)
    else:
        what = "is not a CSV" if path.exists() else "does not exist"
        raise ValueError(f"{name}={root!r} {what}: must be a folder of videos, a .csv file, or 'synthetic'")
    return replace(clipset, note=f"{len(clipset)} clips of {root}")


def _read_synthetic(data: DataConfig, split: Literal["train", "eval"]) -> ClipSet:
    from diffmavil.data.synthetic import CLASSES, ensure_synthetic

    clips = data.synthetic_train if split == "train" else data.synthetic_eval
    clipset = _read_csv(Path(ensure_synthetic(Path(data.cache).expanduser(), split, clips, seed=0)) / "clips.csv")
    note = f"{clips} synthetic clips, {'training' if split == 'train' else 'held-out'} split"
    # A few clips do not show every class, and both splits must count them alike.
    return _share_classes(replace(clipset, note=note), ClipSet([], list(CLASSES))).train


def _hash_share(name: str) -> float:
    """A number in [0, 1) for each name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def _share_classes(first: ClipSet, second: ClipSet) -> Split:
    """Both with the same list of classes."""
    classes = sorted({*first.classes, *second.classes})
    index = {name: i for i, name in enumerate(classes)}

    def renamed(clipset: ClipSet) -> ClipSet:
        clips = [replace(c, labels=tuple(index[clipset.classes[i]] for i in c.labels)) for c in clipset.clips]
        return replace(clipset, clips=clips, classes=classes)

    return Split(renamed(first), renamed(second))


def _read_folder(root: Path, name: str) -> ClipSet:
    seen = {os.path.realpath(root)}
    videos: list[str] = []
    for folder, inner, files in os.walk(root, followlinks=True):
        # Links may lead back up.
        inner[:] = [d for d in inner if not d.startswith(".") and _unseen(os.path.join(folder, d), seen)]
        relative = os.path.relpath(folder, root)
        videos += [
            os.path.normpath(os.path.join(relative, f))
            for f in files
            if f.lower().endswith(EXTENSIONS) and not f.startswith(".")
        ]
    if not videos:
        raise ValueError(f"{name}={str(root)!r}: no video found in it or below ({', '.join(EXTENSIONS)})")
    videos.sort()
    parents = [os.path.basename(os.path.dirname(file)) for file in videos]
    classes = sorted({parent for parent in parents if parent})
    if len(classes) < 2:
        return ClipSet([Clip(str(root / file)) for file in videos], [])
    index = {parent: i for i, parent in enumerate(classes)}
    clips = [
        Clip(str(root / file), labels=(index[parent],) if parent else ())
        for file, parent in zip(videos, parents, strict=True)
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
