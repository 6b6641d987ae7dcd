"""`prepare --retry-bad`: what failed is done again, what did not is kept, and the set is that of a first try."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from clip_files import write_clip
from prepared_sets import contents, layout_of, prepare_here, work_through, write_clips

import diffmavil.data.prepare.work as work_module
from diffmavil.config.errors import RunError, UsageError
from diffmavil.data.prepare import job as job_module
from diffmavil.data.prepare.again import forget_failed
from diffmavil.data.prepare.items import Item
from diffmavil.data.prepare.settings import Settings
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
    assert "3 rows that failed are tried again" in said
    assert "6, from 6 of 6 rows" in said
    assert without_sizes(out) == without_sizes(whole)
    main(command(broken, out, "--retry-bad"))
    assert "0 rows that failed are tried again" in capsys.readouterr().out
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
        work_through(layout)
        clips_of = {name for name in without_sizes(out) if name.endswith(".tar")}
        assert clips_of >= {name for name in before if name.endswith(".tar")}
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
    assert "0 rows that failed are tried again" in capsys.readouterr().out
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


def test_a_shard_that_is_not_what_was_written_is_told(broken: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    layout = layout_of(broken, out, per_shard=PER_SHARD)
    work_through(layout)
    (out / "shard-000002.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(ValueError, match=r"shard-000002\.tar: is not the shard that was written"):
        forget_failed(layout, 0, 1)


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
