"""`prepare --retry-bad`: what failed is done again, what did not is kept, and the set is that of a first try."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import pytest
from clip_files import write_clip
from prepared_sets import contents, layout_of, prepare_here, work_through, write_clips

import diffmavil.data.prepare.work as work_module
from diffmavil.config.errors import RunError, UsageError
from diffmavil.data.prepare import again as again_module
from diffmavil.data.prepare import job as job_module
from diffmavil.data.prepare.again import forget_failed
from diffmavil.data.prepare.items import Item
from diffmavil.data.prepare.settings import Settings
from diffmavil.data.prepare.storage import Storage
from diffmavil.data.prepare.transcode import transcode
from diffmavil.data.shards.index import DATASET_FILE
from diffmavil.prepare import main

PER_SHARD = 2
BROKEN = ("class0/00.mkv", "class0/02.mkv", "class1/03.mkv")
"""Both of the first shard, none of the second, one of the third."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"), 6)


@pytest.fixture(scope="module")
def whole(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    prepare_here(clips, out, per_shard=PER_SHARD)
    return out


@pytest.fixture
def broken(clips: Path, tmp_path: Path) -> Path:
    """The same clips, of which some are cut off."""
    src = shutil.copytree(clips, tmp_path / "broken")
    for name in BROKEN:
        (src / name).write_bytes((src / name).read_bytes()[:500])
    return src


def mend(broken: Path, clips: Path) -> None:
    for name in BROKEN:
        shutil.copy(clips / name, broken / name)


def without_sizes(out: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(out).items() if not name.endswith("plan.json")}


def command(src: Path, out: Path, *flags: str) -> list[str]:
    return [str(src), str(out), "--workers", "1", "--per-shard", str(PER_SHARD), *flags]


def test_mended_files_make_the_set_of_a_first_try(
    clips: Path, whole: Path, broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main(command(broken, out))
    assert "3, from 3 of 6 rows" in capsys.readouterr().out
    mend(broken, clips)
    main(command(broken, out))  # says nothing of other files: nothing was made of these
    assert "3, from 3 of 6 rows" in capsys.readouterr().out
    main(command(broken, out, "--retry-bad"))
    said = capsys.readouterr().out
    assert "rows that failed and are tried again: 3" in said
    assert "6, from 6 of 6 rows" in said
    assert without_sizes(out) == without_sizes(whole)
    main(command(broken, out, "--retry-bad"))
    assert "rows that failed and are tried again: 0" in capsys.readouterr().out
    assert without_sizes(out) == without_sizes(whole)


def test_what_fails_again_leaves_the_set_as_it_was(broken: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main(command(broken, out))
    before = without_sizes(out)
    main(command(broken, out, "--retry-bad"))
    assert without_sizes(out) == before


def test_only_what_failed_is_done_again(
    broken: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = layout_of(broken, tmp_path / "out", per_shard=PER_SHARD)
    work_through(layout)
    mend(broken, clips)
    done: list[str] = []

    def counted(item: Item, settings: Settings, *rest: object) -> list:
        done.append(item.source)
        return list(transcode(item, settings, 60.0))

    monkeypatch.setattr(work_module, "transcode", counted)
    assert forget_failed(layout, 0, 1) == len(BROKEN)
    work_through(layout)
    assert sorted(done) == sorted(BROKEN)


def test_each_part_retries_its_own(broken: Path, clips: Path, whole: Path, tmp_path: Path) -> None:
    layout = layout_of(broken, tmp_path / "out", per_shard=PER_SHARD)
    work_through(layout)
    mend(broken, clips)
    assert [forget_failed(layout, part, 3) for part in range(3)] == [2, 0, 1]
    work_through(layout)
    assert without_sizes(layout.out) == without_sizes(whole)


def test_parts_that_are_started_at_once_do_not_finish_each_others_sets(
    broken: Path, clips: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Part 1 of 3 has nothing to do: while part 0 takes its shard apart, it must not call the set finished."""
    out = tmp_path / "out"
    main(command(broken, out))
    mend(broken, clips)
    taken_apart, waiting, real = threading.Event(), threading.Event(), again_module._take_apart

    def slowly(*arguments: object) -> None:
        taken_apart.set()
        waiting.wait(2)
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(again_module, "_take_apart", slowly)
    parts = [
        threading.Thread(target=main, args=(command(broken, out, "--retry-bad", "--shard", f"{part}/3"),))
        for part in range(3)
    ]
    parts[0].start()
    assert taken_apart.wait(30)
    parts[1].start()
    parts[1].join(0.5)
    waiting.set()
    parts[2].start()
    for part in parts:
        part.join(120)
    assert without_sizes(out) == without_sizes(whole)
    main(command(broken, out))  # the set is one


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", ["fsync", "replace", "unlink"])
def test_killed_anywhere_nothing_is_lost(
    broken: Path, clips: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Stopped at every write, rename and removal: the plain command gives the same clips, the retry gives all."""
    first = layout_of(broken, tmp_path / "first", per_shard=PER_SHARD)
    work_through(first)
    before = without_sizes(first.out)
    mend(broken, clips)
    known = {item.source: list(transcode(item, first.settings, 60.0)) for item in first.catalog.items}
    monkeypatch.setattr(work_module, "transcode", lambda item, *_: known[item.source])
    real, left = getattr(os, step), 0

    def counted(*arguments: object, **named: object) -> object:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return real(*arguments, **named)

    stops = 0
    for stops in range(100):
        out = shutil.copytree(first.out, tmp_path / str(stops))
        layout = layout_of(broken, out, per_shard=PER_SHARD)
        left = stops
        with monkeypatch.context() as patch:
            patch.setattr(os, step, counted)
            try:
                forget_failed(layout, 0, 1)
            except Killed:
                pass
            else:
                break
        layout = layout_of(broken, out, per_shard=PER_SHARD)
        work_through(layout)
        for name, data in without_sizes(out).items():
            assert not name.endswith(".tar") or data in (before.get(name), without_sizes(whole)[name])
        assert 3 <= json.loads((out / DATASET_FILE).read_bytes())["clips"] <= 6
        forget_failed(layout, 0, 1)
        work_through(layout)
        drafts = {name: data for name, data in without_sizes(out).items() if not name.endswith(".tmp")}
        assert drafts == without_sizes(whole)
    assert stops >= 3


def test_files_of_a_table_of_ids_may_come_later(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """AudioSet's and VGGSound's tables name segments, not files."""
    src, out, table = tmp_path / "src", tmp_path / "out", tmp_path / "table.csv"
    src.mkdir()
    shutil.copy(clips / "class0" / "00.mkv", src / "first.mkv")
    table.write_text("first,0,music,train\nsecond,0,music,train\n")
    main(command(src, out, "--csv", str(table)))
    assert "skipped 1: no file of this id" in capsys.readouterr().out
    main(command(src, out, "--csv", str(table), "--retry-bad"))
    assert "rows that failed and are tried again: 0" in capsys.readouterr().out
    shutil.copy(clips / "class1" / "01.mkv", src / "second_0.mkv")
    main(command(src, out, "--csv", str(table), "--retry-bad"))
    assert "2, from 2 of 2 rows" in capsys.readouterr().out
    (src / "second_0.mkv").rename(src / "third.mkv")
    table.write_text("first,0,music,train\nthird,0,music,train\n")
    with pytest.raises(UsageError, match="a list of other rows"):
        main(command(src, out, "--csv", str(table)))


def test_a_lost_disk_is_no_fault_of_its_files(
    clips: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends the run when the first file is missed; when the disk is back, the set is whole."""
    src, out = shutil.copytree(clips, tmp_path / "src"), tmp_path / "out"
    table = tmp_path / "table.csv"
    files = sorted(str(path.relative_to(src)) for path in src.rglob("*.mkv"))
    table.write_text("path\n" + "".join(f"{src / file}\n" for file in files))

    def lose(layout: object, shard: int) -> None:
        src.rename(tmp_path / "away")
        monkeypatch.undo()

    monkeypatch.setattr(job_module, "pack_shard", lose)
    with pytest.raises(RunError, match="are gone; nothing done is lost: once they are back, the same command"):
        main(command(table, out))
    with pytest.raises(UsageError, match="none of its 6 paths exists"):
        main(command(table, out))
    (tmp_path / "away").rename(src)
    main(command(table, out, "--retry-bad"))
    assert (out / DATASET_FILE).exists()
    assert len(list(out.glob("*.tar"))) == len(list(whole.glob("*.tar")))
    assert '"clips": 6' in (out / DATASET_FILE).read_text()


def test_a_disk_that_fails_ends_the_run(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its files are there, and none can be read; when they can, the set is whole."""
    if not Path("/proc/self/mem").exists():
        pytest.skip("no file that gives EIO")
    src, out, table = tmp_path / "src", tmp_path / "out", tmp_path / "table.csv"
    src.mkdir()
    files = [src / f"{number:02}.mkv" for number in range(12)]
    whole = clips / "class0" / "00.mkv"
    for number, file in enumerate(files):
        file.symlink_to(whole if number < 2 else "/proc/self/mem")
    table.write_text("path\n" + "".join(f"{file}\n" for file in files))
    with pytest.raises(RunError, match=r"8 files in a row cannot be read, the last of them .*09\.mkv .*Input/output"):
        main(command(table, out))
    assert not (out / DATASET_FILE).exists()
    for file in files[2:]:
        file.unlink()
        file.symlink_to(whole)
    main(command(table, out, "--retry-bad"))
    said = capsys.readouterr().out
    assert "rows that failed and are tried again: 8" in said
    assert "12, from 12 of 12 rows" in said


def test_files_here_and_there_that_cannot_be_read_do_not_end_a_run(tmp_path: Path) -> None:
    """Nor do many parts of one such file."""
    storage, outcome = Storage(), tmp_path / "00000000.json"
    for number in range(40):
        outcome.write_text(json.dumps({"bad": [] if number % 8 == 7 else ["cannot be read: Input/output error"]}))
        storage.look(f"{number}.mkv", outcome)
    for _ in range(40):
        storage.look("one.mkv", outcome)
    outcome.write_text(json.dumps({"bad": ["cannot be decoded: Invalid data"]}))
    for number in range(40):
        storage.look(f"{number}.mkv", outcome)


def test_a_table_of_which_little_is_there_is_no_lost_disk(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("diffmavil.data.prepare.layout._LOOKED_AT", 2)
    table, there = tmp_path / "table.csv", clips / "class0" / "00.mkv"
    table.write_text("path\n/nowhere/0.mkv\n/nowhere/1.mkv\n/nowhere/2.mkv\n" + f"{there}\n")
    main(command(table, tmp_path / "out"))
    assert "1, from 1 of 4 rows" in capsys.readouterr().out


@pytest.mark.parametrize("damage", [lambda data: b"no tar" + data[6:], lambda data: data[:-1]], ids=["other", "short"])
def test_a_shard_that_is_not_what_was_written_is_told(broken: Path, tmp_path: Path, damage) -> None:
    out = tmp_path / "out"
    layout = layout_of(broken, out, per_shard=PER_SHARD)
    work_through(layout)
    shard = out / "shard-000002.tar"
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(ValueError, match=r"shard-000002\.tar: is missing, or not the shard"):
        forget_failed(layout, 0, 1)
    assert layout.record(2).exists(), "nothing of it was taken back"


def test_some_pieces_of_a_clip_may_have_failed(tmp_path: Path) -> None:
    """It is done again as a whole, and no piece is there twice."""
    src, out = tmp_path / "src", tmp_path / "out"
    src.mkdir()
    write_clip(src / "a.mkv", seconds=4.0, codecs=("libx264", "flac"))
    layout = layout_of(src, out, per_shard=PER_SHARD, cut=1.0)
    work_through(layout)
    before = contents(out)
    # As if one of its pieces had taken too long.
    record = layout.record(0)
    record.write_bytes(record.read_bytes().replace(b'"bad":[]', b'"bad":["not decoded within the deadline of 1 s"]'))
    assert contents(out) != before
    assert forget_failed(layout, 0, 1) == 1
    work_through(layout)
    assert without_sizes(out) == {name: data for name, data in before.items() if not name.endswith("plan.json")}
