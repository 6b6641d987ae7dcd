"""Clips with labels, in three: to learn from, to choose the best weights by, and to report the result on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import NamedTuple

from diffmavil.config import FinetuneConfig, require
from diffmavil.data.clips import Clip, ClipSet, file_of
from diffmavil.data.overlap import recordings, telling
from diffmavil.data.sources import FEWEST_FOR_SPLIT, hash_share, read_set
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
    if config.data.eval_root is None and not train.parts:
        train, test = _keep_classes(train, test)
    carried = Counter(label for clip in train.clips for label in clip.labels)
    classes = [name for i, name in enumerate(train.classes) if i in carried]
    require(
        len(classes) >= 2, "data.root", f"clips of {len(classes)} class, {_some(classes)}", "of at least two classes"
    )
    train, test = _in_order(train, classes, "data.root"), _to_judge_by(test, classes, "data.eval_root")
    known = config.head.classes
    require(not known or known == tuple(classes), "head.classes", _some(known), f"those of the clips: {_some(classes)}")
    kept, validation = _with_validation(config, train, test)
    labels = _kind_of_labels(config, train, test, *([validation] if validation else []))
    config = replace(config, head=replace(config.head, classes=tuple(classes), labels=labels))
    return config, LabelledSplit(kept, validation, test)


def open_held_out(config: FinetuneConfig, root: str) -> ClipSet:
    """All clips of another set, to score a classifier of `config` by; errors as of `open_labelled`."""
    found = _labelled(read_set(config, root, "data.eval_root"), "data.eval_root")
    found = _to_judge_by(found, config.head.classes, "data.eval_root")
    _kind_of_labels(config, found)
    return found


def _labelled(clips: ClipSet, name: str) -> ClipSet:
    """Those with labels. Raises `ValueError` for none, also in one of several sets."""
    kept = [clip for clip in clips.clips if clip.labels]
    hint = "files in a folder for each class, or a CSV with a column 'labels'"
    require(bool(kept), name, f"{len(clips)} clips, none of which carries a label", f"labelled: {hint}")
    ends = list(accumulate(size for size, _ in clips.parts))
    sizes = [sum(bool(clip.labels) for clip in clips.clips[a:b]) for a, b in pairwise([0, *ends])]
    require(all(sizes), "data.more", f"sets of {sizes} clips that carry a label", f"each labelled: {hint}")
    parts = tuple((size, weight) for size, (_, weight) in zip(sizes, clips.parts, strict=True))
    left = len(clips) - len(kept)
    note = f"{clips.note} ({left} without a label left out)" if left else clips.note
    return replace(clips, clips=kept, note=note, parts=parts)


def _in_order(clips: ClipSet, classes: Sequence[str], name: str) -> ClipSet:
    """The clips with their labels counted in `classes`. Raises `ValueError` for one that is not among them."""
    index = {label: i for i, label in enumerate(classes)}
    carried = {clips.classes[label] for clip in clips.clips for label in clip.labels}
    unknown = sorted(carried - index.keys())
    require(not unknown, name, f"clips of {_some(unknown)}", f"of the training clips' classes: {_some(classes)}")
    found = [replace(c, labels=tuple(sorted(index[clips.classes[i]] for i in c.labels))) for c in clips.clips]
    return replace(clips, clips=found, classes=list(classes))


def _to_judge_by(clips: ClipSet, classes: Sequence[str], name: str) -> ClipSet:
    """As `_in_order`. Raises `ValueError` too for clips that no classifier can be told from another by."""
    clips = _in_order(clips, classes, name)
    given = f"{len(clips)} clips of {_some(_carried(clips))}"
    require(_telling(clips.clips), name, given, "of at least two classes, one of which some clips do not carry")
    return clips


def _telling(clips: Sequence[Clip]) -> bool:
    """Whether there are two classes, and one that some clips carry and some do not."""
    counts = Counter(label for clip in clips for label in set(clip.labels))
    return len(counts) >= 2 and any(count < len(clips) for count in counts.values())


def _carried(clips: ClipSet) -> list[str]:
    return sorted({clips.classes[label] for clip in clips.clips for label in clip.labels})


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
        return train, telling(_to_judge_by(found, train.classes, "head.val_root"), train)
    files = {file_of(clip) for clip in train.clips}
    if not head.validation or len(files) < FEWEST_FOR_SPLIT or train.parts:
        return train, None
    return _slice(train, head.validation)


def _slice(train: ClipSet, share: float) -> tuple[ClipSet, ClipSet | None]:
    """A share of the files, by a hash of their names; None of them where they could choose nothing."""
    files = sorted({file_of(clip) for clip in train.clips})
    of = recordings(files)
    names = dict(zip(files, _names(files), strict=True))
    held_back = {file for file in files if _hash_share(names[of[file]]) < share}
    chosen = [clip for clip in train.clips if file_of(clip) in held_back]
    kept = [clip for clip in train.clips if file_of(clip) not in held_back]
    left, held = _keep_classes(replace(train, clips=kept), replace(train, clips=chosen))
    if not _telling(held.clips):
        return train, None
    note = f"{len(held)} clips of the training set held back by a hash of their names"
    return replace(left, note=f"{len(left)} of the {train.note}"), replace(held, note=note)


def _keep_classes(train: ClipSet, held: ClipSet) -> tuple[ClipSet, ClipSet]:
    """Of a class that the held-out clips alone carry, the first of their recordings is trained on."""
    carried = {label for clip in train.clips for label in clip.labels}
    of = recordings(sorted({file_of(clip) for clip in held.clips}))
    carries: dict[str, set[int]] = defaultdict(set)
    for clip in held.clips:
        carries[of[file_of(clip)]].update(clip.labels)
    moved: set[str] = set()
    for clip in held.clips:
        recording = of[file_of(clip)]
        if recording not in moved and not carried.issuperset(clip.labels):
            moved.add(recording)
            carried |= carries[recording]
    if not moved:
        return train, held
    own = [clip for clip in held.clips if of[file_of(clip)] in moved]
    left = [clip for clip in held.clips if of[file_of(clip)] not in moved]
    why = "of classes that would have had no training clip"
    return (
        replace(train, clips=[*train.clips, *own], note=f"{train.note} (and {len(own)} {why})"),
        replace(held, clips=left, note=f"{held.note} (but {len(own)} {why})"),
    )


def _names(files: Sequence[str]) -> list[str]:
    """What each file is chosen by: its name, which is the same wherever the set lies; of files of which some have the
    same name, the path below the folder that all are in."""
    parts = [file.replace("\\", "/").split("/") for file in files]
    last = [part[-1] for part in parts]
    if len(set(last)) == len(files):
        return last
    above = next(i for i, names in enumerate(zip(*parts, strict=False)) if len(set(names)) > 1)
    return ["/".join(part[above:]) for part in parts]


def _hash_share(name: str) -> float:
    """A number in [0, 1) for each name, others than those by which held-out clips are chosen."""
    return hash_share(f"validation {name}")


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_NAMED])
    return shown + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
