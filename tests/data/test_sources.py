"""Folders, CSV files and the held-out split."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from diffmavil.config import DataConfig
from diffmavil.data.clips import Clip
from diffmavil.data.overlap import recordings, shared
from diffmavil.data.sources import open_source, split_source
from diffmavil.data.table import ClipTable


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def names(clips: list[Clip], root: Path) -> list[str]:
    return [os.path.relpath(clip.path, root) for clip in clips]


def data(root: Path, **arguments) -> DataConfig:
    return DataConfig(root=str(root), **arguments)


def write_csv(root: Path, text: str, *files: str) -> Path:
    touch(root, *files)
    (root / "clips.csv").write_text(text)
    return root / "clips.csv"


def test_folder_is_sorted_and_knows_videos(tmp_path: Path) -> None:
    videos = ["a.mp4", "B.MOV", "c/d.webm", "c/e/f.mkv", "g.mpg", "h.mpeg", "i.avi", "j.m4v"]
    root = touch(tmp_path, *videos, "notes.txt", "._a.mp4", ".hidden/k.mp4", "c/l.wav")
    clipset = open_source(data(root))
    assert names(clipset.clips, root) == sorted(videos)
    assert all(clip.start is None and clip.duration is None for clip in clipset.clips)
    assert clipset.note == f"8 clips of {root} (not looked at: 1 .txt, 1 .wav)"


def test_class_folders(tmp_path: Path) -> None:
    root = touch(tmp_path, "dog/a.mp4", "cat/b.mp4", "x/cat/c.mp4", "d.mp4")
    clipset = open_source(data(root))
    assert clipset.classes == ["cat", "dog"]
    labels = dict(zip(names(clipset.clips, root), (clip.labels for clip in clipset.clips), strict=True))
    assert labels == {"cat/b.mp4": (0,), "d.mp4": (), "dog/a.mp4": (1,), "x/cat/c.mp4": (0,)}


def test_one_folder_is_no_class(tmp_path: Path) -> None:
    clipset = open_source(data(touch(tmp_path, "videos/a.mp4", "videos/b.mp4")))
    assert clipset.classes == []
    assert all(clip.labels == () for clip in clipset.clips)


def test_links_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path / "store", "a.mp4")
    root = touch(tmp_path / "root", "b.mp4")
    (root / "linked").symlink_to(tmp_path / "store")
    (root / "loop").symlink_to(root)
    assert names(open_source(data(root)).clips, root) == ["b.mp4", "linked/a.mp4"]


def test_csv(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path,
        "\ufeffpath,start,duration,labels,comment\n"
        "v/a.mp4,1.5,4,dog;cat,x\n"
        "v/b.mp4,,,,\n"
        f"{tmp_path}/v/c.mp4,0,, dog ,\n"
        '"v/with,comma.mp4",,2.5,bird,\n',
        "v/a.mp4",
    )
    clipset = open_source(data(path))
    assert clipset.classes == ["bird", "cat", "dog"]
    assert clipset.clips == [
        Clip(str(tmp_path / "v/a.mp4"), 1.5, 4.0, (2, 1)),
        Clip(str(tmp_path / "v/b.mp4")),
        Clip(str(tmp_path / "v/c.mp4"), 0.0, None, (2,)),
        Clip(str(tmp_path / "v/with,comma.mp4"), None, 2.5, (0,)),
    ]


def test_csv_needs_only_the_path_column(tmp_path: Path) -> None:
    clipset = open_source(data(write_csv(tmp_path, "path\na.mp4\n", "a.mp4")))
    assert clipset.clips == [Clip(str(tmp_path / "a.mp4"))]


BAD_CSV = {
    "no-path-column": ("file,labels\na.mp4,x\n", r"column 'path'.*\['file', 'labels'\]"),
    "empty": ("", "column 'path'.*nothing"),
    "only-header": ("path,labels\n", "no clips"),
    "empty-path": ("path,start\na.mp4,\n,3\n", "line 3: path is empty"),
    "start-no-number": ("path,start\na.mp4,1\na.mp4,soon\n", "line 3: start='soon': must be empty or a number >= 0"),
    "start-negative": ("path,start\na.mp4,-1\n", "line 2: start='-1'"),
    "start-nan": ("path,start\na.mp4,nan\n", "line 2: start='nan'"),
    "duration-zero": ("path,start,duration\na.mp4,0,0\n", "line 2: duration='0': must be empty or a number > 0"),
    "all-missing": ("path\nb.mp4\nc.mp4\n", r"none of its 2 paths exists, the first is .*b\.mp4"),
}


@pytest.mark.parametrize(("text", "message"), BAD_CSV.values(), ids=list(BAD_CSV))
def test_bad_csv(tmp_path: Path, text: str, message: str) -> None:
    path = write_csv(tmp_path, text, "a.mp4")
    with pytest.raises(ValueError, match=message):
        open_source(data(path))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.root=.*does not exist.*folder of videos"):
        open_source(data(tmp_path / "absent"))
    with pytest.raises(ValueError, match=r"data\.root=.*is not a CSV"):
        open_source(data(touch(tmp_path, "a.txt") / "a.txt"))
    with pytest.raises(ValueError, match=r"data\.root=.*no video found.*\.webm"):
        open_source(data(tmp_path))
    with pytest.raises(ValueError, match=r"data\.eval_root=.*does not exist"):
        open_source(data(touch(tmp_path, "a.mp4"), eval_root=str(tmp_path / "absent")))


def test_held_out_slice_depends_on_relative_paths_alone(tmp_path: Path) -> None:
    files = [f"{i:03}.mp4" for i in range(200)]
    here = split_source(data(touch(tmp_path / "here", *files)))
    there = split_source(data(touch(tmp_path / "there", *files, "999.mp4")))
    held_out = names(here.held_out.clips, tmp_path / "here")
    assert 8 <= len(held_out) <= 36
    assert set(held_out) <= set(names(there.held_out.clips, tmp_path / "there"))
    train = names(here.train.clips, tmp_path / "here")
    assert sorted(train + held_out) == files
    assert open_source(data(tmp_path / "here"), "eval") == here.held_out
    assert open_source(data(tmp_path / "here"), "train") == here.train
    assert "held out" in here.held_out.note


def test_a_few_dozen_files_have_at_least_one_held_out(tmp_path: Path) -> None:
    for count in range(20, 40):
        split = split_source(data(touch(tmp_path / str(count), *(f"{i}.mp4" for i in range(count)))))
        assert len(split.held_out) >= 1
        assert len(split.train) >= 10


def test_segments_of_a_file_stay_together(tmp_path: Path) -> None:
    rows = [f"{file}.mp4,{start},5" for file in range(40) for start in range(0, 30, 5)]
    path = write_csv(tmp_path, "path,start,duration\n" + "\n".join(rows) + "\n", "0.mp4")
    split = split_source(data(path))
    assert len(split.held_out) % 6 == 0
    assert not {clip.path for clip in split.train.clips} & {clip.path for clip in split.held_out.clips}


def test_few_files_serve_for_both(tmp_path: Path) -> None:
    split = split_source(data(touch(tmp_path, *(f"{i}.mp4" for i in range(19)))))
    assert split.train.clips == split.held_out.clips
    assert "none are held out" in split.held_out.note


def test_eval_root_shares_the_classes(tmp_path: Path) -> None:
    touch(tmp_path / "train", "cat/a.mp4", "dog/b.mp4")
    touch(tmp_path / "eval", "bird/c.mp4", "dog/d.mp4")
    split = split_source(data(tmp_path / "train", eval_root=str(tmp_path / "eval")))
    assert split.train.classes == split.held_out.classes == ["bird", "cat", "dog"]
    assert [clip.labels for clip in split.train.clips] == [(1,), (2,)]
    assert [clip.labels for clip in split.held_out.clips] == [(0,), (2,)]


def test_table_gives_the_clips_again() -> None:
    clips = [
        Clip("/a/ü.mp4", 1.25, None, (3, 1)),
        Clip("/b.mp4"),
        Clip("/not-utf8-\udcff.mp4", None, 2.0, (0,)),
        Clip("/c.mp4", 0.0, 0.1, ()),
    ]
    table = ClipTable(clips)
    assert len(table) == 4
    assert [table[i] for i in range(4)] == clips


def test_of_several_sets_and_one_to_judge_by_that_is_told_once(tmp_path: Path) -> None:
    roots = [touch(tmp_path / name, *(f"{name}{i}.mp4" for i in range(3))) for name in ("a", "b")]
    split = split_source(data(roots[0], more=(str(roots[1]),), eval_root=str(roots[0])))
    assert split.held_out.note.count("clips of") == 1
    assert split.held_out.note.endswith("; 3 of them are training clips too: of new clips, the numbers say less")


def test_held_out_clips_that_are_trained_on_are_told(tmp_path: Path) -> None:
    """A folder inside the other, read by another way; and none where they differ."""
    root = touch(tmp_path / "d", "a.mp4", "b.mp4", "test/c.mp4", "test/d.mp4")
    (tmp_path / "link").symlink_to(root / "test")
    for eval_root, both in ((root / "test", 2), (tmp_path / "link", 2), (touch(tmp_path / "e", "c.mp4"), 0)):
        _, held_out = split_source(data(root, eval_root=str(eval_root)))
        assert (f"; {both} of them are training clips too" in held_out.note) == bool(both)
        assert ("too" in held_out.note) == bool(both)


def test_links_to_one_file_are_one_recording(tmp_path: Path) -> None:
    """As folds are often laid out; a link's name may differ from that of the file, and the file may be meant too."""
    touch(tmp_path / "pool", "a.mp4", "b.mp4", "c.mp4")
    for link, target in (("train/a.mp4", "a"), ("train/b.mp4", "b"), ("test/a.mp4", "a"), ("test/other.mp4", "c")):
        (tmp_path / link).parent.mkdir(exist_ok=True)
        (tmp_path / link).symlink_to(tmp_path / "pool" / f"{target}.mp4")
    for train, test, both in (
        ("train", "test", ["a.mp4"]),
        ("pool", "test", ["a.mp4", "other.mp4"]),
        ("test", "pool", ["a.mp4", "c.mp4"]),
    ):
        split = split_source(data(tmp_path / train, eval_root=str(tmp_path / test)))
        assert [Path(clip.path).name for clip in shared(split.train.clips, split.held_out.clips)] == both


def test_a_recording_under_two_suffixes_is_on_one_side(tmp_path: Path) -> None:
    names = [f"{kind}/{kind}{i}" for kind in ("cat", "dog") for i in range(40)]
    touch(tmp_path, *(f"{name}.mp4" for name in names), *(f"{name}.webm" for name in names[:20]))
    train, held_out = split_source(data(tmp_path))
    one, other = ({Path(clip.path).stem for clip in clips.clips} for clips in (train, held_out))
    assert one
    assert other
    assert not one & other
    assert len(train) + len(held_out) == 100
    assert "20 files differ from another one in their suffix alone: both are on one side" in train.note
    alone = touch(tmp_path / "alone", *(f"{i}.mp4" for i in range(40)))
    assert "suffix" not in split_source(data(alone)).train.note


def test_where_no_hash_is_low_a_recording_is_held_out_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{i}.{suffix}" for i in range(10) for suffix in ("mp4", "webm")]
    monkeypatch.setattr("diffmavil.data.sources.hash_share", lambda name: 0.5 + int(Path(name).stem) / 100)
    _, held_out = split_source(data(touch(tmp_path, *names)))
    assert sorted(Path(clip.path).name for clip in held_out.clips) == ["0.mp4", "0.webm"]


def test_what_follows_a_dot_in_a_name_is_no_suffix_of_a_recording() -> None:
    names = ["take.1", "take.2", "a 10.00", "a.MP4", "a.wav", "b/a.wav"]
    assert recordings(names) == {name: "a.MP4" if name == "a.wav" else name for name in names}


@pytest.mark.parametrize(
    ("train", "held_out", "both"),
    [
        ("a.mp4,,", "a.mp4,,", 1),
        ("a.mp4,,", "a.mp4,7,1", 1),
        ("a.mp4,0,2", "a.mp4,1,2", 1),
        ("a.mp4,0,2", "a.mp4,2,2", 0),
        ("a.mp4,3,", "a.mp4,,2", 0),
        ("a.mp4,0.96,0.96\na.mp4,2.88,0.96", "a.mp4,0,0.96\na.mp4,1.92,0.96\na.mp4,3.84,0.96", 0),
        ("a.mp4,0,1\na.mp4,8,1\na.mp4,4,1", "a.mp4,3,9\na.mp4,2,1\na.mp4,8.5,0.1", 2),
    ],
    ids=["whole", "a part", "overlapping", "neighbours", "its end, its beginning", "rounded neighbours", "several"],
)
def test_segments_that_meet_are_the_same_sound(tmp_path: Path, train: str, held_out: str, both: int) -> None:
    touch(tmp_path, "a.mp4")
    for name, row in (("train", train), ("test", held_out)):
        (tmp_path / f"{name}.csv").write_text(f"path,start,duration\n{row}\n")
    split = split_source(data(tmp_path / "train.csv", eval_root=str(tmp_path / "test.csv")))
    assert len(shared(split.train.clips, split.held_out.clips)) == both


def test_what_one_set_holds_out_is_not_trained_on_through_another(tmp_path: Path) -> None:
    """A table that has half of a folder's files again."""
    root = touch(tmp_path / "d", *(f"{i}.mp4" for i in range(100)))
    (tmp_path / "again.csv").write_text("\n".join(["path", *(f"d/{i}.mp4" for i in range(50))]))
    alone = split_source(data(root))
    split = split_source(data(root, more=(str(tmp_path / "again.csv"),)))
    trained, held_out = ({clip.path for clip in clips.clips} for clips in split)
    assert {clip.path for clip in alone.held_out.clips} <= held_out
    assert not trained & held_out
    assert len(trained | held_out) == 100
    assert sum(size for size, _ in split.train.parts) == len(split.train)
    assert "held out of another set left out" in split.train.note


def test_small_sets_that_hold_nothing_out_lose_nothing(tmp_path: Path) -> None:
    roots = [touch(tmp_path / name, *(f"{i}.mp4" for i in range(5))) for name in ("a", "b")]
    split = split_source(data(roots[0], more=(str(roots[1]),)))
    assert [size for size, _ in split.train.parts] == [5, 5]


def test_a_set_of_which_nothing_is_left_is_named(tmp_path: Path) -> None:
    root = touch(tmp_path / "d", *(f"{i}.mp4" for i in range(100)))
    held_out = split_source(data(root)).held_out
    table = tmp_path / "again.csv"
    table.write_text("\n".join(["path", *(clip.path for clip in held_out.clips)]))
    with pytest.raises(ValueError, match=r"data\.more=.*must be sets with files that no other one holds out"):
        split_source(data(root, more=(str(table),)))


def test_names_that_are_no_utf8_can_be_held_out(tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / os.fsdecode(b"\xff%d.mp4" % i)).touch()
    train, held_out = split_source(data(tmp_path))
    assert len(train) + len(held_out) == 30
