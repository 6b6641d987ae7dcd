"""Damaged files of every container: what comes out is a clip or a `BadClip`, and nothing else.

`DIFFMAVIL_FUZZ=500` tries that many damages of each file instead of a few; every one is a function of its number.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clip_files import MEDIA, numbered, write_clip
from odd_clips import FFMPEG, ffmpeg, process_apart

from diffmavil.config import AudioConfig, VideoConfig
from diffmavil.data.decode import BadClip, Decoded, decode_clip
from diffmavil.data.prepare.items import Item
from diffmavil.data.prepare.settings import Settings
from diffmavil.data.prepare.transcode import Piece, transcode

DAMAGES = int(os.environ.get("DIFFMAVIL_FUZZ", "12"))
VIDEO, AUDIO = VideoConfig(frames=4, size=32, seconds=0.5, patch=(2, 8, 8)), AudioConfig(frames=48, mels=64)

OURS: dict[str, dict[str, Any]] = {
    "a.mp4": {"codecs": ("libx264", "aac")},
    "fast.mp4": {"codecs": ("libx264", "aac"), "options": {"movflags": "faststart"}},
    "a.mkv": {"codecs": ("libx264", "flac")},
    "a.webm": {"codecs": ("libvpx", "libopus"), "rate": 48_000},
    "a.avi": {"codecs": ("mpeg4", "pcm_s16le")},
    "a.mpg": {"codecs": ("mpeg1video", "mp2"), "rate": 44_100},
    "a.ts": {"codecs": ("libx264", "aac")},
    "a.mov": {"codecs": ("libx264", "pcm_s16le")},
    "a.flv": {"codecs": ("libx264", "aac")},
    "a.nut": {"codecs": ("ffv1", "pcm_f32le")},
}
"""What PyAV writes."""
THEIRS = {
    "theora.ogg": ("-c:v", "libtheora", "-c:a", "libvorbis"),
    "h263.3gp": ("-c:v", "h263", "-s", "128x96", "-c:a", "aac"),
    "wmv.asf": ("-c:v", "wmv2", "-c:a", "wmav2"),
    "mpeg2.mpg": ("-c:v", "mpeg2video", "-bf", "2", "-c:a", "mp2"),
    "mpeg2.ts": ("-c:v", "mpeg2video", "-c:a", "ac3"),
    "vp9.webm": ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-c:a", "libopus"),
    "mjpeg.mov": ("-c:v", "mjpeg", "-pix_fmt", "yuvj420p", "-c:a", "pcm_s16be"),
    "a.mxf": ("-c:v", "mpeg2video", "-ar", "48000", "-c:a", "pcm_s16le"),
    "a.wav": ("-vn", "-c:a", "pcm_s16le"),
}
"""What ffmpeg writes."""


def damaged(data: bytes, number: int) -> bytes:
    """One of many ways to damage a file: flipped bytes, a cut, zeros, noise, or a part moved or left out."""
    rng = np.random.default_rng(number)
    out = bytearray(data)
    at = int(rng.integers(len(out)))
    length = int(min(len(out) - at, 2 ** rng.uniform(0, 12)))
    kind = number % 6
    if kind == 0:
        for place in rng.integers(len(out), size=int(2 ** rng.uniform(0, 6))):
            out[place] = int(rng.integers(256))
    elif kind == 1:
        # The first bytes say what the file is; damage there does the oddest things.
        for place in rng.integers(min(2048, len(out)), size=int(2 ** rng.uniform(0, 4))):
            out[place] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        del out[at:]
    elif kind == 3:
        out[at : at + length] = bytes(length)
    elif kind == 4:
        out[at : at + length] = rng.bytes(length)
    else:
        part = out[at : at + length]
        del out[at : at + length]
        if rng.random() < 0.5:
            where = int(rng.integers(len(out) + 1))
            out[where:where] = part
    return bytes(out)


def outcomes(source: Path, numbers: list[int], preparing: bool) -> dict[str, int]:
    """How many of these damages gave what: a decoded clip and pieces, or `BadClip`. Anything else is raised."""
    data = source.read_bytes()
    path = source.with_name(f"damaged-{source.name}")
    found: Counter[str] = Counter()
    for number in numbers:
        source.with_suffix(".number").write_text(str(number))
        path.write_bytes(damaged(data, number))
        try:
            decoded = decode_clip(str(path), VIDEO, AUDIO, rng=np.random.default_rng(number), deadline=30.0)
        except BadClip as error:
            found["decoding: bad" if error.path == str(path) and error.reason else "decoding: bad, unnamed"] += 1
        else:
            assert isinstance(decoded, Decoded)
            assert decoded.video.shape == (4, 32, 32, 3)
            assert np.isfinite(decoded.wave).all()
            found["decoding: a clip"] += 1
        if preparing and number % 3 == 0:
            for piece in transcode(Item(0, str(path), path.name), Settings(), 30.0):
                assert isinstance(piece, Piece | BadClip)
                found["preparing: " + ("bad" if isinstance(piece, BadClip) else "a piece")] += 1
    return dict(found)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole files, 1.5 s of each container; those of ffmpeg are made when they are asked for."""
    folder = tmp_path_factory.mktemp("whole")
    for name, how in OURS.items():
        write_clip(folder / name, paint=numbered(48, 32), seconds=1.5, **how)
    return folder


@pytest.fixture(scope="module")
def apart() -> Iterator[Callable[..., Any]]:
    with process_apart() as call:
        yield call


def survey(apart: Callable[..., Any], source: Path, damages: int, *, preparing: bool) -> dict[str, int]:
    """What became of the damages, all of them in a process apart; one that ends it, or raises, is named."""
    number = source.with_suffix(".number")
    try:
        found = apart(outcomes, source, list(range(damages)), preparing)
    except BrokenProcessPool:
        pytest.fail(f"damage {number.read_text()} of {source.name} ended the process")
    except BaseException as error:
        error.add_note(f"damage {number.read_text()} of {source.name}")
        raise
    print(f"{source.name}: {found}")
    assert found.get("decoding: bad", 0) + found.get("decoding: a clip", 0) == damages
    return found


@pytest.mark.parametrize("name", [*OURS, *THEIRS])
def test_damaged_files_are_clips_or_bad_clips(sources: Path, apart: Callable[..., Any], name: str) -> None:
    source = sources / name
    if name in THEIRS:
        if FFMPEG is None:
            pytest.skip("no ffmpeg to make the file with")
        ffmpeg("-i", sources / "a.mkv", *THEIRS[name], source)
    found = survey(apart, source, DAMAGES, preparing=True)
    if name != "a.wav":
        assert found["decoding: a clip"] > 0


@pytest.mark.skipif(not MEDIA.is_dir(), reason=f"no real clips at {MEDIA} (DIFFMAVIL_MEDIA)")
def test_real_clips_are_clips_and_damaged_ones_clips_or_bad_clips(tmp_path: Path, apart: Callable[..., Any]) -> None:
    """What libav decodes is not left out; damages of the smaller files, or of all where many are asked for."""
    total: Counter[str] = Counter()
    for real in sorted(path for path in MEDIA.iterdir() if path.suffix != ".csv"):
        assert apart(at_the_end, str(real)) > 0.9 * AUDIO.samples, real.name
        if DAMAGES > 50 or real.stat().st_size < 600_000:
            copy = tmp_path / real.name
            copy.write_bytes(real.read_bytes())
            total.update(survey(apart, copy, max(2, DAMAGES // 8), preparing=False))
    assert total["decoding: a clip"] > 0


def at_the_end(path: str) -> int:
    """Samples of sound in the last window of a clip, whose picture shows something."""
    decoded = decode_clip(path, VIDEO, AUDIO, crop=(7, 8))
    assert decoded.video.std() > 5, path
    return decoded.wave_valid
