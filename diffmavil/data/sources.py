"""Where clips come from: a folder of files, a CSV, a prepared set, or the synthetic one; and which are held out.

Folder: every video below it, sorted by relative path (`diffmavil.data.media_files`); for sound alone sound files too.
When they lie in two or more folders, the name of the folder is the class. CSV: `diffmavil.data.csv_table`; paths are
relative to the CSV.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

from diffmavil.config import Config, DataConfig, Modalities, require
from diffmavil.config.folders import expand, writing
from diffmavil.data.clips import Clip, ClipSet, Split, file_of
from diffmavil.data.csv_table import read_csv
from diffmavil.data.media_files import find_files, folder_classes
from diffmavil.data.overlap import Files, recordings, telling
from diffmavil.data.shards.prepared import is_prepared, read_prepared
from diffmavil.data.synthetic import CLASSES, ensure_synthetic

__all__ = ["open_source", "read_csv", "split_source"]

HELD_OUT = 0.1
"""Share of the files held out when no held-out set is given."""
FEWEST_FOR_SPLIT = 20
_FLAG = "--model.modalities"


def open_source(data: DataConfig, split: Literal["train", "eval"] = "train", modalities: Modalities = "av") -> ClipSet:
    """The training or the held-out clips of a run; see `split_source`."""
    if data.root == "synthetic" and data.eval_root is None and not data.more:
        return _read_synthetic(data, split)
    train, held_out = split_source(data, modalities)
    return train if split == "train" else held_out


def split_source(data: DataConfig, modalities: Modalities = "av") -> Split:
    """Training clips of `data.root`, and held-out clips.

    Held out are: the clips of `data.eval_root` when it is set; the synthetic set's own held-out split; else a tenth of
    the files of `data.root`, chosen by a hash of their relative paths, so that the choice does not depend on order or
    place and all segments of a file are on one side. With fewer than 20 files the training clips serve for both, and
    the note says so. Of `data.more`, each set is split by itself; its training clips, but for those of files that
    another set holds out, are mixed in by `data.weights`.

    Args:
        modalities: what of the clips will be decoded. It decides which files of a folder are taken: videos, and for
            sound alone sound files beside them. The note says what else lies there.

    Raises:
        ValueError: nothing there, no such file in it, a prepared set that is not whole or holds not what is wanted, or
            a CSV that cannot be read, with the line.
    """
    if data.more:
        single = [replace(data, root=root, more=(), weights=()) for root in (data.root, *data.more)]
        splits = [_split_one(one, modalities) for one in single]
        split = _mixed(splits if data.eval_root is not None else _without_held_out(splits), data.weights)
    else:
        split = _split_one(data, modalities)
    return split if data.eval_root is None else split._replace(held_out=telling(split.held_out, split.train))


def read_set(config: Config, root: str, name: str, flag: str = _FLAG) -> ClipSet:
    """All clips of one more set, which the setting `name` gives; errors as of `split_source`.

    flag: what decides at this command which modalities are read, for messages.
    """
    return _read(config.data, root, name, "eval", config.model.modalities, flag)


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


def _without_held_out(splits: list[Split]) -> list[Split]:
    """What one set holds out is not trained on through another. `ValueError`: nothing is left of a set to train on."""
    file_by = Files()
    # A set of few files holds none out: its training clips serve for both.
    own = [split.held_out.clips for split in splits if split.held_out.clips is not split.train.clips]
    held_out = {file_by(clip) for clips in own for clip in clips}
    found = []
    for split in splits:
        kept = [clip for clip in split.train.clips if file_by(clip) not in held_out]
        left = len(split.train) - len(kept)
        require(bool(kept), "data.more", split.train.note, "sets with files that no other one holds out")
        note = f"{split.train.note} ({left} held out of another set left out)" if left else split.train.note
        found.append(split._replace(train=replace(split.train, clips=kept, note=note)))
    return found


def _split_one(data: DataConfig, modalities: Modalities) -> Split:
    train = _read(data, data.root, "data.root", "train", modalities)
    if data.eval_root is not None:
        return _share_classes(train, _read(data, data.eval_root, "data.eval_root", "eval", modalities))
    if data.root == "synthetic":
        return _share_classes(train, _read_synthetic(data, "eval"))
    files = sorted({file_of(clip) for clip in train.clips})
    if len(files) < FEWEST_FOR_SPLIT:
        note = (
            f"the {len(train)} training clips: none are held out of fewer than {FEWEST_FOR_SPLIT} files; "
            "set data.eval_root"
        )
        return Split(train, replace(train, note=note))
    root = expand(data.root)
    base = root if root.is_dir() else root.parent
    # A prepared set knows the names its files had, so it holds out the same ones.
    prepared = train.clips[0].stored is not None
    of = recordings(files)
    share = {path: hash_share(one if prepared else os.path.relpath(one, base)) for path, one in of.items()}
    least = min(share.values())  # one recording at least
    chosen = {path for path in files if share[path] < HELD_OUT} or {path for path in files if share[path] == least}
    held_out = [clip for clip in train.clips if file_of(clip) in chosen]
    kept = [clip for clip in train.clips if file_of(clip) not in chosen]
    twice = sum(path != one for path, one in of.items())
    aside = f"; {twice} files differ from another one in their suffix alone: both are on one side" if twice else ""
    return Split(
        replace(train, clips=kept, note=f"{len(kept)} of the {train.note}{aside}"),
        replace(train, clips=held_out, note=f"{len(held_out)} clips of {data.root} held out by a hash of their paths"),
    )


def _read(
    data: DataConfig,
    root: str,
    name: str,
    split: Literal["train", "eval"],
    modalities: Modalities,
    flag: str = _FLAG,
) -> ClipSet:
    if root == "synthetic":
        return _read_synthetic(data, split)
    path = expand(root)
    if is_prepared(root):
        clipset = read_prepared(root, name, modalities)
    elif path.is_dir():
        clipset = _read_folder(path, name, modalities, flag)
    elif path.is_file() and path.suffix.lower() == ".csv":
        clipset = read_csv(path)
    else:
        what = "is not a CSV" if path.exists() else "does not exist"
        raise ValueError(
            f"{name}={root!r} {what}: must be a folder of videos or sound files, a .csv file, or 'synthetic'"
        )
    aside = f" ({clipset.note})" if clipset.note else ""
    return replace(clipset, note=f"{len(clipset)} clips of {root}{aside}")


def _read_synthetic(data: DataConfig, split: Literal["train", "eval"]) -> ClipSet:
    clips = data.synthetic_train if split == "train" else data.synthetic_eval
    with writing("data.cache", data.cache):
        made = ensure_synthetic(expand(data.cache), split, clips, seed=0)
    clipset = read_csv(made / "clips.csv")
    note = f"{clips} synthetic clips, {'training' if split == 'train' else 'held-out'} split"
    # A few clips do not show every class, and both splits must count them alike.
    return _share_classes(replace(clipset, note=note), ClipSet([], list(CLASSES))).train


def hash_share(name: str) -> float:
    """A number in [0, 1) for each name."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big") / 2**64


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


def _read_folder(root: Path, name: str, modalities: Modalities, flag: str) -> ClipSet:
    found = find_files(root, name, modalities, flag)
    labels = folder_classes(found.files)
    classes = sorted({label for label in labels if label})
    index = {label: i for i, label in enumerate(classes)}
    # Absolute, since libav takes what comes before the colon of a relative 10:30.mp4 for a protocol.
    here = root.absolute()
    clips = [
        Clip(str(here / file), labels=(index[label],) if label else ())
        for file, label in zip(found.files, labels, strict=True)
    ]
    return ClipSet(clips, classes, found.note)
