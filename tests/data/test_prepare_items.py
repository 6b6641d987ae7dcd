"""Which work a folder and a CSV describe."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffmavil.data.prepare.items import read_catalog

AUDIOSET = """# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=3, num_segs=3
# YTID, start_seconds, end_seconds, positive_labels
--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/07q6cd_"
Y_iUX8CibEk, 30.000, 40.000, "/m/05tny_"
no_such_fil, 30.000, 40.000, "/m/05tny_"
"""
VGGSOUND = """---g-f_I2yQ,1,"people marching",test
--0PQM4-hqg,30,"waterfall, burbling",train
"""


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_folder(tmp_path: Path) -> None:
    catalog = read_catalog(touch(tmp_path, "dog/b.mp4", "cat/a.mp4", "c.mp4", "notes.txt"), None)
    assert [(item.number, item.source, item.labels) for item in catalog.items] == [
        (0, "c.mp4", ()), (1, "cat/a.mp4", ("cat",)), (2, "dog/b.mp4", ("dog",)),
    ]  # fmt: skip
    assert catalog.classes == ["cat", "dog"]
    assert [item.path for item in catalog.items] == [str(tmp_path / item.source) for item in catalog.items]


def test_our_csv_has_paths_relative_to_the_folder(tmp_path: Path) -> None:
    touch(tmp_path / "videos", "a.mp4")
    table = write(tmp_path / "t.csv", "path,start,duration,labels\na.mp4,1,4,dog;cat\na.mp4,5,4,\n")
    catalog = read_catalog(tmp_path / "videos", table)
    assert [(i.path, i.start, i.duration, i.labels) for i in catalog.items] == [
        (str(tmp_path / "videos/a.mp4"), 1.0, 4.0, ("dog", "cat")),
        (str(tmp_path / "videos/a.mp4"), 5.0, 4.0, ()),
    ]


def test_a_csv_alone_is_a_source(tmp_path: Path) -> None:
    table = write(touch(tmp_path, "v/a.mp4") / "t.csv", "path\nv/a.mp4\n")
    assert [item.source for item in read_catalog(table, None).items] == ["v/a.mp4"]


def test_audioset(tmp_path: Path) -> None:
    touch(tmp_path / "videos", "--4gqARaEJE.mp4", "x/YY_iUX8CibEk_30000_40000.mkv")
    catalog = read_catalog(tmp_path / "videos", write(tmp_path / "t.csv", AUDIOSET))
    first, second, third = catalog.items
    assert (first.source, first.start, first.duration, first.maybe_cut) == ("--4gqARaEJE.mp4", 0.0, 10.0, True)
    assert first.labels == ("/m/068hy", "/m/07q6cd_")
    # Its name says that it is the segment alone.
    assert (second.source, second.start, second.duration) == ("x/YY_iUX8CibEk_30000_40000.mkv", None, None)
    assert (third.path, third.source, third.reason) == ("", "no_such_fil", "no file of this id")
    assert catalog.classes == ["/m/05tny_", "/m/068hy", "/m/07q6cd_"]


def test_audiosets_class_list_gives_names_and_order(tmp_path: Path) -> None:
    touch(tmp_path / "videos", "--4gqARaEJE.mp4")
    names = 'index,mid,display_name\n0,/m/07q6cd_,"Squeak, quiet"\n1,/m/068hy,Animal\n2,/m/05tny_,Bark\n'
    catalog = read_catalog(
        tmp_path / "videos", write(tmp_path / "t.csv", AUDIOSET), names=write(tmp_path / "c.csv", names)
    )
    assert catalog.classes == ["Squeak, quiet", "Animal", "Bark"]
    assert catalog.items[0].labels == ("Animal", "Squeak, quiet")


@pytest.mark.parametrize(("split", "ids"), [(None, 2), ("train", 1)])
def test_vggsound(tmp_path: Path, split: str | None, ids: int) -> None:
    touch(tmp_path / "videos", "--0PQM4-hqg_000030.mp4", "---g-f_I2yQ.mp4")
    catalog = read_catalog(tmp_path / "videos", write(tmp_path / "t.csv", VGGSOUND), split=split)
    assert len(catalog.items) == ids
    last = catalog.items[-1]
    assert (last.source, last.start, last.labels) == ("--0PQM4-hqg_000030.mp4", None, ("waterfall, burbling",))
    if split is None:
        first = catalog.items[0]
        assert (first.start, first.duration, first.maybe_cut) == (1.0, 10.0, True)


def test_links_out_of_the_folder_are_named_when_not_wanted(tmp_path: Path) -> None:
    touch(tmp_path / "store", "a.mp4")
    root = touch(tmp_path / "root", "b.mp4")
    (root / "out.mp4").symlink_to(tmp_path / "store" / "a.mp4")
    (root / "in.mp4").symlink_to(root / "b.mp4")
    (root / "broken.mp4").symlink_to(root / "absent")
    reasons = {item.source: item.reason for item in read_catalog(root, None, follow_links=False).items}
    assert reasons == {"b.mp4": "", "in.mp4": "", "broken.mp4": "", "out.mp4": reasons["out.mp4"]}
    assert "leads out of the folder" in reasons["out.mp4"]
    assert not any(item.reason for item in read_catalog(root, None).items)


WRONG = {
    "unknown-table": ("a,b\n1,2\n", "its first line is 'a,b'"),
    "no-rows": ("# nothing\n", "a table with rows"),
    "times": ('# \nabc, 10.0, 10.0, "/m/1"\n', r"line 2: ends at 10 s: must end after its start"),
    "no-number": ('# \nabc, soon, 10.0, "/m/1"\n', "line 2: 'soon': must be a number of seconds"),
    "cells": ("# \nabc, 1.0\n", "line 2: 2 cells"),
    "vgg-cells": ("id,1,x,train\nid,1\n", "line 2: 2 cells"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=list(WRONG))
def test_wrong_tables(tmp_path: Path, text: str, message: str) -> None:
    touch(tmp_path / "videos", "a.mp4")
    with pytest.raises(ValueError, match=message):
        read_catalog(tmp_path / "videos", write(tmp_path / "t.csv", text))


def test_wrong_arguments(tmp_path: Path) -> None:
    root = touch(tmp_path / "videos", "dog/a.mp4", "cat/a.mp4")
    with pytest.raises(ValueError, match=r"SRC=.*must be a folder of videos or a \.csv file"):
        read_catalog(tmp_path / "absent", None)
    with pytest.raises(ValueError, match=r"--csv=.*must be a file"):
        read_catalog(root, tmp_path / "absent.csv")
    with pytest.raises(ValueError, match="--split='train': must be given with a VGGSound"):
        read_catalog(root, None, split="train")
    with pytest.raises(ValueError, match=r"--split='train': must be absent: .* has no splits"):
        read_catalog(root, write(tmp_path / "t.csv", AUDIOSET), split="train")
    with pytest.raises(ValueError, match="--classes: knows no class 'cat'"):
        read_catalog(root, None, names=write(tmp_path / "names.txt", "dog\nbird\n"))
    with pytest.raises(ValueError, match="no video found"):
        read_catalog(touch(tmp_path / "empty", "a.txt"), None)
