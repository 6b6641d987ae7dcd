"""Labelled clips in three: who is held back, and every set that cannot be learnt from is refused with a reason."""

from __future__ import annotations

import wave
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffmavil.config import AudioConfig, DataConfig, FinetuneConfig, HeadConfig, ModelConfig
from diffmavil.data.clips import ClipSet
from diffmavil.data.labelled import LabelledSplit, _hash_share, open_held_out, open_labelled
from diffmavil.finetune import prepared
from diffmavil.training.distributed import World

Make = Callable[..., str]


@pytest.fixture
def sounds(tmp_path: Path) -> Make:
    """`sounds("train", bell=8, dog=8)`: a folder of that name with a folder of short wav files for each class."""

    def make(name: str, **classes: int) -> str:
        for label, count in classes.items():
            folder = tmp_path / name / label
            folder.mkdir(parents=True)
            for i in range(count):
                with wave.open(str(folder / f"{name}-{label}-{i}.wav"), "wb") as file:
                    file.setnchannels(1)
                    file.setsampwidth(2)
                    file.setframerate(16_000)
                    file.writeframes(np.full(1600, 1000 + i, np.int16).tobytes())
        return str(tmp_path / name)

    return make


@pytest.fixture
def table(tmp_path: Path) -> Callable[[str, str], str]:
    """A CSV of the given text."""

    def make(name: str, text: str) -> str:
        for needed in ("clip-0.mp4", "f0.mp4"):  # a table of which no file exists is refused
            (tmp_path / needed).touch()
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return make


def config(root: str, eval_root: str | None = None, more: tuple[str, ...] = (), **head: Any) -> FinetuneConfig:
    model = ModelConfig(modalities="audio", audio=AudioConfig(mean=-5.0, std=4.0))
    return FinetuneConfig(
        model=model, data=DataConfig(root=root, eval_root=eval_root, more=more), head=HeadConfig(**head)
    )


def rows(count: int, *labels: str) -> str:
    """A CSV in which clip i carries the labels at i, in turn."""
    lines = [f"clip-{i}.mp4,{labels[i % len(labels)]}" for i in range(count)]
    return "\n".join(["path,labels", *lines]) + "\n"


def carried(clips: ClipSet) -> set[str]:
    return {clips.classes[label] for clip in clips.clips for label in clip.labels}


def names(clips: ClipSet | None) -> set[str]:
    return {Path(clip.path).name for clip in clips.clips} if clips else set()


def test_classes_are_those_of_the_training_clips_and_one_list_serves_all(sounds):
    opened, split = open_labelled(
        config(sounds("train", bell=30, dog=30), sounds("test", dog=2, bell=1), validation=0.3)
    )
    assert opened.head.classes == ("bell", "dog")
    assert opened.head.labels == "one"
    assert split.validation is not None
    for clips in (split.train, split.validation, split.test):
        assert clips.classes == ["bell", "dog"]
        assert all(clips.classes[clip.labels[0]] == Path(clip.path).parent.name for clip in clips.clips)
    assert open_labelled(opened)[0] == opened


def test_validation_is_a_tenth_of_the_files_by_their_names_wherever_they_lie(sounds, tmp_path):
    root, test = sounds("train", bell=100, dog=100), sounds("test", dog=2, bell=1)
    _, split = open_labelled(config(root, test))
    assert 10 < len(names(split.validation)) < 30
    assert names(split.train) | names(split.validation) == {
        f"train-{c}-{i}.wav" for c in ("bell", "dog") for i in range(100)
    }
    assert not names(split.train) & names(split.validation)
    Path(root).rename(tmp_path / "elsewhere")
    _, moved = open_labelled(config(str(tmp_path / "elsewhere"), test))
    assert names(moved.validation) == names(split.validation)
    assert split.validation is not None
    assert (
        split.validation.note == f"{len(split.validation)} clips of the training set held back by a hash of their names"
    )
    assert split.train.note.startswith(f"{len(split.train)} of the 200 clips of {root}")
    assert open_labelled(config(str(tmp_path / "elsewhere"), test, validation=0.0))[1].validation is None


@pytest.mark.parametrize("name", ["audio", "video"], ids=["a name that would be chosen", "one that would not"])
def test_files_of_one_name_in_many_folders_are_told_apart(table, name):
    assert (_hash_share(f"{name}.wav") < 0.1) == (name == "audio")
    lines = [f"{i:04d}/{name}.wav,{('bell', 'dog')[i % 2]}" for i in range(200)]
    train, test = table("train.csv", "\n".join(["path,labels", *lines])), table("test.csv", rows(4, "bell", "dog"))
    (Path(train).parent / "0000").mkdir()
    (Path(train).parent / "0000" / f"{name}.wav").touch()
    _, split = open_labelled(config(train, test))
    assert split.validation is not None
    assert 10 < len(split.validation) < 30
    assert len(split.train) + len(split.validation) == 200


def test_validation_clips_that_are_trained_on_are_told(sounds):
    root, test = sounds("train", bell=30, dog=30), sounds("test", dog=2, bell=1)
    _, split = open_labelled(config(root, test, val_root=root))
    assert split.validation is not None
    assert "60 of them are training clips too" in split.validation.note
    assert "training clips too" not in split.test.note


def test_validation_takes_no_class_away(table):
    """Of fifty classes with one or two clips each, all are learnt."""
    labels = [f"c{i:02d}" for i in range(50)]
    text = rows(90, *labels)
    _, split = open_labelled(config(table("train.csv", text), table("test.csv", text)))
    assert carried(split.train) == set(labels)
    assert split.validation is not None
    assert carried(split.validation) < set(labels)
    assert len(split.train) + len(split.validation) == 90


def test_held_out_clips_take_no_class_away(table):
    """Without an eval_root a tenth of the files is held out by a hash, which knows nothing of classes."""
    labels = [f"c{i:02d}" for i in range(50)]
    opened, split = open_labelled(config(table("train.csv", rows(90, *labels))))
    assert opened.head.classes == tuple(labels)
    assert carried(split.train) == set(labels)
    assert not names(split.test) & names(split.train)
    assert "of classes that would have had no training clip" in split.test.note


def test_segments_of_a_file_stay_together(table):
    """Also where the file is given back for a class that it alone has."""
    lines = ["path,start,duration,labels"]
    lines += [
        f"f{i}.mp4,{start},1,{('even', 'odd')[start % 2] if start else f'own{i}'}"
        for i in range(40)
        for start in range(4)
    ]
    train = table("train.csv", "\n".join(lines))
    test = table("test.csv", rows(4, "even", "own1"))
    _, split = open_labelled(config(train, test, validation=0.5))
    assert split.validation is None  # every file has a class of its own
    assert len(split.train) == 160


def test_fewer_than_twenty_files_hold_nothing_back(sounds):
    _, split = open_labelled(config(sounds("train", bell=9, dog=10), sounds("test", dog=2, bell=1)))
    assert split.validation is None
    assert len(split.train) == 19


def test_a_slice_that_could_choose_nothing_is_not_held_back(sounds):
    """Of one class, every classifier that says its name is the best."""
    one_class = config(sounds("train", bell=2, dog=20), sounds("test", dog=2, bell=1), validation=0.05)
    _, split = open_labelled(one_class)
    assert split.validation is None
    assert len(split.train) == 22


def test_clips_of_another_set_choose(sounds):
    roots = sounds("train", bell=30, dog=30), sounds("test", dog=2, bell=1)
    _, split = open_labelled(config(*roots, val_root=sounds("val", dog=3, bell=2)))
    assert split.validation is not None
    assert len(split.train) == 60
    assert len(split.validation) == 5
    with pytest.raises(ValueError, match=r"head\.val_root=\"clips of 'cow'\": must be of the training clips' classes"):
        open_labelled(config(*roots, val_root=sounds("cows", cow=3, bell=1)))


def test_the_held_out_clips_choose_and_it_is_told(sounds):
    _, split = open_labelled(config(sounds("train", bell=30, dog=30), sounds("test", dog=2, bell=1), val_root="test"))
    assert split.validation is not None
    assert len(split.train) == 60
    assert split.validation.clips == split.test.clips
    assert "no longer that of unseen clips" in split.validation.note
    assert "no longer" not in split.test.note


def test_several_labels(table):
    root, test = table("train.csv", rows(40, "bell;dog", "dog", "rain")), table("test.csv", rows(6, "rain;bell", "dog"))
    opened, split = open_labelled(config(root, test))
    assert opened.head.labels == "several"
    assert opened.head.classes == ("bell", "dog", "rain")
    assert split.test.clips[0].labels == (0, 2)
    with pytest.raises(
        ValueError, match=r"head\.labels='one, and \S+clip-0\.mp4 carries 2': must be several \(or auto\)"
    ):
        open_labelled(config(root, test, labels="one"))
    assert open_labelled(config(root, test, labels="several"))[0].head.labels == "several"


def test_several_labels_in_validation_alone(table):
    plain = table("train.csv", rows(40, "bell", "dog")), table("test.csv", rows(6, "bell", "dog"))
    val = table("val.csv", rows(6, "bell;dog", "dog"))
    assert open_labelled(config(*plain, val_root=val))[0].head.labels == "several"
    with pytest.raises(ValueError, match=r"head\.labels"):
        open_labelled(config(*plain, val_root=val, labels="one"))


def test_clips_without_a_label_are_left_out_and_told(table):
    _, split = open_labelled(
        config(table("train.csv", rows(40, "bell", "", "dog", "dog")), table("t.csv", rows(6, "bell", "dog")))
    )
    assert "(10 without a label left out)" in split.train.note
    assert all(clip.labels for clip in split.train.clips)


CANNOT = {
    "no labels": (
        rows(30, ""),
        rows(4, "bell", "dog"),
        r"data\.root='30 clips, none of which carries a label': must be labelled: "
        r"files in a folder for each class, or a CSV with a column 'labels'",
    ),
    "no labels held out": (
        rows(30, "bell", "dog"),
        rows(4, ""),
        r"data\.eval_root='4 clips, none of which carries a label'",
    ),
    "one class": (
        rows(30, "bell"),
        rows(4, "bell"),
        r"data\.root=\"clips of 1 class, 'bell'\": must be of at least two classes",
    ),
    "other classes": (
        rows(30, "bell", "dog"),
        rows(4, "bell", "cow"),
        r"data\.eval_root=\"clips of 'cow'\": must be of the training clips' classes: 'bell', 'dog'",
    ),
    "one class held out": (
        rows(30, "bell", "dog"),
        rows(4, "bell"),
        r"data\.eval_root=\"4 clips of 'bell'\": must be of at least two classes",
    ),
    "all alike": (rows(30, "bell;dog"), rows(4, "bell;dog"), "one of which some clips do not carry"),
    "many": (
        rows(30, *(f"c{i}" for i in range(9))),
        rows(4, "x", "y", "z"),
        "'c0', 'c1', 'c2', 'c3', 'c4' and 4 more",
    ),
}


@pytest.mark.parametrize(("train", "test", "says"), CANNOT.values(), ids=CANNOT)
def test_sets_that_cannot_be_learnt_from(table, train, test, says):
    with pytest.raises(ValueError, match=says):
        open_labelled(config(table("train.csv", train), table("test.csv", test)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("path,start\nx.mp4,0\n", r"carries a label|label"),
        ("path,labels\nx.mp4,bell,dog\n", r"train\.csv, line 2"),
        ("labels\nbell\n", r"train\.csv.*path"),
        ("", r"train\.csv"),
    ],
    ids=["no column of labels", "too many cells", "no column of paths", "empty"],
)
def test_label_files_that_do_not_fit(table, text, says):
    with pytest.raises(ValueError, match=says):
        open_labelled(config(table("train.csv", text), table("test.csv", rows(4, "bell", "dog"))))


def test_an_empty_folder(tmp_path, table):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"data\.eval_root=|empty"):
        open_labelled(config(table("train.csv", rows(30, "bell", "dog")), str(tmp_path / "empty")))


def test_a_class_without_clips_is_no_class(sounds):
    root = sounds("train", bell=5, dog=5, cow=0)
    assert open_labelled(config(root, sounds("test", bell=1, dog=1)))[0].head.classes == ("bell", "dog")


def test_other_classes_than_the_run_began_with(table):
    opened, _ = open_labelled(
        config(table("train.csv", rows(30, "bell", "dog")), table("test.csv", rows(4, "bell", "dog")))
    )
    table("train.csv", rows(30, "bell", "cow", "dog"))
    with pytest.raises(
        ValueError, match=r"head\.classes=\"'bell', 'dog'\": must be those of the clips: 'bell', 'cow', 'dog'"
    ):
        open_labelled(opened)


def test_other_held_out_clips(table):
    opened, _ = open_labelled(
        config(table("train.csv", rows(30, "bell", "dog")), table("test.csv", rows(4, "bell", "dog")))
    )
    assert len(open_held_out(opened, table("more.csv", rows(7, "dog", "bell")))) == 7
    with pytest.raises(ValueError, match=r"data\.eval_root=\"clips of 'cow'\""):
        open_held_out(opened, table("cows.csv", rows(7, "dog", "cow")))
    with pytest.raises(ValueError, match=r"head\.labels"):
        open_held_out(opened, table("both.csv", rows(7, "dog;bell", "dog")))


def test_several_sets_keep_their_shares_when_unlabelled_clips_are_left_out(table):
    first, second = table("a.csv", rows(40, "bell", "")), table("b.csv", rows(30, "dog", "", "bell"))
    _, split = open_labelled(config(first, table("test.csv", rows(4, "bell", "dog")), more=(second,)))
    assert [size for size, _ in split.train.parts] == [20, 20]
    assert len(split.train) == 40
    with pytest.raises(
        ValueError, match=r"data\.more='sets of \[20, 0\] clips that carry a label': must be each labelled"
    ):
        open_labelled(config(first, table("test.csv", rows(4, "bell", "dog")), more=(table("b.csv", rows(30, "")),)))


# What `diffmavil.finetune` makes of them


def ready(start: FinetuneConfig, processes: int = 1) -> tuple[FinetuneConfig, LabelledSplit]:
    return prepared(start, World(0, processes, device=None))  # type: ignore[arg-type]  # not looked at


def test_steps_are_what_the_epochs_of_the_clips_that_are_left_need(table):
    start = config(table("train.csv", rows(100, "bell", "dog")), table("t.csv", rows(4, "bell", "dog")), epochs=2.5)
    start = replace(start, train=replace(start.train, batch_size=8))
    opened, split = ready(start)
    assert len(split.train) < 100
    assert opened.train.steps == -(-5 * len(split.train) // 16)
    assert opened.train.probe_every == opened.train.steps // 10
    assert ready(opened)[0] == opened  # as on resume
    assert ready(replace(start, head=replace(start.head, epochs=None)))[0].train.steps == start.train.steps


@pytest.mark.parametrize(("batch", "processes"), [(7, 1), (6, 2)])
def test_mixup_pairs_the_clips_of_each_process(table, batch, processes):
    start = config(table("train.csv", rows(100, "bell", "dog")), table("t.csv", rows(4, "bell", "dog")))
    start = replace(start, train=replace(start.train, batch_size=batch))
    with pytest.raises(
        ValueError, match=rf"train\.batch_size={batch}: must be an even number for each of {processes} pro"
    ):
        ready(start, processes)
    ready(replace(start, head=replace(start.head, mixup=0.0)), processes)


def test_rare_classes_come_more_often_by_the_clips_that_exist(table):
    start = config(table("train.csv", rows(100, "bell", "bell", "bell", "dog")), table("t.csv", rows(4, "bell", "dog")))
    _, split = ready(replace(start, head=replace(start.head, balance="sampling")))
    share = {0: 0.0, 1: 0.0}
    for clip, often in zip(split.train.clips, split.train.often, strict=True):
        share[clip.labels[0]] += often
    assert share == pytest.approx({0: 1.0, 1: 1.0})
    two = replace(
        start, data=replace(start.data, more=(start.data.root,)), head=replace(start.head, balance="sampling")
    )
    with pytest.raises(ValueError, match=r"head\.balance='sampling': must be none or loss beside data\.more"):
        ready(two)
