"""Tables and names as people write them: read as they were meant, or refused with file, line and column."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from clip_files import number_shown, write_clip

from diffmavil.config import AudioConfig, DataConfig, VideoConfig
from diffmavil.data.clips import Clip, ClipSet
from diffmavil.data.decode import decode_clip
from diffmavil.data.prepare.items import Catalog, Item, read_catalog
from diffmavil.data.prepare.settings import Settings
from diffmavil.data.prepare.transcode import Piece, transcode
from diffmavil.data.shards.store import is_remote
from diffmavil.data.sources import open_source, split_source
from diffmavil.prepare import main as prepare

VIDEO, AUDIO = VideoConfig(frames=4, size=32, seconds=0.5, patch=(2, 8, 8)), AudioConfig(frames=48, mels=64)


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def clips_of(root: Path, table: str | bytes) -> ClipSet:
    """The clips of a table beside a.mp4 and b.mp4."""
    touch(root, "a.mp4", "b.mp4")
    data = table.encode() if isinstance(table, str) else table
    (root / "t.csv").write_bytes(data)
    return open_source(DataConfig(root=str(root / "t.csv")))


def rows_of(root: Path, table: str | bytes) -> list[tuple[str, float | None, float | None, list[str]]]:
    """(name, start, duration, labels) of each row."""
    found = clips_of(root, table)
    return [(Path(c.path).name, c.start, c.duration, [found.classes[i] for i in c.labels]) for c in found.clips]


# Clips

MEANT = {
    "spaces": "path, start, duration, labels\na.mp4 , 1.5, 4, dog; cat\n",
    "tabs-and-odd-spaces": "path ,\tstart,\u00a0duration,labels \n a.mp4,\t1.5 , 4\u00a0, dog ;cat \n",
    "capitals": "Path,Start,DURATION,Labels\na.mp4,1.5,4,dog;cat\n",
    "label": "path,start,duration,label\na.mp4,1.5,4,dog;cat\n",
    "end": "path,start,end,labels\na.mp4,1.5,5.5,dog;cat\n",
    "end-and-duration": "path,start,end,duration,labels\na.mp4,1.5,5.5,4.0004,dog;cat\n",
    "other-order": "labels,duration,start,path\ndog;cat,4,1.5,a.mp4\n",
    "quotes": '"path","start","duration","labels"\n"a.mp4", "1.5" ,"4" , "dog;cat"\n',
    "blank-lines": "\npath,start,duration,labels\n\na.mp4,1.5,4,dog;cat\n , ,,\n\n",
    "windows-lines": "path,start,duration,labels\r\na.mp4,1.5,4,dog;cat\r\n",
    "old-mac-lines": "path,start,duration,labels\ra.mp4,1.5,4,dog;cat\r",
    "no-last-line-end": "path,start,duration,labels\na.mp4,1.5,4,dog;cat",
    "a-label-twice": "path,start,duration,labels\na.mp4,1.5,4,dog;cat;dog;\n",
}


@pytest.mark.parametrize("table", MEANT.values(), ids=list(MEANT))
def test_read_as_it_was_meant(tmp_path: Path, table: str) -> None:
    (row,) = rows_of(tmp_path, table)
    assert row == ("a.mp4", 1.5, pytest.approx(4.0, abs=0.001), ["dog", "cat"])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_with_a_mark(tmp_path: Path, encoding: str) -> None:
    table = "path,labels\na.mp4,Trompete spielen; Käuzchen\n"
    assert rows_of(tmp_path, table.encode(encoding)) == [("a.mp4", None, None, ["Trompete spielen", "Käuzchen"])]


def test_cells_in_quotes(tmp_path: Path) -> None:
    touch(tmp_path, 'with,comma and "quotes".mp4', '5" disk.mp4')
    table = 'path,labels\n"with,comma and ""quotes"".mp4","waterfall, burbling"\n5" disk.mp4,""\n'
    assert rows_of(tmp_path, table) == [
        ('with,comma and "quotes".mp4', None, None, ["waterfall, burbling"]),
        ('5" disk.mp4', None, None, []),
    ]


def test_end_without_start_counts_from_the_beginning(tmp_path: Path) -> None:
    assert rows_of(tmp_path, "path,end\na.mp4,2.5\nb.mp4,\n") == [("a.mp4", None, 2.5, []), ("b.mp4", None, None, [])]


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    """A text of several lines is no mistake in a column that is not ours."""
    found = clips_of(tmp_path, '"",path,Caption,labels\n0,a.mp4,"two\nlines",dog\n1,b.mp4,one,cat\n')
    assert found.note == f"2 clips of {tmp_path}/t.csv (columns not read: (column 1, without a name), Caption)"
    assert [found.classes[clip.labels[0]] for clip in found.clips] == ["dog", "cat"]


def test_a_row_for_each_label_is_one_clip_with_all_of_them(tmp_path: Path) -> None:
    found = clips_of(tmp_path, "path,start,label\na.mp4,0,dog\na.mp4,2,dog\na.mp4,0,cat\nb.mp4,0,cat\nb.mp4,0,cat\n")
    told = [(clip.start, sorted(found.classes[label] for label in clip.labels)) for clip in found.clips]
    assert told == [(0, ["cat", "dog"]), (2, ["dog"]), (0, ["cat"]), (0, ["cat"])]
    assert "1 rows give further labels to a clip of an earlier row, the first is line 4" in found.note
    mixed = clips_of(tmp_path, "path,label\na.mp4,x\na.mp4,x\na.mp4,y\na.mp4,x\n")
    assert [clip.labels for clip in mixed.clips] == [(0, 1)] * 3, "each time with all of its labels"
    assert "1 rows give further" in mixed.note


def test_the_note_reaches_the_training_clips_of_a_split(tmp_path: Path) -> None:
    rows = "".join(f"{i}.mp4,x\n" for i in range(40))
    (touch(tmp_path, "0.mp4") / "t.csv").write_text("path,comment\n" + rows)
    split = split_source(DataConfig(root=str(tmp_path / "t.csv")))
    assert split.train.note.startswith(f"{len(split.train)} of the 40 clips of {tmp_path}")
    assert "columns not read: comment" in split.train.note


REFUSED: dict[str, tuple[str | bytes, str]] = {
    "comma-in-a-label": ("path,labels\na.mp4,dog\na.mp4,dog, barking\n", r"line 3: 3 cells, .* 2 columns.*'barking'"),
    "one-comma-too-many": ("path,labels\na.mp4,dog,\n", r"line 2: 3 cells"),
    "open-quote-to-the-end": ('path,labels\na.mp4,x\na.mp4,"dog\nb.mp4,cat\n', r"line 3, column 7: the quote before"),
    "open-quote-to-the-next": ('path,labels\na.mp4,"dog\nb.mp4,"cat"\n', r"line 2, column 7: the quote before 'dog'"),
    "open-quote-to-a-last": (
        'path,labels,start\na.mp4,"dog,\nb.mp4,cat,\nb.mp4,bird", 3\n',
        r"line 2: labels: the quote before 'dog,' is not closed on its line",
    ),
    "text-after-a-quote": ('path,labels\n"a".mp4,dog\n', r"line 2, column 1: the quote before 'a\"\.mp4"),
    "latin-1": ("path,labels\na.mp4,K\u00e4uzchen\n".encode("latin-1"), r"line 2, column 8: byte 0xe4 is not UTF-8"),
    "utf-16-without-mark": ("path\na.mp4\n".encode("utf-16-le"), r"line 1, column 2: a zero byte: .*UTF-16"),
    "cut-off-utf-16": ("path\na.mp4\n".encode("utf-16")[:-1], r"line 2, column 6: byte 0x0a is not UTF-16"),
    "end-and-duration": (
        "path,start,end,duration\na.mp4,1,5,4\na.mp4,1,5,3\n",
        r"line 3: end=5 and duration=3 disagree: from start=1 to the end are 4 s",
    ),
    "end-before-start": ("path,start,end\na.mp4,5,3\n", r"line 2: end='3': must be empty or a number > 5"),
    "end-no-number": ("path,end\na.mp4,0:30\n", r"line 2: end='0:30'"),
    "mids-by-comma": (
        'path,labels\na.mp4,"/m/09x0r,/t/dd00003"\n',
        r"line 2: labels='/m/09x0r,/t/dd00003': must have ';' between",
    ),
    "two-for-one": ("path,label,labels\na.mp4,x,y\n", r"line 1: columns \['label', 'labels'\] all mean 'labels'"),
    "semicolons": ("path;labels\na.mp4;x\n", r"column 'path'.*separate them by commas, not by ';'"),
    "tabs": ("path\tlabels\na.mp4\tx\n", r"separate them by commas, not by '\\t'"),
}


@pytest.mark.parametrize(("table", "message"), REFUSED.values(), ids=list(REFUSED))
def test_refused_with_file_line_and_column(tmp_path: Path, table: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=r"t\.csv.*" + message):
        clips_of(tmp_path, table)


# AudioSet's and VGGSound's lists

CLASSES = 'index,mid,display_name\n2,/m/05tny_,Bark\n0,/m/07q6cd_,"Squeak, quiet"\n1,/m/068hy,Animal\n'
SEGMENTS = '--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/07q6cd_"\nabcdefghijk, 30.000, 40.000, "/m/05tny_"\n'
HEADER = "YTID, start_seconds, end_seconds, positive_labels\n"


def catalog_of(root: Path, table: str, *files: str, classes: str | None = None, **arguments) -> Catalog:
    touch(root / "videos", "other.mp4", *files)
    (root / "t.csv").write_text(table)
    if classes is not None:
        (root / "classes.csv").write_text(classes)
    names = None if classes is None else root / "classes.csv"
    return read_catalog(root / "videos", root / "t.csv", names=names, **arguments)


CLASS_LISTS = {
    "plain": CLASSES,
    "blank-last-line": CLASSES + "\n  \n",
    "quoted-header": CLASSES.replace("index,mid,display_name", '"index", "mid","display_name"'),
    "byte-order-mark": "\ufeff" + CLASSES,
    "windows-lines": CLASSES.replace("\n", "\r\n"),
}


@pytest.mark.parametrize("classes", CLASS_LISTS.values(), ids=list(CLASS_LISTS))
def test_class_lists(tmp_path: Path, classes: str) -> None:
    catalog = catalog_of(tmp_path, SEGMENTS, "--4gqARaEJE.mp4", classes=classes)
    assert catalog.classes == ["Squeak, quiet", "Animal", "Bark"]
    assert [item.labels for item in catalog.items] == [("Animal", "Squeak, quiet"), ("Bark",)]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (CLASSES + "3,/m/x\n", r"classes\.csv, line 5: 2 cells: must be index, mid"),
        (CLASSES + "x,/m/x,X\n", r"line 5: index='x': must be a whole number"),
        (CLASSES + "3,/m/068hy,Beast\n", "names each index and each mid once"),
        (CLASSES + '3,/m/x,"X\n', r"line 5, column 8: the quote before 'X'"),
    ],
    ids=["cells", "index", "twice", "quote"],
)
def test_wrong_class_lists(tmp_path: Path, classes: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        catalog_of(tmp_path, SEGMENTS, classes=classes)


HEADS = {"none": "", "comment": "# made by hand\n", "header": HEADER, "header-in-a-comment": "# " + HEADER + "\n"}


@pytest.mark.parametrize("head", HEADS.values(), ids=list(HEADS))
def test_segments_with_any_head(tmp_path: Path, head: str) -> None:
    catalog = catalog_of(tmp_path, head + SEGMENTS, "--4gqARaEJE.mp4")
    found = [(item.source, item.start, item.duration, item.labels) for item in catalog.items]
    assert found == [
        ("--4gqARaEJE.mp4", 0.0, 10.0, ("/m/068hy", "/m/07q6cd_")),
        ("abcdefghijk", 30.0, 10.0, ("/m/05tny_",)),
    ]


VGGSOUND_HEADS = ["", "# YouTube ID, start seconds, label, train/test split.\n", "id,start,label,split\n"]


@pytest.mark.parametrize("head", VGGSOUND_HEADS, ids=["none", "comment", "header"])
def test_vggsound_with_any_head(tmp_path: Path, head: str) -> None:
    table = head + 'abcdefghijk,30,"waterfall, burbling",train\n\nlmnopqrstuv,1.5,x,test\n'
    catalog = catalog_of(tmp_path, table, "abcdefghijk.mp4", split="train")
    (item,) = catalog.items
    assert (item.source, item.start, item.labels) == ("abcdefghijk.mp4", 30.0, ("waterfall, burbling",))


@pytest.mark.parametrize(
    "name",
    ["_000030", "_30", "_30.0", "_30.000", "_30000", "_30_40", "_000030_000040", "_30.0_40.0", "-30-40", "-30",
     "_30000_40000", "_30.000_40.000", "_30-40", "_030_040"],
)  # fmt: skip
@pytest.mark.parametrize("head", ["abcdefghijk", "Yabcdefghijk", "-12_30-4_50"])
def test_names_with_a_time_hold_the_segment_alone(tmp_path: Path, head: str, name: str) -> None:
    table = f'{head.removeprefix("Y")},30.000,40.000,"/m/05tny_"\n'
    (item,) = catalog_of(tmp_path, table, f"{head}{name}.mp4").items
    assert (item.source, item.start, item.duration, item.maybe_cut) == (f"{head}{name}.mp4", None, None, False)


def test_the_right_one_of_several_segments(tmp_path: Path) -> None:
    files = ("abcdefghijk_0_10.mp4", "abcdefghijk_30_40.mp4", "abcdefghijk_30_35.mp4", "lmnopqrstuv_50.mp4")
    table = "abcdefghijk,30,40,a\nabcdefghijk,0,10,a\nabcdefghijk,60,70,a\nlmnopqrstuv,30,40,a\n"
    items = catalog_of(tmp_path, table, *files).items
    assert [item.source for item in items] == [files[1], files[0], "abcdefghijk", "lmnopqrstuv"]
    assert [item.reason for item in items] == ["", "", *["files of this id, but of other times"] * 2]


def test_an_id_that_ends_like_a_time(tmp_path: Path) -> None:
    (item,) = catalog_of(tmp_path, "abcdefgh-30,5,15,a\n", "abcdefgh-30.mp4").items
    assert (item.source, item.start, item.maybe_cut) == ("abcdefgh-30.mp4", 5.0, True)


# Files and folders

SUFFIXES = {".3gp": "aac", ".flv": "aac", ".asf": "aac", ".ogv": "flac", ".ts": "aac", ".m2ts": "aac", ".WMV": "aac"}
LISTED = (*SUFFIXES, ".3g2", ".mts", ".mpe", ".vob", ".f4v", ".ogm")


def test_what_libav_opens_is_a_video(tmp_path: Path) -> None:
    files = sorted(touch(tmp_path, *(f"{suffix[1:]}{suffix}" for suffix in LISTED)).iterdir())
    assert [Path(clip.path) for clip in open_source(DataConfig(root=str(tmp_path))).clips] == files


@pytest.mark.parametrize(("suffix", "sound"), SUFFIXES.items(), ids=list(SUFFIXES))
def test_and_it_is_seen_and_heard(tmp_path: Path, suffix: str, sound: str) -> None:
    picture = {".ogv": "libvpx", ".asf": "mpeg4", ".WMV": "mpeg4"}.get(suffix, "libx264")
    write_clip(tmp_path / f"a{suffix}", codecs=(picture, sound), seconds=2.0)
    (clip,) = open_source(DataConfig(root=str(tmp_path))).clips
    decoded = decode_clip(clip.path, VIDEO, AUDIO)
    shown = [number_shown(frame) for frame in decoded.video]
    assert shown == sorted(set(shown))
    assert 15 <= shown[0] < shown[-1] <= 35  # half a second in the middle of two
    assert abs(decoded.wave).max() > 0.1


@pytest.mark.parametrize("suffix", [".ts", ".m2ts"])
def test_the_first_keyframe_of_a_stream_without_index(tmp_path: Path, suffix: str) -> None:
    """Its decoding time lies before the start of the file, where seeking by decoding times did not find it."""
    # One group of pictures; sound begins a little later, as ffmpeg writes it.
    path = write_clip(tmp_path / f"a{suffix}", seconds=1.2, fps=10, audio_start=0.06)
    decoded = decode_clip(str(path), VIDEO, AUDIO, crop=(0, 8))
    shown = [number_shown(frame) for frame in decoded.video]
    assert shown == sorted(set(shown))
    assert 0 <= shown[0] < shown[-1] <= 6


def test_an_old_flv_whose_sound_begins_first(tmp_path: Path) -> None:
    """Before its first keyframe libav knows no place to seek to."""
    path = write_clip(tmp_path / "a.flv", seconds=2.0, video_start=0.1, rate=22_050, codecs=("flv1", "libmp3lame"))
    decoded = decode_clip(str(path), VIDEO, AUDIO, crop=(0, 8))
    assert 0 <= number_shown(decoded.video[0]) <= 5
    (piece,) = transcode(Item(0, str(path), "a.flv"), Settings(), 60.0)
    assert isinstance(piece, Piece)
    assert piece.frames == 50
    assert not piece.silent


def test_what_is_not_looked_at_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = touch(tmp_path / "src", "a/x.txt", "a/y.TXT", "z.json", "README", "a/.hidden", ".cache/k.txt")
    with pytest.raises(ValueError, match=r"no video found.*; not looked at: 2 \.txt, 1 without a suffix, 1 \.json"):
        open_source(DataConfig(root=str(root)))
    write_clip(root / "a.mkv", seconds=1.0, codecs=("libx264", "flac"))
    aside = "not looked at: 2 .txt, 1 without a suffix, 1 .json"
    assert open_source(DataConfig(root=str(root))).note == f"1 clips of {root} ({aside})"
    prepare([str(root), str(tmp_path / "out"), "--workers", "1"])
    before, summary = capsys.readouterr().out.split("clips kept")
    assert aside in before
    assert aside in " ".join(summary.replace("│", " ").split())


def test_many_kinds_are_cut_short(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", *(f"{i}.x{i}" for i in range(11)))
    assert "1 .x6, 3 of 3 more kinds)" in open_source(DataConfig(root=str(tmp_path))).note


def test_a_colon_in_a_relative_name_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "2024-01-01T10:30:00.mp4"
    write_clip(tmp_path / "a.mp4", seconds=2.0).rename(tmp_path / name)
    (tmp_path / "t.csv").write_text(f"path\n{name}\n")
    monkeypatch.chdir(tmp_path)
    for root in (".", "t.csv"):
        (clip,) = open_source(DataConfig(root=root)).clips
        shown = [number_shown(frame) for frame in decode_clip(clip.path, VIDEO, AUDIO).video]
        assert 15 <= shown[0] < shown[-1] <= 35
        (item,) = read_catalog(Path(root), None).items
        assert item.source == name
        (piece,) = transcode(item, Settings(), 60.0)
        assert isinstance(piece, Piece)
        assert piece.seconds == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize(
    ("root", "remote"),
    [
        ("s3://bucket/set", True),
        ("HTTP://host/set", True),
        ("simplecache::s3://bucket/set", True),
        ("2024-01-01T10:30:00", False),
        ("10:30://x", False),
        ("/data/s3://bucket", False),
        ("./s3://bucket", False),
    ],
)
def test_what_is_a_url(root: str, remote: bool) -> None:
    assert is_remote(root) is remote


def linked(tmp_path: Path) -> Path:
    """A folder with links to a file and a folder outside, to itself, and to a folder inside."""
    touch(tmp_path / "store", "one.mp4", "more/two.mp4")
    root = touch(tmp_path / "root", "b.mp4", "deep/er/c.mp4")
    (root / "one.mp4").symlink_to(tmp_path / "store" / "one.mp4")
    (root / "a-link").symlink_to(tmp_path / "store" / "more")
    (root / "again").symlink_to(tmp_path / "store" / "more")
    (root / "0-inside").symlink_to(root / "deep" / "er")
    (root / "loop").symlink_to(root)
    return root


FOLLOWED = ["a-link/two.mp4", "b.mp4", "deep/er/c.mp4", "one.mp4"]


def test_training_and_prepare_follow_the_same_links(tmp_path: Path) -> None:
    root = linked(tmp_path)
    clips = open_source(DataConfig(root=str(root))).clips
    assert [os.path.relpath(clip.path, root) for clip in clips] == FOLLOWED
    items = read_catalog(root, None).items
    assert [(item.source, item.path, item.reason) for item in items] == [
        (name, clip.path, "") for name, clip in zip(FOLLOWED, clips, strict=True)
    ]


def test_links_can_be_refused(tmp_path: Path) -> None:
    root = linked(tmp_path)
    reasons = {item.source: item.reason for item in read_catalog(root, None, follow_links=False).items}
    out = "a link that leads out of the folder (--follow-links reads it)"
    assert reasons == {"a-link/two.mp4": out, "b.mp4": "", "deep/er/c.mp4": "", "one.mp4": out}
    (tmp_path / "t.csv").write_text("one,0,10,a\nb,0,10,a\n")
    items = read_catalog(root, tmp_path / "t.csv", follow_links=False).items
    assert [(item.source, item.reason) for item in items] == [("one.mp4", out), ("b.mp4", "")]


def test_items_and_clips_name_files_alike(tmp_path: Path) -> None:
    (touch(tmp_path, "v/a.mp4") / "t.csv").write_text("path,start,end\nv/a.mp4,1,2\n")
    (clip,) = open_source(DataConfig(root=str(tmp_path / "t.csv"))).clips
    assert clip == Clip(str(tmp_path / "v/a.mp4"), 1.0, 1.0)
    assert read_catalog(tmp_path / "t.csv", None).items == [Item(0, clip.path, "v/a.mp4", 1.0, 1.0)]
