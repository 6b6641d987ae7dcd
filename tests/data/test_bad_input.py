"""Every kind of bad file, prepared and in training: kept if there is something to keep, else named with the reason."""

from __future__ import annotations

import errno
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
import pytest
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream
from clip_files import cut_off, numbered, rotate_clockwise, write_clip
from prepared_sets import DEADLINE, layout_of, work_through

from diffmavil.config import AudioConfig, VideoConfig
from diffmavil.data.decode import BadClip, decode_clip
from diffmavil.data.library import open_container, packets_of
from diffmavil.data.media import Deadline, Media
from diffmavil.data.prepare.crew import Crew
from diffmavil.data.prepare.items import Item
from diffmavil.data.prepare.settings import Settings
from diffmavil.data.prepare.transcode import Piece, transcode
from diffmavil.data.prepare.work import Worker

VIDEO, AUDIO = VideoConfig(frames=4, size=32, seconds=0.5, patch=(2, 8, 8)), AudioConfig(frames=48, mels=64)
LOSSLESS = ("ffv1", "flac")


def garbage(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(20_000))


def text(path: Path) -> None:
    path.write_text("<html>404</html>")


def two_pictures(path: Path) -> None:
    """Two video streams, black first, then white."""
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=25) for _ in range(2)]
        sound = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        packets = []
        for stream in streams:  # before the first packet writes the header
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
        for stream, value in zip(streams, (0, 255), strict=True):
            for index in range(40):
                frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), value, np.uint8), format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 25)
                packets += stream.encode(frame)
            packets += stream.encode(None)
        noise = (3000 * np.random.default_rng(0).standard_normal((1, 25_600))).astype(np.int16)
        for at in range(0, 25_600, 640):
            samples = av.AudioFrame.from_ndarray(noise[:, at : at + 640].copy(), format="s16", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = 16_000, at, Fraction(1, 16_000)
            packets += sound.encode(samples)
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            container.mux(packet)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def paint_white(width: int, height: int) -> Callable[[int], np.ndarray]:
    return lambda index: np.full((height, width, 3), 255, np.uint8)


Make = Callable[[Path], object]
UNUSABLE: dict[str, tuple[str, Make, str]] = {
    "no-audio-stream": ("a.mp4", lambda p: write_clip(p, codecs=("libx264", None), seconds=1), "no audio stream"),
    "no-video-stream": ("a.mp4", lambda p: write_clip(p, codecs=(None, "aac"), seconds=1), "no video stream"),
    "zero-length": ("a.mp4", lambda p: p.touch(), "cannot be decoded: Invalid data"),
    "garbage-bytes": ("a.mkv", garbage, "cannot be decoded: Invalid data"),
    "wrong-extension-text": ("a.mp4", text, "cannot be decoded: Invalid data"),
    "index-cut-off": ("a.mp4", lambda p: cut_off(write_clip(p), 0.8), "cannot be decoded"),
    "one-frame": ("a.mkv", lambda p: write_clip(p, times=[0.0], codecs=LOSSLESS), "s with both picture"),
    "a-pipe": ("a.mp4", pipe, "not a regular file"),
    "a-folder": ("a.mp4", lambda p: p.mkdir(), "not a regular file"),
    "a-broken-link": ("a.mp4", lambda p: p.symlink_to("absent"), "No such file"),
    "a-link-to-itself": ("a.mp4", lambda p: p.symlink_to(p), "symbolic links|No such file"),
}
ONE_PIXEL = ("a.mkv", lambda p: write_clip(p, paint=paint_white(1, 1), pixels="yuv444p", codecs=LOSSLESS, seconds=1))
KEPT: dict[str, tuple[str, Make]] = {
    "wrong-extension-video": ("a.avi", lambda p: write_clip(p.with_suffix(".mp4"), seconds=2).rename(p)),
    "truncated": ("a.mkv", lambda p: cut_off(write_clip(p, seconds=4, codecs=("libx264", "flac")), 0.6)),
    "odd-sizes": ("a.mkv", lambda p: write_clip(p, paint=numbered(65, 47), pixels="yuv444p", codecs=LOSSLESS)),
    "10-bit": ("a.mkv", lambda p: write_clip(p, pixels="yuv420p10le", codecs=LOSSLESS)),
    "variable-frame-rate": ("a.mkv", lambda p: write_clip(p, times=[0, 0.1, 0.15, 0.7, 0.71, 1.5, 2.0])),
    "rotated": ("a.mp4", lambda p: rotate_clockwise(write_clip(p, paint=numbered(96, 64)))),
    "8-khz-mono": ("a.mkv", lambda p: write_clip(p, rate=8000, codecs=("libx264", "flac"))),
    "5.1": ("a.mkv", lambda p: write_clip(p, rate=48_000, layout="5.1", codecs=("libx264", "flac"))),
    "silent": ("a.mkv", lambda p: write_clip(p, sound=np.zeros(48_000), codecs=("libx264", "flac"))),
    "two-video-streams": ("a.mkv", two_pictures),
    "unicode-name": ("ключ 🎥 \u202e.mkv", lambda p: write_clip(p, codecs=("libx264", "flac"))),
    "very-long-name": ("x" * 251 + ".mkv", lambda p: write_clip(p, codecs=("libx264", "flac"))),
}


def prepared(path: Path, **settings) -> list[Piece | BadClip]:
    return list(transcode(Item(0, str(path), path.name), Settings(**settings), DEADLINE))


@pytest.mark.parametrize(("name", "make", "reason"), UNUSABLE.values(), ids=list(UNUSABLE))
def test_unusable(tmp_path: Path, name: str, make: Make, reason: str) -> None:
    make(tmp_path / name)
    with pytest.raises(BadClip, match=reason):
        decode_clip(str(tmp_path / name), VIDEO, AUDIO)
    (found,) = prepared(tmp_path / name)
    assert isinstance(found, BadClip)
    with pytest.raises(BadClip, match=reason):
        raise found


@pytest.mark.parametrize(("name", "make"), KEPT.values(), ids=list(KEPT))
def test_kept(tmp_path: Path, name: str, make: Make, request: pytest.FixtureRequest) -> None:
    make(tmp_path / name)
    decoded = decode_clip(str(tmp_path / name), VIDEO, AUDIO)
    (piece,) = prepared(tmp_path / name)
    assert isinstance(piece, Piece)
    case = request.node.callspec.id
    assert piece.silent == (case == "silent")
    assert decoded.wave.any() == (case != "silent")
    sizes = {"odd-sizes": (64, 48), "rotated": (64, 96)}
    assert (piece.width, piece.height) == sizes.get(case, (64, 64))
    if case == "truncated":
        assert 1.0 < piece.seconds < 3.5  # as far as it goes, and no second more
        assert piece.samples < 3.5 * 16_000
    elif case == "two-video-streams":
        assert decoded.video.max() < 10
    elif case == "variable-frame-rate":
        assert piece.frames == 7
    elif case in ("8-khz-mono", "5.1"):
        assert piece.samples == pytest.approx(48_000, abs=20)


def test_one_pixel(tmp_path: Path) -> None:
    name, make = ONE_PIXEL
    make(tmp_path / name)
    (found,) = prepared(tmp_path / name)
    assert isinstance(found, BadClip)
    assert found.reason == "a picture of 1x1 pixels: both sides must have 16 at least"


def test_silent_clips_can_be_left_out(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", sound=np.zeros(48_000), codecs=("libx264", "flac"))
    (found,) = prepared(path, drop_silent=True)
    assert isinstance(found, BadClip)
    assert found.reason == "its sound is digital silence"


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root reads everything: inside, its rights are those of a user who owns nothing."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_unreadable() -> None:
    with tempfile.TemporaryDirectory() as scratch:  # pytest's own folder is closed to others altogether
        folder = Path(scratch)
        folder.chmod(0o755)
        readable, closed = write_clip(folder / "a.mp4"), write_clip(folder / "b.mp4")
        readable.chmod(0o644)
        closed.chmod(0)
        (fine,) = prepared(readable)  # imports what is needed, too
        with unprivileged():
            (found,), (other,) = prepared(closed), prepared(readable)
    assert not isinstance(fine, BadClip)
    assert not isinstance(other, BadClip)
    assert isinstance(found, BadClip)
    assert "Permission denied" in found.reason


SUSPENDED = """
import sys, time
from diffmavil.data.media import BadClip, Deadline
deadline = Deadline(2.0, "clip")
print("begun", flush=True)
sys.stdin.readline()
deadline.check()
print("fine", flush=True)
try:
    while True:
        time.sleep(0.05)
        deadline.check()
except BadClip as error:
    print(error.reason, flush=True)
"""


def test_a_deadline_does_not_count_while_the_process_is_suspended() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SUSPENDED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(2.5)
    process.send_signal(signal.SIGCONT)
    said, _ = process.communicate("go on\n", timeout=60)
    assert said == "fine\nnot decoded within the deadline of 2 s\n"


def test_a_deadline_for_each_clip(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", seconds=2.0)
    reason = "not decoded within the deadline of 1e-06 s"
    with pytest.raises(BadClip, match=reason):
        decode_clip(str(path), VIDEO, AUDIO, deadline=1e-6)
    (found,) = transcode(Item(0, str(path), "a"), Settings(), 1e-6)
    assert isinstance(found, BadClip)
    assert found.reason == reason


class FailingDisk:
    """A container whose file cannot be read any further after 60 packets; `name` is that of its file."""

    def __init__(self, container: InputContainer, error: Exception, name: str) -> None:
        self.container, self.error, self.name = container, error, name

    def __getattr__(self, name: str) -> object:
        return getattr(self.container, name)

    def demux(self, *streams: Stream) -> Iterator[Packet]:
        yield from islice(self.container.demux(*streams), 60)
        raise self.error


UNREADABLE = "/proc/self/mem"
"""A regular file whose first byte gives EIO."""
needs_unreadable = pytest.mark.skipif(not Path(UNREADABLE).exists(), reason=f"no {UNREADABLE}")
FAILURES = {
    "server-gone": (errno.ESTALE, "", "cannot be read: Stale file handle"),
    "mount-gone": (errno.ENOTCONN, "", "cannot be read: Transport endpoint"),
    "bad-sector": pytest.param(errno.EIO, UNREADABLE, "cannot be read: Input/output error", marks=needs_unreadable),
    "libav-says-so-of-damage": (errno.EIO, "", ""),
}


@pytest.mark.parametrize(("code", "name", "reason"), FAILURES.values(), ids=FAILURES)
def test_a_disk_that_fails_in_the_middle_is_not_the_end_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, name: str, reason: str
) -> None:
    path = write_clip(tmp_path / "a.mkv", seconds=4.0, codecs=("libx264", "flac"))
    real: Any = av.open

    def opened(file: object, mode: str, **how) -> object:
        container = real(file, mode, **how)
        error = av.error.OSError(code, os.strerror(code))
        return FailingDisk(container, error, name or file) if isinstance(file, str) else container

    monkeypatch.setattr(av, "open", opened)
    (found,) = prepared(path)
    if not reason:
        assert isinstance(found, Piece)
        assert 1.0 < found.seconds < 3.0  # as far as it could be read
        return
    assert isinstance(found, BadClip)
    assert found.reason.startswith(reason)
    with pytest.raises(BadClip, match=reason) as caught:
        decode_clip(str(path), VIDEO, AUDIO, crop=(4, 5))
    assert caught.value.path == str(path)


@needs_unreadable
def test_a_file_that_cannot_be_read_from_its_start() -> None:
    (found,) = prepared(Path(UNREADABLE))
    assert isinstance(found, BadClip)
    assert found.reason == "cannot be read: Input/output error"


def test_a_file_cut_off_in_its_header_can_be_read(tmp_path: Path) -> None:
    """libav says of some of these what it says of a disk that fails."""
    whole = write_clip(tmp_path / "a.mkv", seconds=1.0).read_bytes()
    path = tmp_path / "b.mkv"
    for size in range(100, 800, 9):
        path.write_bytes(whole[:size])
        with pytest.raises(BadClip) as caught:
            decode_clip(str(path), VIDEO, AUDIO)
        assert not caught.value.reason.startswith("cannot be read"), size


def bytes_read() -> int:
    """By this process so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="reads /proc")
def test_a_deadline_ends_a_search_inside_the_library(tmp_path: Path) -> None:
    """Through a gigabyte without a packet, which takes no place on the disk."""
    path = write_clip(tmp_path / "a.mkv", seconds=1.0)
    os.truncate(path, 1 << 30)
    deadline, before = Deadline(0.1, "clip"), bytes_read()
    with open_container(str(path), deadline) as container, pytest.raises(BadClip) as caught:
        list(packets_of(container, deadline, *container.streams))
    assert str(caught.value) == "clip: not decoded within the deadline of 0.1 s"
    assert bytes_read() - before < 1 << 30


@pytest.mark.parametrize("patience", [(0.0, 60.0), (60.0, 0.0)], ids=["opening", "reading"])
def test_a_process_suspended_inside_the_library_reads_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: tuple[float, float]
) -> None:
    """The library's clock went on; the deadline's did not."""
    rng = np.random.default_rng(0)
    path = write_clip(tmp_path / "a.mp4", paint=lambda i: rng.integers(0, 255, (64, 64, 3), np.uint8))
    real: Any = av.open
    opened: list[str] = []

    def hurried(file: str, mode: str, **how) -> InputContainer:
        opened.append(file)
        return real(file, mode, **(how | {"timeout": patience} if len(opened) == 1 else how))

    with Media(str(path), Deadline(60.0, "clip")) as media:
        whole = media.measured()
    monkeypatch.setattr(av, "open", hurried)
    with Media(str(path), Deadline(60.0, "clip")) as media:
        assert media.measured() == whole
    assert len(opened) == 2
    opened.clear()
    assert decode_clip(str(path), VIDEO, AUDIO).wave_valid == AUDIO.samples
    assert len(opened) == 2


def test_names_that_are_no_text(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/src/\xff\xfe.mkv"))
    path.parent.mkdir()
    write_clip(tmp_path / "a.mkv", codecs=("libx264", "flac")).rename(path)
    (path.parent / "\udcff.mp4").write_bytes(b"")
    facts = work_through(layout_of(path.parent, tmp_path / "out")).facts
    assert (facts["clips"], facts["skipped"]) == (1, 1)
    assert (tmp_path / "out" / "quarantine.csv").read_bytes().splitlines()[1].startswith(b"\\udcff.mp4,,cannot be")


class Treacherous(Worker):
    """Hangs, dies or fails on some items, as decoders do."""

    def __call__(self, item: Item, begun: Callable[[], None] = lambda: None) -> None:
        begun()
        if item.source == "hangs":
            time.sleep(600)
        if item.source == "dies":
            os.abort()
        if item.source == "fails":
            raise MemoryError("a picture of 99999x99999 pixels")
        self.leave(item, [], ["fine"])


@pytest.mark.filterwarnings("ignore")
def test_a_process_that_hangs_dies_or_fails_costs_its_item_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("diffmavil.data.prepare.crew._SLACK", 1.0)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    # A server that an earlier test started writes where that one's errors went.
    multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]
    worker = Treacherous(Settings(), tmp_path, 8.0)  # ample for the items that do end, on a busy machine
    names = ["a", "hangs", "b", "dies", "c", "fails", "d"]
    with Crew(worker, 2) as crew:
        done = list(crew.run([Item(number, "", name) for number, name in enumerate(names)]))
    assert sorted(item.number for item in done) == list(range(7))
    reasons = {name: worker.done(Item(number, "", name)).read_text() for number, name in enumerate(names)}
    assert all('"bad":["fine"]' in reasons[name] for name in "abcd")
    assert "not decoded within the deadline of 8 s" in reasons["hangs"]
    assert "the decoder crashed (SIGABRT)" in reasons["dies"]
    assert "unexpected MemoryError: a picture of 99999x99999 pixels" in reasons["fails"]
    assert "MemoryError" in capfd.readouterr().err
