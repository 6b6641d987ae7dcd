"""Pictures as they are to be shown: mirrored and turned, of changing size, in time where a container knows no times."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from as_decoded import AUDIO, RATE, VIDEO, pictures, prepared
from clip_files import number_shown, write_clip
from odd_clips import (
    corners,
    ffmpeg,
    needs_ffmpeg,
    quarters,
    set_matrix,
    write_changing,
    write_ticking,
)

from diffmavil.config import AudioConfig, VideoConfig
from diffmavil.data.decode import BadClip, decode_clip
from diffmavil.data.prepare.transcode import Piece
from diffmavil.data.transforms import Framing

ORIENTATIONS = {
    "as-coded": ((1, 0, 0, 1), "rgbw"),
    "mirrored": ((-1, 0, 0, 1), "grwb"),
    "upside-down": ((1, 0, 0, -1), "bwrg"),
    "half-a-turn": ((-1, 0, 0, -1), "wbgr"),
    "clockwise": ((0, 1, -1, 0), "brwg"),
    "against-the-clock": ((0, -1, 1, 0), "gwrb"),
    "transposed": ((0, 1, 1, 0), "rbgw"),
    "transposed-and-half-a-turn": ((0, -1, -1, 0), "wgbr"),
}


def whole(width: float, height: float) -> Framing:
    """All of the picture, squeezed into the square."""
    return Framing(32, 32, 0, 0, 32)


@pytest.mark.parametrize(("matrix", "shown"), ORIENTATIONS.values(), ids=list(ORIENTATIONS))
def test_all_eight_orientations(tmp_path: Path, matrix: tuple[int, int, int, int], shown: str) -> None:
    path = set_matrix(write_clip(tmp_path / "a.mp4", paint=quarters, seconds=1.0), *matrix)
    direct = decode_clip(str(path), VIDEO, AUDIO, framing=whole)
    assert [corners(frame) for frame in direct.video] == [shown] * 4
    (piece,) = prepared(path)
    assert {corners(frame) for frame in pictures(piece)} == {shown}
    assert pictures(piece)[0].shape == ((96, 64, 3) if matrix[0] == 0 else (64, 96, 3))


@pytest.mark.parametrize(("matrix", "shown"), ORIENTATIONS.values(), ids=list(ORIENTATIONS))
def test_a_region_is_one_of_the_upright_picture(tmp_path: Path, matrix: tuple[int, int, int, int], shown: str) -> None:
    path = set_matrix(write_clip(tmp_path / "a.mp4", paint=quarters, seconds=1.0), *matrix)
    high, wide = (96, 64) if matrix[0] == 0 else (64, 96)
    for index, (left, top) in enumerate(((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5))):
        (piece,) = prepared(path, region=(left, top, left + 0.5, top + 0.5))
        assert {corners(frame) for frame in pictures(piece)} == {4 * shown[index]}
        assert pictures(piece)[0].shape == (high // 2, wide // 2, 3)
    (piece,) = prepared(path, region=(0.25, 0.0, 0.75, 1.0))  # its middle is the boundary of the colours
    assert {corners(frame) for frame in pictures(piece)} == {shown}


def test_the_short_side_is_the_regions(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", paint=quarters, seconds=1.0)  # 96 x 64
    (piece,) = prepared(path, region=(0.0, 0.0, 0.5, 1.0), short_side=24)
    assert pictures(piece)[0].shape == (32, 24, 3)
    assert {corners(frame) for frame in pictures(piece)} == {"rrbb"}


def test_a_region_that_is_too_small(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", paint=quarters, seconds=1.0)
    (bad,) = prepared(path, region=(0.0, 0.0, 0.5, 0.2))
    assert isinstance(bad, BadClip)
    assert bad.reason == "a region of 48x13 pixels: both sides must have 16 at least"


@needs_ffmpeg
@pytest.mark.parametrize(("matrix", "shown"), ORIENTATIONS.values(), ids=list(ORIENTATIONS))
def test_orientations_are_those_of_ffmpeg(tmp_path: Path, matrix: tuple[int, int, int, int], shown: str) -> None:
    path = set_matrix(write_clip(tmp_path / "a.mp4", paint=quarters, seconds=1.0), *matrix)
    ffmpeg("-i", path, "-frames:v", 1, tmp_path / "a.png")
    with av.open(str(tmp_path / "a.png"), "r") as container:
        assert corners(next(container.decode(video=0)).to_ndarray(format="rgb24")) == shown


@needs_ffmpeg
@pytest.mark.parametrize(
    ("how", "shown"),
    [("flip=horizontal", "grwb"), ("flip=vertical", "bwrg"), ("rotate=90", "gwrb")],
)
def test_orientation_inside_the_stream(tmp_path: Path, how: str, shown: str) -> None:
    """H.264 can say it, once for each keyframe, where the container says nothing."""
    path = write_clip(tmp_path / "a.mkv", paint=quarters, seconds=1.0, codecs=("libx264", "flac"))
    turned = tmp_path / "b.mkv"
    ffmpeg("-i", path, "-c", "copy", "-bsf:v", f"h264_metadata=display_orientation=insert:{how}", turned)
    # ffmpeg writes it at the first keyframe alone, so it holds until the next, at 0.48 s.
    assert corners(decode_clip(str(turned), VIDEO, AUDIO, framing=whole).video[0]) == shown
    (piece,) = prepared(turned)
    assert {corners(frame) for frame in pictures(piece)[:12]} == {shown}


def boxed(width: int, height: int) -> np.ndarray:
    """Grey with a white square of half the height in the middle, if `width` x `height` pixels are square."""
    picture = np.full((height, width, 3), 60, np.uint8)
    picture[height // 4 : -height // 4, width // 2 - height // 4 : width // 2 + height // 4] = 255
    return picture


def white_box(picture: np.ndarray) -> tuple[int, int]:
    """Width and height of what is white."""
    rows, columns = np.nonzero(picture.mean(2) > 160)
    return int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1


SHAPES = {
    "smaller": ((64, 48), (48, 36), Fraction(1)),
    "larger": ((64, 48), (128, 96), Fraction(1)),
    "wider": ((64, 48), (96, 48), Fraction(1)),
    "upright": ((64, 48), (48, 64), Fraction(1)),
    "wide-pixels": ((64, 48), (64, 48), Fraction(2)),
    "narrow-pixels": ((64, 64), (128, 64), Fraction(1, 2)),
}


@pytest.mark.parametrize("suffix", [".ts", ".mkv"])
@pytest.mark.parametrize(("first", "then", "aspect"), SHAPES.values(), ids=list(SHAPES))
def test_each_frame_is_drawn_by_its_own_size(
    tmp_path: Path, suffix: str, first: tuple[int, int], then: tuple[int, int], aspect: Fraction
) -> None:
    """A square stays a square, before and after the change."""
    second = boxed(round(then[0] * aspect), then[1])
    across = np.linspace(0, second.shape[1] - 1, then[0]).round().astype(int)
    parts = [(boxed(*first), Fraction(1)), (second[:, across], aspect)]
    path = write_changing(tmp_path / f"a{suffix}", parts)
    video = VideoConfig(frames=8, size=64, seconds=1.6)
    decoded = decode_clip(str(path), video, AUDIO)
    for frame in (decoded.video[1], decoded.video[-2]):
        wide, high = white_box(frame)
        assert wide == pytest.approx(high, abs=3)
        assert high >= 29
    (piece,) = prepared(path)
    drawn = pictures(piece)
    assert {picture.shape[:2] for picture in drawn} == {first[::-1]}
    for picture in (drawn[5], drawn[-5]):
        wide, high = white_box(picture)
        assert wide == pytest.approx(high, abs=3)
        assert high >= first[1] // 2 - 3


AVI = {
    "h264": ("libx264", 0, {"preset": "veryfast"}),
    "h264-3-b-frames": ("libx264", 3, {"preset": "veryfast"}),
    "mpeg4": ("mpeg4", 0, {}),
    "mpeg4-2-b-frames": ("mpeg4", 2, {}),
    "mpeg2": ("mpeg2video", 0, {}),
    "mpeg2-2-b-frames": ("mpeg2video", 2, {}),
}


@pytest.mark.parametrize(("codec", "b_frames", "options"), AVI.values(), ids=list(AVI))
@pytest.mark.parametrize("suffix", [".avi", ".mkv"])
def test_avi_knows_no_times_and_stays_with_its_sound(
    tmp_path: Path, suffix: str, codec: str, b_frames: int, options: dict[str, str]
) -> None:
    """The frame seen in the middle of each instant, and a click with every twelfth, wherever the window lies."""
    path = tmp_path / f"a{suffix}"
    write_ticking(path, codec, b_frames, options)
    video, audio = VideoConfig(frames=16, size=64, seconds=0.64), AudioConfig(frames=96, mels=64)
    for place in range(8):
        decoded = decode_clip(str(path), video, audio, crop=(place, 8))
        window = decoded.windows.video
        times = window.start + (np.arange(16) + 0.5) * 0.04
        seen = np.array([number_shown(frame) for frame in decoded.video])
        assert np.abs(seen + 0.5 - times * 25).max() <= 0.52, (seen, times * 25)
        clicks = decoded.windows.audio.start + np.flatnonzero(decoded.wave > 0.3) / RATE
        assert len(clicks)
        assert np.abs(clicks * 25 / 12 - np.round(clicks * 25 / 12)).max() < 0.1
    (piece,) = prepared(path)
    assert [number_shown(frame) for frame in pictures(piece)] == list(range(100))


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_avi_with_a_damaged_packet_stays_in_time(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "a.avi"
    write_ticking(path, codec, 2, {"preset": "veryfast"} if codec == "libx264" else {})
    data = bytearray(path.read_bytes())
    chunks = [found.start() for found in re.finditer(rb"00dc", bytes(data[: data.index(b"idx1")]))]
    for chunk in chunks[28:30]:
        size = int.from_bytes(data[chunk + 4 : chunk + 8], "little")
        data[chunk + 8 : chunk + 8 + size] = bytes(size)
    path.write_bytes(bytes(data))
    (piece,) = prepared(path)
    assert [number_shown(frame) for frame in pictures(piece)][-40:] == list(range(60, 100))
    assert isinstance(piece, Piece)
    assert piece.seconds == pytest.approx(4.0)
