"""Where clips come from: a folder of videos, a CSV, a prepared set, or the synthetic one; and which are held out.

Folder: every video below it, sorted by relative path. When videos lie in two or more folders, the name of the folder
is the class. CSV: a header with `path` and, as wanted, `start`, `duration` (seconds) and `labels` (class names with
';' between); paths are relative to the CSV.
"""

from __future__ import annotations

import csv
import hashlib
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

from diffmavil.config import DataConfig
from diffmavil.data.clips import Clip, ClipSet, Split
from diffmavil.data.shards.prepared import is_prepared, read_prepared
from diffmavil.data.synthetic import CLASSES, ensure_synthetic

EXTENSIONS = (".mp4", ".webm", ".mkv", ".mpg", ".mpeg", ".avi", ".mov", ".m4v")
HELD_OUT = 0.1
"""Share of the files held out when no held-out set is given."""
FEWEST_FOR_SPLIT = 20


def open_source(data: DataConfig, split: Literal["train", "eval"] = "train") -> ClipSet:
    """The training or the held-out clips of a run; see `split_source`."""
    if data.root == "synthetic" and data.eval_root is None and not data.more:
        return _read_synthetic(data, split)
    train, held_out = split_source(data)
    return train if split == "train" else held_out


def split_source(data: DataConfig) -> Split:
    """Training clips of `data.root`, and held-out clips.

    Held out are: the clips of `data.eval_root` when it is set; the synthetic set's own held-out split; else a tenth of
    the files of `data.root`, chosen by a hash of their relative paths, so that the choice does not depend on order or
    place and all segments of a file are on one side. With fewer than 20 files the training clips serve for both, and
    the note says so. Of `data.more`, each set is split by itself; its training clips are mixed in by `data.weights`.

    Raises:
        ValueError: nothing there, no video in it, a prepared set that is not whole, or a CSV that cannot be read, with
            the line.
    """
    if data.more:
        return _mixed([_split_one(replace(data, root=root, more=(), weights=())) for root in (data.root, *data.more)],
                      data.weights)  # fmt: skip
    return _split_one(data)


def _mixed(splits: list[Split], weights: tuple[float, ...]) -> Split:
    """Several sets as one, with one list of classes. With an `eval_root`, they all hold out the same clips."""
    classes = sorted({name for split in splits for name in split.train.classes})
    trains = [_with_classes(split.train, classes) for split in splits]
    held_out = [_with_classes(split.held_out, classes) for split in splits]
    shares = weights or tuple(float(len(clipset)) for clipset in trains)
    parts = tuple((len(clipset), weight) for clipset, weight in zip(trains, shares, strict=True))
    note = " + ".join(
        f"{weight / sum(shares):.0%} {clipset.note}" for clipset, weight in zip(trains, shares, strict=True)
    )
    whole = ClipSet([clip for clipset in trains for clip in clipset.clips], classes, note, parts=parts)
    kept = list(dict.fromkeys(clip for clipset in held_out for clip in clipset.clips))
    notes = list(dict.fromkeys(clipset.note for clipset in held_out))
    return Split(whole, ClipSet(kept, classes, " + ".join(notes)))


def _split_one(data: DataConfig) -> Split:
    train = _read(data, data.root, "data.root", "train")
    if data.eval_root is not None:
        return _share_classes(train, _read(data, data.eval_root, "data.eval_root", "eval"))
    if data.root == "synthetic":
        return _share_classes(train, _read_synthetic(data, "eval"))
    files = sorted({_file(clip) for clip in train.clips})
    if len(files) < FEWEST_FOR_SPLIT:
        note = (
            f"the {len(train)} training clips: none are held out of fewer than {FEWEST_FOR_SPLIT} files; "
            "set data.eval_root"
        )
        return Split(train, replace(train, note=note))
    root = Path(data.root).expanduser()
    base = root if root.is_dir() else root.parent
    # A prepared set knows the names its files had, so it holds out the same ones.
    prepared = train.clips[0].stored is not None
    share = {path: _hash_share(path if prepared else os.path.relpath(path, base)) for path in files}
    chosen = {path for path in files if share[path] < HELD_OUT} or {min(files, key=share.__getitem__)}
    held_out = [clip for clip in train.clips if _file(clip) in chosen]
    kept = [clip for clip in train.clips if _file(clip) not in chosen]
    return Split(
        replace(train, clips=kept, note=f"{len(kept)} of the {len(train)} clips of {data.root}"),
        replace(train, clips=held_out, note=f"{len(held_out)} clips of {data.root} held out by a hash of their paths"),
    )


def _file(clip: Clip) -> str:
    """The file that a clip is a part of."""
    return clip.origin or clip.path


def _read(data: DataConfig, root: str, name: str, split: Literal["train", "eval"]) -> ClipSet:
    if root == "synthetic":
        return _read_synthetic(data, split)
    path = Path(root).expanduser()
    if is_prepared(root):
        clipset = read_prepared(root, name)
    elif path.is_dir():
        clipset = _read_folder(path, name)
    elif path.is_file() and path.suffix.lower() == ".csv":
        clipset = read_csv(path)
    else:
        what = "is not a CSV" if path.exists() else "does not exist"
        raise ValueError(f"{name}={root!r} {what}: must be a folder of videos, a .csv file, or 'synthetic'")
    return replace(clipset, note=f"{len(clipset)} clips of {root}")


def _read_synthetic(data: DataConfig, split: Literal["train", "eval"]) -> ClipSet:
    clips = data.synthetic_train if split == "train" else data.synthetic_eval
    clipset = read_csv(Path(ensure_synthetic(Path(data.cache).expanduser(), split, clips, seed=0)) / "clips.csv")
    note = f"{clips} synthetic clips, {'training' if split == 'train' else 'held-out'} split"
    # A few clips do not show every class, and both splits must count them alike.
    return _share_classes(replace(clipset, note=note), ClipSet([], list(CLASSES))).train


def _hash_share(name: str) -> float:
    """A number in [0, 1) for each name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def _share_classes(first: ClipSet, second: ClipSet) -> Split:
    """Both with the same list of classes."""
    if first.classes == second.classes:
        return Split(first, second)
    classes = sorted({*first.classes, *second.classes})
    return Split(_with_classes(first, classes), _with_classes(second, classes))


def _with_classes(clipset: ClipSet, classes: list[str]) -> ClipSet:
    """The same clips, their labels counted in a longer list of classes."""
    if clipset.classes == classes:
        return clipset
    index = {name: i for i, name in enumerate(classes)}
    clips = [replace(c, labels=tuple(index[clipset.classes[i]] for i in c.labels)) for c in clipset.clips]
    return replace(clipset, clips=clips, classes=classes)


def find_videos(root: Path, name: str) -> list[str]:
    """Relative paths of all videos in a folder and below, sorted; `ValueError`, naming the setting, for none."""
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
    return sorted(videos)


def folder_classes(videos: list[str]) -> list[str]:
    """The class of each video: the name of its folder, when there are two or more; else ""."""
    parents = [os.path.basename(os.path.dirname(file)) for file in videos]
    return parents if len({parent for parent in parents if parent}) > 1 else [""] * len(videos)


def _read_folder(root: Path, name: str) -> ClipSet:
    videos = find_videos(root, name)
    labels = folder_classes(videos)
    classes = sorted({label for label in labels if label})
    index = {label: i for i, label in enumerate(classes)}
    clips = [
        Clip(str(root / file), labels=(index[label],) if label else ())
        for file, label in zip(videos, labels, strict=True)
    ]
    return ClipSet(clips, classes)


def _unseen(folder: str, seen: set[str]) -> bool:
    real = os.path.realpath(folder)
    if real in seen:
        return False
    seen.add(real)
    return True


def read_csv(path: Path, base: Path | None = None) -> ClipSet:
    """Clips of a CSV; their paths are relative to `base`, by default the CSV's folder. `ValueError` with the line."""
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
            rows.append((Clip(str((base or path.parent) / name), start, duration), labels))
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
