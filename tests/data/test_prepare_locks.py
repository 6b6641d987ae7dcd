"""Several processes that prepare one folder at once: none spoils what another does, with or without locks."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from diffmavil.config.errors import RunError
from diffmavil.data import locks
from diffmavil.data.durable import whole_file
from diffmavil.data.prepare import layout as layout_module
from diffmavil.data.prepare.items import read_catalog
from diffmavil.data.prepare.job import Job
from diffmavil.data.prepare.layout import Layout
from diffmavil.data.prepare.settings import Settings
from diffmavil.prepare import main


@pytest.fixture
def argv(tmp_path: Path) -> list[str]:
    """Of a list of eight clips, none of which was fetched: done at once, since there is nothing to decode."""
    src, table = tmp_path / "src", tmp_path / "table.csv"
    src.mkdir()
    (src / "other.mp4").touch()
    table.write_text("".join(f"clip{number},0,music,train\n" for number in range(8)))
    return [str(src), str(tmp_path / "out"), "--csv", str(table), "--per-shard", "2"]


def layout_at(argv: list[str]) -> Layout:
    """The same as the command's."""
    return Layout(Path(argv[1]), read_catalog(Path(argv[0]), Path(argv[3])), Settings(per_shard=2))


SHARING = {"the-same": ((0, 1), "0/1"), "half": ((0, 1), "0/2"), "whole": ((1, 2), "0/1"), "some": ((2, 4), "0/6")}


@pytest.mark.parametrize(("first", "second"), SHARING.values(), ids=list(SHARING))
def test_parts_that_share_shards_wait_for_each_other(argv: list[str], first: tuple[int, int], second: str) -> None:
    """Both would pack one shard. The message says where the other one runs."""
    layout = layout_at(argv)
    layout.claim()
    with Job(layout, *first, workers=1, deadline=1.0)._alone() as locked:
        assert locked
        told = (
            rf"out: another process \(process {os.getpid()} on \S+\) prepares part {first[0]}/{first[1]}, "
            rf"which has shards of part {second}: wait until it has ended"
        )
        with pytest.raises(RunError, match=told):
            main([*argv, "--shard", second])
        assert not list(layout.state.glob("shard-*"))
    with pytest.raises(RunError, match="no clip could be used"):  # all is done
        main(argv)


def test_who_looks_for_others_looks_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that look at once, both would give up, or neither would see the other."""
    asked: list[tuple[str, bool]] = []
    real = locks.hold

    @contextmanager
    def noting(path: Path, *, wait: bool) -> Iterator[bool]:
        with real(path, wait=wait) as locked:
            asked.append((path.name, wait))
            yield locked
            asked.append((path.name, False))

    monkeypatch.setattr(locks, "hold", noting)
    (tmp_path / "part-0-of-2.lock").touch()
    with locks.hold_part(tmp_path, "part", 0, 4):
        looked = [("parts.lock", True), ("part-0-of-2.lock", False), ("part-0-of-2.lock", False)]
        assert asked == [*looked, ("part-0-of-4.lock", False), ("parts.lock", False)]


APART = {"of-as-many": ((0, 2), (1, 2)), "of-other-numbers": ((0, 2), (3, 4))}


@pytest.mark.parametrize(("first", "second"), APART.values(), ids=list(APART))
def test_parts_that_share_no_shard_run_at_once(
    argv: list[str], first: tuple[int, int], second: tuple[int, int]
) -> None:
    layout = layout_at(argv)
    layout.claim()
    with Job(layout, *first, workers=1, deadline=1.0)._alone() as locked:
        Job(layout, *second, workers=1, deadline=1.0).run(None)
    assert locked
    done = {int(path.stem.removeprefix("shard-")) for path in layout.state.glob("shard-*.json")}
    assert done == set(range(second[0], layout.shards, second[1]))


def test_a_lock_that_nobody_holds_any_more_is_in_nobodys_way(argv: list[str]) -> None:
    """The files stay when a process is killed; an older version wrote nothing in them."""
    layout = layout_at(argv)
    layout.claim()
    (layout.state / "part-0-of-3.lock").touch()
    (layout.state / "part-0-of-1.lock").write_text("process 1 on elsewhere, and much more than the next one writes")
    with Job(layout, 0, 1, workers=1, deadline=1.0)._alone():
        assert (layout.state / "part-0-of-1.lock").read_text().startswith(f"process {os.getpid()} on ")
        assert "much more" not in (layout.state / "part-0-of-1.lock").read_text()


def test_of_two_lists_that_are_claimed_at_once_one_is_refused(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one starts when the first has seen that there is no plan yet."""
    layout = layout_at(argv)
    shorter = replace(layout, catalog=replace(layout.catalog, items=layout.catalog.items[:-1]))
    refused: list[str] = []

    def claim(layout: Layout) -> None:
        try:
            layout.claim()
        except ValueError as error:
            refused.append(str(error))

    second = threading.Thread(target=claim, args=(shorter,))
    write = layout_module.write_whole

    def late(path: Path, data: bytes) -> None:
        monkeypatch.undo()
        second.start()
        second.join(0.5)
        write(path, data)

    monkeypatch.setattr(layout_module, "write_whole", late)
    claim(layout)
    second.join()
    assert len(refused) == 1
    assert "holds other rows: 8, now 7" in refused[0]
    assert json.loads(layout.plan.read_bytes())["rows"] == 8


def test_a_part_that_is_started_late_finds_shards_and_a_plan(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may make them while it looks at the folder."""
    layout = layout_at(argv)
    layout.out.mkdir()

    def late(path: Path) -> Iterator[Path]:
        monkeypatch.undo()
        layout.claim()
        (path / ".shard-000000.tar.tmp").touch()
        return path.iterdir()

    monkeypatch.setattr(Path, "iterdir", late)
    layout.claim()
    assert set(os.listdir(layout.out)) == {".prepare", ".shard-000000.tar.tmp"}


def refuse(reason: int):
    def call(*arguments: object) -> None:
        raise OSError(reason, os.strerror(reason))

    return call


@pytest.mark.parametrize(
    "reason", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=["ENOSYS", "ENOLCK", "EOPNOTSUPP"]
)
def test_a_file_system_without_locks_is_told_and_no_hindrance(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reason: int
) -> None:
    monkeypatch.setattr("fcntl.flock", refuse(reason))
    with pytest.raises(RunError, match="no clip could be used"):
        main([*argv, "--retry-bad"])
    said = capsys.readouterr().out
    assert "its file system knows no locks: no other process may prepare shards of part 0/1 meanwhile" in said
    assert "clips kept" in said


@pytest.mark.parametrize("reason", [errno.EACCES, errno.EIO], ids=["EACCES", "EIO"])
def test_a_lock_that_cannot_be_had_is_an_error_of_one_line(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    monkeypatch.setattr("fcntl.flock", refuse(reason))
    with pytest.raises(RunError, match=rf"cannot write .*\.lock: cannot be locked: {os.strerror(reason)}; nothing"):
        main(argv)


@pytest.mark.parametrize("name", ["set.lock", "part-0-of-1.lock"])
def test_a_lock_that_cannot_be_opened_is_an_error_of_one_line(argv: list[str], name: str) -> None:
    layout = layout_at(argv)
    layout.claim()
    (layout.state / name).unlink(missing_ok=True)
    (layout.state / name).mkdir()
    with pytest.raises(RunError, match=rf"cannot write .*{name}: Is a directory; nothing"):
        main(argv)
    shutil.rmtree(layout.state / name)


def test_two_that_write_one_file_at_once_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In two containers both are process 1."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    path = tmp_path / "file"
    with whole_file(path) as first:
        first.write_bytes(b"first")
        with whole_file(path) as second:
            second.write_bytes(b"se")
        assert path.read_bytes() == b"se"
        assert first.read_bytes() == b"first"
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["file"]
