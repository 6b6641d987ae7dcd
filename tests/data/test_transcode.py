"""Transcoding one clip: its frames, times and sound, and what is cut, turned and refused."""

from __future__ import annotations

import io
import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clip_files import number_shown, rotate_clockwise, write_clip
from prepared_sets import DEADLINE
from telling_clips import frames_of

from diffmavil.data.library import BadClip
from diffmavil.data.prepare.items import Item
from diffmavil.data.prepare.settings import Settings
from diffmavil.data.prepare.transcode import Piece, transcode


def pieces_of(path: Path, *, start: float | None = None, duration: float | None = None, **settings) -> list[Piece]:
    item = Item(0, str(path), path.name, start, duration)
    found = list(transcode(item, Settings(**settings), DEADLINE))
    assert all(isinstance(piece, Piece) for piece in found), found
    return found  # type: ignore[return-value]


def sound_of(piece: Piece) -> np.ndarray:
    with av.open(io.BytesIO(piece.flac), "r") as container:
        return np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])


@pytest.mark.parametrize(("peak", "kept"), [(1.1, True), (1.5, True), (5.0, False)])
def test_sound_far_above_full_scale_is_refused_and_not_cut_off(tmp_path: Path, peak: float, kept: bool) -> None:
    sound = peak * np.sin(np.arange(32_000) / 5)
    path = write_clip(tmp_path / "a.mkv", seconds=2.0, sound=sound, codecs=("libx264", "pcm_f32le"))
    if kept:
        assert np.abs(sound_of(pieces_of(path)[0])).max() >= 32_767
        return
    (found,) = transcode(Item(0, str(path), path.name, None, None), Settings(), DEADLINE)
    assert isinstance(found, BadClip)
    assert re.search(
        r"reaches 5 where full scale is 1: what FLAC of 16 bits would cut off has \d\d\.\d% of its energy", str(found)
    )


def test_a_clip_keeps_frames_times_and_sound(tmp_path: Path) -> None:
    sound = 0.5 * np.sin(np.arange(32_000) / 5)
    piece = pieces_of(write_clip(tmp_path / "a.mkv", seconds=2.0, sound=sound, codecs=("libx264", "flac")))[0]
    times, frames = frames_of(piece)
    assert [number_shown(frame) for frame in frames] == list(range(50))
    assert times == pytest.approx(np.arange(50) / 25, abs=0.002)
    assert piece.seconds == pytest.approx(2.0, abs=0.01)
    assert (piece.frames, piece.samples) == (50, 32_000)
    assert np.abs(sound_of(piece) / 32_767 - sound).max() < 1e-4


def test_it_is_what_was_promised(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", paint=lambda i: np.full((480, 640, 3), 3 * i, np.uint8), seconds=1.4)
    piece = pieces_of(path)[0]
    with av.open(io.BytesIO(piece.mp4), "r") as container:
        stream = container.streams.video[0]
        keys = [index for index, packet in enumerate(container.demux(stream)) if packet.is_keyframe]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.height, stream.width) == (256, 342) == (piece.height, piece.width)
        assert keys == [0, 15, 30]
        assert len(container.streams.audio) == 0
    with av.open(io.BytesIO(piece.flac), "r") as container:
        stream = container.streams.audio[0]
        assert (stream.codec_context.name, stream.rate, stream.layout.name) == ("flac", 16_000, "mono")


def test_late_streams_start_together(tmp_path: Path) -> None:
    """Sound that begins 0.4 s after the picture: the first frame is the one on screen then."""
    path = write_clip(tmp_path / "a.mkv", seconds=3.0, audio_start=0.42, codecs=("libx264", "flac"))
    times, frames = frames_of(pieces_of(path)[0])
    assert times[0] == 0.0
    assert number_shown(frames[0]) == 10
    assert times[1] == pytest.approx(0.02, abs=0.002)
    path = write_clip(tmp_path / "b.mkv", seconds=3.0, video_start=1.0, codecs=("libx264", "flac"))
    piece = pieces_of(path)[0]
    assert number_shown(frames_of(piece)[1][0]) == 0
    assert piece.samples == pytest.approx(2.0 * 16_000, abs=40)


def test_a_variable_frame_rate_stays_one(tmp_path: Path) -> None:
    appears = np.round(np.cumsum(np.random.default_rng(0).choice([0.02, 0.04, 0.1, 0.3], size=20)), 3)
    appears -= appears[0]
    path = write_clip(tmp_path / "a.mkv", times=list(appears), sound=np.zeros(60_000), codecs=("libx264", "flac"))
    times, frames = frames_of(pieces_of(path)[0])
    assert times == pytest.approx(appears, abs=0.002)
    assert [number_shown(frame) for frame in frames] == list(range(20))


def test_rotation_and_aspect_are_applied(tmp_path: Path) -> None:
    def red_left(index: int) -> np.ndarray:
        picture = np.zeros((64, 96, 3), np.uint8)
        picture[:, :48, 0] = 255
        return picture

    turned = pieces_of(rotate_clockwise(write_clip(tmp_path / "a.mp4", paint=red_left)))[0]
    assert (turned.width, turned.height) == (64, 96)
    picture = frames_of(turned)[1][3]
    assert picture[20, 32].tolist() == pytest.approx([254, 0, 0], abs=8)
    assert picture[80, 32].tolist() == pytest.approx([0, 0, 0], abs=8)
    wide = pieces_of(write_clip(tmp_path / "b.mp4", pixel_aspect=Fraction(3, 2)))[0]
    assert (wide.width, wide.height) == (96, 64)


def test_long_clips_are_cut_evenly_without_loss(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", seconds=6.0, codecs=("libx264", "flac"))
    pieces = pieces_of(path, cut=2.0)
    assert [piece.start for piece in pieces] == pytest.approx([0.0, 2.0, 4.0], abs=0.05)
    shown = [number_shown(frame) for piece in pieces for frame in frames_of(piece)[1]]
    assert list(dict.fromkeys(shown)) == list(range(150))  # the frame on screen at a cut opens the next piece too
    assert sum(piece.samples for piece in pieces) == pytest.approx(96_000, abs=3)
    assert len(pieces_of(path, start=1.0, duration=3.0, cut=30.0)) == 1
    assert len(pieces_of(path, cut=5.9)) == 1


def test_an_audioset_file_may_hold_its_segment_alone(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", seconds=3.0)
    for duration, expected in ((2.5, 3.0), (1.0, 1.0)):
        item = Item(0, str(path), "a", 1.5, duration, maybe_cut=True)
        piece = next(iter(transcode(item, Settings(), DEADLINE)))
        assert isinstance(piece, Piece)
        assert piece.seconds == pytest.approx(expected, abs=0.1)
