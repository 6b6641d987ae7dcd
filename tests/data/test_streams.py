"""Clips whose streams are not as usual: any number of channels, tracks without a decoder, covers, damaged texts."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from as_decoded import AUDIO, RATE, VIDEO, flac, prepared, reason_of
from av.stream import Disposition
from clip_files import write_clip
from odd_clips import (
    process_apart,
    write_covered,
    write_sound,
)

from diffmavil.data.decode import BadClip, decode_clip
from diffmavil.data.prepare.items import Item
from diffmavil.data.prepare.settings import Settings
from diffmavil.data.prepare.transcode import Piece, transcode


@pytest.fixture(scope="module")
def apart() -> Iterator[Callable[..., Any]]:
    with process_apart() as call:
        yield call


def loudness(path: Path) -> tuple[float, float]:
    """Level of a tone as it is decoded for training, and as it is prepared; codecs ring where it begins."""
    direct = decode_clip(str(path), VIDEO, AUDIO).wave
    (piece,) = prepared(path)
    assert isinstance(piece, Piece)
    return float(np.abs(direct[2000:]).max()), float(np.abs(flac(piece)[2000:-2000]).max())


OLD_PYAV = int(av.__version__.partition(".")[0]) < 19
"""Later ones have mended what some files here are made of."""
CODED = {
    "pcm-packed": ("pcm_s16le", ".mkv", "", range(1, 17)),
    "pcm-planar": ("pcm_s16le_planar", ".nut", "", range(1, 17)),
    "wavpack-planar-float": ("wavpack", ".mkv", "fltp", range(6, 17)),
    "wavpack-planar-8-bit": ("wavpack", ".mkv", "u8p", (7, 8, 9, 16)),
    "pcm-packed-float": ("pcm_f32le", ".mov", "", (7, 8, 9, 16, 24)),
    "flac": ("flac", ".mkv", "", (1, 6, 7, 8)),
}


def heard(folder: Path, codec: str, suffix: str, form: str, counts: list[int]) -> list[tuple[int, float, float]]:
    """(channels, loudness as decoded, loudness as prepared): channel k of n has a tone of level (k + 1) / 2n."""
    tone = np.sin(2 * np.pi * 400 * np.arange(RATE) / RATE)
    found = []
    for count in counts:
        path = folder / f"{count}{suffix}"
        levels = (np.arange(count) + 1) / (2 * count)
        write_sound(path, levels[:, None] * tone, codec, f"{count} channels", form=form)
        found.append((count, *loudness(path)))
    return found


@pytest.mark.parametrize(("codec", "suffix", "form", "counts"), CODED.values(), ids=list(CODED))
def test_any_number_of_channels(tmp_path: Path, apart, codec: str, suffix: str, form: str, counts: range) -> None:
    """Mono is the mean of all channels; decoded apart, since reading channels that are not there ends a process."""
    found = apart(heard, tmp_path, codec, suffix, form, list(counts))
    assert [count for count, *_ in found] == list(counts)
    for count, direct, again in found:
        level = (count + 1) / (4 * count)
        assert direct == pytest.approx(level, abs=0.01), count
        assert again == pytest.approx(level, abs=0.01), count


SURROUND = {
    "aac-7.1": ("aac", ".mp4", 48_000, "7.1", 8),
    "opus-7.1": ("libopus", ".mkv", 48_000, "7.1", 8),
    "pcm-7.1.4": ("pcm_s16le", ".mov", 48_000, "7.1.4", 12),
    "wavpack-22.2": ("wavpack", ".mkv", 48_000, "22.2", 24),
}


def surround(path: Path, codec: str, rate: int, layout: str, count: int) -> tuple[float, float]:
    tone = 0.5 * np.sin(2 * np.pi * 60 * np.arange(rate) / rate)  # deep enough for the LFE channel
    return loudness(write_sound(path, np.tile(tone, (count, 1)), codec, layout, rate))


@pytest.mark.parametrize(("codec", "suffix", "rate", "layout", "count"), SURROUND.values(), ids=list(SURROUND))
def test_surround_layouts(tmp_path: Path, apart, codec: str, suffix: str, rate: int, layout: str, count: int) -> None:
    direct, again = apart(surround, tmp_path / f"a{suffix}", codec, rate, layout, count)
    assert direct == pytest.approx(0.5, abs=0.03)
    assert again == pytest.approx(0.5, abs=0.03)


def renamed(path: Path, codec: bytes, *, every: bool = False) -> Path:
    """Give the tracks of a codec a fourcc that nobody knows: the first that the file names, or all."""
    data = path.read_bytes()
    begin = max(data.find(b"moov"), data.find(b"hdrl"))  # what comes before names brands, not tracks
    assert begin > 0
    assert codec in data[begin:]
    path.write_bytes(data[:begin] + data[begin:].replace(codec, b"zzzz", -1 if every else 1))
    return path


def test_tracks_without_a_decoder_are_bad_clips(tmp_path: Path) -> None:
    for name, codec, what in (("a.mp4", b"avc1", "video"), ("b.mp4", b"mp4a", "audio"), ("c.avi", b"FMP4", "video")):
        codecs = ("mpeg4", "pcm_s16le") if name == "c.avi" else ("libx264", "aac")
        path = renamed(write_clip(tmp_path / name, seconds=1.0, codecs=codecs), codec, every=True)
        if codec == b"mp4a":
            renamed(path, b"esds")  # names the codec too
        assert reason_of(path) == f"no decoder for its {what} stream"


def two_tracks(path: Path, greys: tuple[int, int], levels: tuple[float, float], how: Callable | None = None) -> Path:
    """Two picture tracks of one grey each and two sound tracks of one level each; `how` is given the streams."""
    with av.open(str(path), "w") as container:
        pictures = [container.add_stream("libx264", rate=25, options={"preset": "ultrafast"}) for _ in greys]
        sounds = [container.add_stream("aac", rate=RATE, layout="mono") for _ in levels]
        for stream in pictures:
            stream.width = stream.height = 32
            stream.pix_fmt = "yuv420p"
        if how:
            how(pictures, sounds)
        packets = []
        for stream, grey in zip(pictures, greys, strict=True):
            for index in range(40):
                frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), grey, np.uint8), format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 25)
                packets += stream.encode(frame)
            packets += stream.encode(None)
        for stream, level in zip(sounds, levels, strict=True):
            tone = level * np.sin(2 * np.pi * 400 * np.arange(25_600, dtype=np.float32) / RATE)
            samples = av.AudioFrame.from_ndarray(tone[None].astype(np.float32), format="fltp", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = RATE, 0, Fraction(1, RATE)
            packets += [*stream.encode(samples), *stream.encode(None)]
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            container.mux(packet)
    return path


def seen_and_heard(path: Path) -> list[tuple[float, float]]:
    """(grey, level) of a clip, decoded and prepared."""
    decoded = decode_clip(str(path), VIDEO, AUDIO)
    (piece,) = prepared(path)
    assert isinstance(piece, Piece)
    with av.open(io.BytesIO(piece.mp4), "r") as container:
        grey = next(container.decode(video=0)).to_ndarray(format="rgb24").mean()
    return [(decoded.video.mean(), np.abs(decoded.wave[1000:6000]).max()), (grey, np.abs(flac(piece)[1000:6000]).max())]


def assert_shown(path: Path, grey: int, level: float) -> None:
    for found in seen_and_heard(path):
        assert found == (pytest.approx(grey, abs=6), pytest.approx(level, rel=0.1))


def test_the_track_with_a_decoder_is_taken(tmp_path: Path) -> None:
    path = two_tracks(tmp_path / "a.mp4", (60, 180), (0.2, 0.6))
    assert_shown(path, 60, 0.2)
    for code in (b"avc1", b"mp4a", b"esds"):
        renamed(path, code)
    assert_shown(path, 180, 0.6)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_tag_that_is_no_text_costs_nothing(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"

    def tag(pictures: list, sounds: list) -> None:
        pictures[0].container.metadata["title"] = "QQQQQQQQ"
        for stream in (*pictures, *sounds):
            stream.metadata["handler_name" if suffix == ".mp4" else "title"] = "RRRRRRRR"

    data = two_tracks(path, (60, 180), (0.2, 0.6), tag).read_bytes()
    assert data.count(b"QQQQQQQQ") >= 1
    assert data.count(b"RRRRRRRR") >= 4
    path.write_bytes(
        data.replace(b"QQQQQQQQ", b"\xff\xfe\x80QQ\xc3\x28\xa0").replace(b"RRRRRRRR", b"\xf0\x28\x8c\xbcRR\xe9\xff")
    )
    if OLD_PYAV:
        with pytest.raises(UnicodeDecodeError):
            av.open(str(path))
    assert_shown(path, 60, 0.2)


def test_our_own_faults_are_not_taken_for_bad_clips(tmp_path: Path) -> None:
    def faulty(width: float, height: float) -> None:
        raise TypeError("a fault of ours")

    path = write_clip(tmp_path / "a.mp4", seconds=1.0)
    with pytest.raises(TypeError, match="a fault of ours"):
        decode_clip(str(path), VIDEO, AUDIO, framing=faulty)  # type: ignore[arg-type]


def test_a_stream_that_comes_up_late_ends_no_run(tmp_path: Path) -> None:
    """PyAV knows the streams of a file's beginning; one that is announced later ends its reading in an IndexError."""
    noise = np.random.default_rng(0).integers(0, 256, (25, 64, 64, 3)).astype(np.uint8)
    path = write_clip(tmp_path / "a.ts", seconds=7.0, paint=lambda index: noise[index % 25])  # more than is probed
    other = two_tracks(tmp_path / "b.ts", (60, 180), (0.2, 0.6))
    path.write_bytes(path.read_bytes() + other.read_bytes() + path.read_bytes())
    if OLD_PYAV:
        with av.open(str(path), "r") as container, pytest.raises(IndexError):
            list(container.demux(video=0, audio=0))
    assert decode_clip(str(path), VIDEO, AUDIO).wave.any()
    assert all(isinstance(piece, Piece) for piece in prepared(path))


def test_a_time_stamp_of_years_is_one_line_in_the_quarantine(tmp_path: Path) -> None:
    """The last packets of both streams of an flv claim to come 24 days later: 70,000 pieces, two with sound."""
    path = write_clip(tmp_path / "a.flv", seconds=3.0)
    data = bytearray(path.read_bytes())
    at, last = 13, {}
    while at < len(data):
        size = int.from_bytes(data[at + 1 : at + 4], "big")
        if size > 5:
            last[data[at]] = at
        at += size + 15
    for tag in (8, 9):  # sound and picture
        data[last[tag] + 7] = 0x7F  # the highest byte of its milliseconds
    path.write_bytes(bytes(data))
    found = prepared(path)
    assert isinstance(found[0], BadClip)
    assert re.fullmatch(r"7\d{4} pieces without any sound, where its time stamps jump", found[0].reason)
    assert len(found) < 5
    assert [piece.start for piece in found if isinstance(piece, Piece)] == [pytest.approx(0.0, abs=0.1)]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_the_default_tracks_are_taken(tmp_path: Path, suffix: str) -> None:
    def second(pictures: list, sounds: list) -> None:
        for streams in (pictures, sounds):
            streams[0].disposition, streams[1].disposition = 0, Disposition.default

    assert_shown(two_tracks(tmp_path / f"a{suffix}", (60, 180), (0.2, 0.6), second), 180, 0.6)
    assert_shown(two_tracks(tmp_path / f"b{suffix}", (60, 180), (0.2, 0.6)), 60, 0.2)


def test_comments_are_taken_when_there_is_nothing_else(tmp_path: Path) -> None:
    def comment(pictures: list, sounds: list) -> None:
        pictures[0].disposition = pictures[1].disposition = 0
        sounds[0].disposition, sounds[1].disposition = Disposition.comment, 0

    assert_shown(two_tracks(tmp_path / "a.mkv", (60, 180), (0.2, 0.6), comment), 60, 0.6)


COVERS = {
    "mp4-cover": (".mp4", "mjpeg", Disposition.attached_pic),
    "mp4-jpeg": (".mp4", "mjpeg", Disposition.default),
    "mp4-png": (".mp4", "png", Disposition.default),
    "mp4-one-h264": (".mp4", "libx264", Disposition.default),
    "mov-jpeg": (".mov", "mjpeg", Disposition.default),
    "mkv-jpeg": (".mkv", "mjpeg", Disposition.default),
    "nut-png": (".nut", "png", Disposition.default),
    "mkv-thumbnails": (".mkv", "mjpeg", Disposition.timed_thumbnails),
}


@pytest.mark.parametrize(("suffix", "codec", "disposition"), COVERS.values(), ids=list(COVERS))
@pytest.mark.parametrize("alone", [False, True], ids=["beside-a-film", "alone"])
def test_a_cover_is_no_picture(tmp_path: Path, suffix: str, codec: str, disposition: Disposition, alone: bool) -> None:
    """One white frame comes first in the file; the film is grey."""
    path = tmp_path / f"a{suffix}"
    write_covered(path, codec, disposition, 0 if alone else 40)
    if alone:
        assert re.match("no video stream|only 0.0. s with both picture", reason_of(path))
    else:
        assert_shown(path, 100, 0.3)


@pytest.mark.parametrize("length", [0.6, 0.997, 1.0, 1.7])
def test_a_short_segment_is_one_piece(tmp_path: Path, length: float) -> None:
    path = write_clip(tmp_path / "a.mkv", seconds=3.0, codecs=("ffv1", "flac"))
    (piece,) = transcode(Item(0, str(path), "a", 0.9, length), Settings(), 60.0)
    assert isinstance(piece, Piece)
    assert piece.seconds == pytest.approx(length, abs=0.05)
