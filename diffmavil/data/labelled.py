"""Clips with labels, in three: to learn from, to choose the best weights by, and to report the result on."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from diffmavil.config import FinetuneConfig, require
from diffmavil.data.clips import ClipSet
from diffmavil.data.sources import FEWEST_FOR_SPLIT, read_set
from diffmavil.data.stats import open_data

_NAMED = 5
TEST = "test"
"""As `head.val_root`: the held-out clips themselves choose the best weights."""


class LabelledSplit(NamedTuple):
    """Clips that all carry labels, with one list of classes: that of `head.classes`."""

    train: ClipSet
    validation: ClipSet | None
    """None: nothing is held back."""
    test: ClipSet


def open_labelled(config: FinetuneConfig) -> tuple[FinetuneConfig, LabelledSplit]:
    """The config with audio statistics, classes and kind of labels, and the clips; their notes tell what was left out.

    Raises:
        ValueError: clips without labels, fewer than two classes, classes of the held-out clips that no training clip
            carries, several labels where one is wanted, other classes than `head.classes`; or as `open_data`.
    """
    config, (train, test) = open_data(config)
    train, test = _labelled(train, "data.root"), _labelled(test, "data.eval_root")
    carried = Counter(label for clip in train.clips for label in clip.labels)
    classes = [name for i, name in enumerate(train.classes) if i in carried]
    require(
        len(classes) >= 2, "data.root", f"clips of {len(classes)} class, {_some(classes)}", "of at least two classes"
    )
    train = _in_order(train, classes, "data.root")
    test = _in_order(test, classes, "data.eval_root")
    labels = _kind_of_labels(config, train, test)
    known = config.head.classes
    require(not known or known == tuple(classes), "head.classes", _some(known), f"those of the clips: {_some(classes)}")
    config = replace(config, head=replace(config.head, classes=tuple(classes), labels=labels))
    return config, LabelledSplit(*_with_validation(config, train, test), test)


def _labelled(clips: ClipSet, name: str) -> ClipSet:
    """Those with labels. Raises `ValueError` for none."""
    kept = [clip for clip in clips.clips if clip.labels]
    hint = "files in a folder for each class, or a CSV with a column 'labels'"
    require(bool(kept), name, f"{len(clips)} clips, none of which carries a label", f"labelled: {hint}")
    left = len(clips) - len(kept)
    note = f"{clips.note} ({left} without a label left out)" if left else clips.note
    return replace(clips, clips=kept, note=note)


def _in_order(clips: ClipSet, classes: Sequence[str], name: str) -> ClipSet:
    """The clips with their labels counted in `classes`. Raises `ValueError` for one that is not among them."""
    index = {label: i for i, label in enumerate(classes)}
    carried = {clips.classes[label] for clip in clips.clips for label in clip.labels}
    unknown = sorted(carried - index.keys())
    require(not unknown, name, f"clips of {_some(unknown)}", f"of the training clips' classes: {_some(classes)}")
    found = [replace(c, labels=tuple(sorted(index[clips.classes[i]] for i in c.labels))) for c in clips.clips]
    return replace(clips, clips=found, classes=list(classes))


def _kind_of_labels(config: FinetuneConfig, *sets: ClipSet) -> str:
    several = [clip for clips in sets for clip in clips.clips if len(clip.labels) > 1]
    if config.head.labels == "auto":
        return "several" if several else "one"
    given = f"one, and {several[0].path} carries {len(several[0].labels)}" if several else ""
    require(config.head.labels == "several" or not several, "head.labels", given, "several (or auto)")
    return config.head.labels


def _with_validation(config: FinetuneConfig, train: ClipSet, test: ClipSet) -> tuple[ClipSet, ClipSet | None]:
    """The training clips that are left, and those that choose the best weights."""
    head = config.head
    if head.val_root == TEST:
        note = "the held-out clips choose the best weights: their result of these is no longer that of unseen clips"
        return train, replace(test, note=note)
    if head.val_root is not None:
        found = _labelled(read_set(config, head.val_root, "head.val_root"), "head.val_root")
        return train, _in_order(found, train.classes, "head.val_root")
    files = {clip.origin or clip.path for clip in train.clips}
    if not head.validation or len(files) < FEWEST_FOR_SPLIT or train.parts:
        return train, None
    return _slice(train, head.validation)


def _slice(train: ClipSet, share: float) -> tuple[ClipSet, ClipSet | None]:
    """A share of the files, by a hash of their names; the first clip of a class that would be gone stays."""
    chosen = [clip for clip in train.clips if _hash_share(clip.origin or clip.path) < share]
    kept = [clip for clip in train.clips if _hash_share(clip.origin or clip.path) >= share]
    carried = {label for clip in kept for label in clip.labels}
    for clip in list(chosen):
        if not carried.issuperset(clip.labels):
            kept.append(clip)
            chosen.remove(clip)
            carried.update(clip.labels)
    if not chosen:
        return train, None
    note = f"{len(chosen)} clips of the training set held back by a hash of their names"
    return replace(train, clips=kept, note=f"{len(kept)} of the {train.note}"), replace(train, clips=chosen, note=note)


def _hash_share(path: str) -> float:
    """A number in [0, 1) for each file name, others than those by which held-out clips are chosen."""
    name = path.replace("\\", "/").rpartition("/")[2]
    return int.from_bytes(hashlib.sha256(f"validation {name}".encode()).digest()[:8], "big") / 2**64


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_NAMED])
    return shown + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
