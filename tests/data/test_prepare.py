"""Preparing: what is in the shards, and that no kill, full disk or division of the work changes a byte of them."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from clip_files import MEDIA
from prepared_sets import DEADLINE, contents, layout_of, prepare_here, work_through, write_clips

from diffmavil.config.errors import CannotWrite, UsageError
from diffmavil.data.prepare import job as job_module
from diffmavil.data.prepare import work as work_module
from diffmavil.data.prepare.items import Item
from diffmavil.data.prepare.job import Job
from diffmavil.data.prepare.layout import Layout
from diffmavil.data.prepare.pack import pack_shard
from diffmavil.data.prepare.settings import Settings
from diffmavil.data.prepare.transcode import transcode
from diffmavil.data.prepare.verify import verify
from diffmavil.data.prepare.work import Worker
from diffmavil.data.shards.index import Index
from diffmavil.prepare import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven clips, one of them no clip."""
    root = write_clips(tmp_path_factory.mktemp("clips"), 6)
    (root / "class0" / "zz.mp4").write_bytes(b"nothing")
    return root


@pytest.fixture(scope="module")
def whole(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set made of them, undisturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    prepare_here(clips, out, per_shard=3)
    return out


def test_shards_are_ordinary_tars(whole: Path) -> None:
    members = {}
    for path in sorted(whole.glob("*.tar")):
        with tarfile.open(path) as tar:
            members |= {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    keys = sorted({name.split(".")[0] for name in members})
    assert keys == [f"{number:08d}-0000" for number in (0, 1, 2, 4, 5, 6)]
    assert {name.split(".")[1] for name in members} == {"mp4", "flac", "json"}
    facts = json.loads(members["00000004-0000.json"])
    assert facts["labels"] == ["class1"]
    assert facts["source"] == "class1/01.mkv"
    assert members["00000000-0000.flac"][:4] == b"fLaC"


def test_the_report_adds_up(clips: Path, whole: Path) -> None:
    facts = json.loads((whole / "dataset.json").read_text())
    assert (facts["rows"], facts["rows_kept"], facts["clips"], facts["skipped"]) == (7, 6, 6, 1)
    assert facts["bytes_in"] == sum(path.stat().st_size for path in clips.rglob("*.m*"))
    assert facts["bytes_out"] == sum(path.stat().st_size for path in whole.glob("*.tar"))
    assert facts["seconds"] == pytest.approx(6 * 1.2, abs=0.1)
    assert (whole / "quarantine.csv").read_text().splitlines()[1:] == [
        "class0/zz.mp4,,cannot be decoded: Invalid data found when processing input"
    ]
    assert facts["audio"]["64"]["std"] > 0.5
    assert len(Index.from_bytes((whole / "index.npz").read_bytes())) == 6


class Killed(BaseException):
    pass


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transcoding twice costs nothing: these tests stop everywhere around it."""
    known: dict[str, list] = {}

    def look_up(item: Item, settings: Settings, *rest: object) -> list:
        if item.source not in known:
            known[item.source] = list(transcode(item, settings, DEADLINE))
        return known[item.source]

    monkeypatch.setattr(work_module, "transcode", look_up)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_killed_anywhere_the_result_is_the_same(
    clips: Path, whole: Path, tmp_path: Path, remembered: None, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Stopped at every write to the disk and every rename, then started again: not one byte differs."""
    real = getattr(os, step)
    left = 0

    def counted(*arguments: object) -> object:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return real(*arguments)

    stop = 0
    for stop in range(1000):
        out, left = tmp_path / str(stop), stop
        with monkeypatch.context() as patch:
            patch.setattr(os, step, counted)
            try:
                prepare_here(clips, out, per_shard=3)
            except Killed:
                pass
            else:
                break
        work_through(layout_of(clips, out, per_shard=3))
        assert {name: data for name, data in contents(out).items() if not name.endswith(".tmp")} == contents(whole)
    assert stop > 20


def test_a_full_disk_loses_nothing(
    clips: Path, whole: Path, tmp_path: Path, remembered: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    layout = layout_of(clips, out, per_shard=3)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for item in layout.items(0):
        Worker(layout.settings, layout.state, DEADLINE)(item)
    for attempt in (lambda: pack_shard(layout, 0), lambda: work_through(layout)):
        before = contents(out)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(CannotWrite, match="No space left on device"):
                attempt()
        assert contents(out) == before
    work_through(layout)
    assert contents(out) == contents(whole)


def test_drafts_of_killed_processes_go_when_the_set_is_finished(
    clips: Path, whole: Path, tmp_path: Path, remembered: None
) -> None:
    layout = layout_of(clips, tmp_path / "out", per_shard=3)
    for name in (".shard-000000.tar.tmp", ".shard-000001.tar.0123abcd.tmp"):  # an older version's, and ours
        (layout.out / name).write_bytes(b"half of it")
    work_through(layout)
    assert contents(layout.out) == contents(whole)


class Backwards:
    """In place of a `Crew`: takes all items, and does the last one first."""

    made = 0

    def __init__(self, worker: Worker, count: int) -> None:
        Backwards.made += 1
        self.worker = worker

    def __enter__(self) -> Backwards:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def run(self, items: Iterable[Item]) -> Iterator[Item]:
        for item in reversed(list(items)):
            self.worker(item)
            yield item


def test_one_crew_does_all_shards_and_each_is_packed_when_it_is_complete(
    clips: Path, whole: Path, tmp_path: Path, remembered: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes do not wait for the last clip of a shard. Of the seven clips a killed run has done two."""
    layout = layout_of(clips, tmp_path / "out", per_shard=3)
    worker, items = Worker(layout.settings, layout.state, DEADLINE), layout.catalog.items
    for item in (items[0], items[6]):  # the second one is all of its shard
        worker(item)
    packed: list[tuple[int, int]] = []

    def counted(layout: Layout, shard: int) -> None:
        packed.append((shard, sum(worker.done(item).exists() for item in items)))
        pack_shard(layout, shard)

    monkeypatch.setattr(job_module, "Crew", Backwards)
    monkeypatch.setattr(job_module, "pack_shard", counted)
    Job(layout, 0, 1, workers=2, deadline=DEADLINE).run(None)
    assert Backwards.made == 1
    assert packed == [(2, 2), (1, 4), (0, 3)]  # and the results that lay there then
    assert contents(layout.out) == contents(whole)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "diffmavil.prepare", *map(str, arguments)]


ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]), "COLUMNS": "200"}


def run(*arguments: object, code: int = 0, **how) -> str:
    done = subprocess.run(command(*arguments), env=ENVIRONMENT, capture_output=True, text=True, timeout=240, **how)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_command_killed_and_out_of_space(clips: Path, whole: Path, tmp_path: Path) -> None:
    """kill -9 as soon as something is done; then no file may grow beyond some bytes; then nothing in the way."""
    out = tmp_path / "out"
    wanted = (clips, out, "--workers", 2, "--per-shard", 3)
    process = subprocess.Popen(command(*wanted), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(out.glob(".prepare/shard-*/*.json")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    assert "File too large; nothing done is lost" in run(*wanted, code=1, preexec_fn=small_files)
    said = run(*wanted)
    assert "6, from 6 of 7 rows" in said
    assert "skipped 1: cannot be decoded: Invalid data" in said
    assert contents(out) == contents(whole)
    assert "whole, and nothing else" in run("--verify", out)


def test_parts_give_the_same_as_one(
    clips: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    wanted = [str(clips), str(out), "--workers", "1", "--per-shard", "3"]
    main([*wanted, "--shard", "1/2"])
    assert "2 of 3 shards are left to other parts" in capsys.readouterr().out
    assert not (out / "dataset.json").exists()
    main([*wanted, "--shard", "0/2"])
    assert contents(out) == contents(whole)


def test_it_refuses_what_it_cannot_continue(clips: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds other settings"):
        layout_of(clips, whole, per_shard=4)
    with pytest.raises(ValueError, match="holds other settings"):
        layout_of(clips, whole, per_shard=3, region=(0.0, 0.0, 1.0, 0.5))
    with pytest.raises(ValueError, match="holds other rows"):
        layout_of(clips / "class0", whole, per_shard=3)
    with pytest.raises(ValueError, match="must be a new or empty folder"):
        layout_of(clips, clips)


def test_files_that_changed_since_and_shards_that_are_lost_are_not_passed_over(clips: Path, tmp_path: Path) -> None:
    """Not as if all were done: a finished set is looked at too."""
    src, out = tmp_path / "src", tmp_path / "out"
    shutil.copytree(clips, src)
    command = [str(src), str(out), "--workers", "1", "--per-shard", "3"]
    main(command)
    first = min(out.glob("*.tar"))
    data = first.read_bytes()
    first.unlink()
    with pytest.raises(
        UsageError, match=rf"the shard {first.name} is missing.*delete .*shard-000000\.json and .*dataset"
    ):
        main(command)
    (out / ".prepare" / "shard-000000.json").unlink()
    (out / "dataset.json").unlink()
    main(command)
    assert first.read_bytes() == data
    file = max(src.rglob("*.mkv"))
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(UsageError, match=r"made of other files: .*\.mkv had .* bytes, now"):
        main(command)
    file.write_bytes(file.read_bytes()[:-1])
    main(command)


def test_wrong_flags_say_what_is_allowed(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ([clips], "SRC and OUT are needed"),
        ([clips, tmp_path / "out", "--shard", "2/2"], r"--shard='2/2': must be i/n with 0 <= i < n"),
        ([clips, tmp_path / "out", "--short-side", "15"], r"--short-side=15: must be even"),
        (
            [clips, tmp_path / "out", "--region", "0", "0.5", "1", "0.5"],
            r"--region=.*: must be left, top, right, bottom",
        ),
        ([tmp_path / "absent", tmp_path / "out"], r"must be a folder of videos or a \.csv file"),
    ):
        with pytest.raises((UsageError, SystemExit)) as caught:
            main([str(argument) for argument in arguments])
        said = " ".join(re.sub("[│╭╮╰╯─]", "", capsys.readouterr().err).split())
        assert re.search(message, said if caught.type is SystemExit else str(caught.value))
        assert caught.type is UsageError or caught.value.args == (2,)
    assert not (tmp_path / "out").exists()


def rewrite(path: Path, change) -> None:
    """The tar with its members changed: (name, data) -> the same, or None to leave it out."""
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    with tarfile.open(path, "w") as tar:
        for member, data in members:
            changed = change(member.name, data)
            if changed:
                member.name, member.size = changed[0], len(changed[1])
                tar.addfile(member, io.BytesIO(changed[1]))


DAMAGE = {
    "whole": (lambda path: None, None),
    "missing": (lambda path: path.unlink(), "is missing"),
    "cut-off": (lambda path: os.truncate(path, path.stat().st_size // 2), "cut off, or changed"),
    "a-bit": (lambda path: path.write_bytes(path.read_bytes().replace(b"mdat", b"mdaT", 1)), "checksum"),
    "escaping-name": (
        lambda path: rewrite(path, lambda name, data: (name.replace("0-0000.json", "0/../../../evil.json"), data)),
        r"evil\.json' does not belong there",
    ),
    "left-out": (lambda path: rewrite(path, lambda name, data: None if "flac" in name else (name, data)), "flac is"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=list(DAMAGE))
def test_verify(whole: Path, tmp_path: Path, damage, message: str | None) -> None:
    out = tmp_path / "inner" / "out"
    for name, data in contents(whole).items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    damage(out / "shard-000000.tar")
    problems = verify(out)
    assert bool(problems) == (message is not None)
    if message:
        assert any(problem.startswith("shard-000000.tar: ") for problem in problems)
        assert re.search(message, "\n".join(problems)), problems
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.skipif(not MEDIA.is_dir(), reason=f"no real clips at {MEDIA} (DIFFMAVIL_MEDIA)")
def test_real_clips(tmp_path: Path) -> None:
    """Each kind of container among the real clips, a second of it."""
    rows = "".join(
        f"{name},1,1,\n" for name in ("LipNet__bbaf2n.mpg", "learning-area__frog.webm", "WebAV__bunny_0.mp4")
    )
    (tmp_path / "t.csv").write_text("path,start,duration,labels\n" + rows)
    facts = prepare_here(MEDIA, tmp_path / "out", table=tmp_path / "t.csv").facts
    assert facts["skipped"] == 0
    assert facts["clips"] == 3
    assert facts["seconds"] == pytest.approx(3.0, rel=0.05)
    assert verify(tmp_path / "out") == []
