"""Clips whose streams are not as usual: channels, tracks, decoders, mirrors, covers, samples that are no sound."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from odd_clips import process_apart, write_sound

from diffmavil.config import AudioConfig, VideoConfig
from diffmavil.data.decode import BadClip, decode_clip
from diffmavil.data.prepare.items import Item
from diffmavil.data.prepare.settings import Settings
from diffmavil.data.prepare.transcode import Piece, transcode

VIDEO, AUDIO = VideoConfig(frames=4, size=32, seconds=0.5, patch=(2, 8, 8)), AudioConfig(frames=48, mels=64)
RATE = AUDIO.sample_rate


@pytest.fixture(scope="module")
def apart() -> Iterator[Callable[..., Any]]:
    with process_apart() as call:
        yield call


def prepared(path: Path, **settings) -> list[Piece | BadClip]:
    return list(transcode(Item(0, str(path), path.name), Settings(**settings), 60.0))


def reason_of(path: Path) -> str:
    """Why a clip is refused, in training and in preparation alike."""
    with pytest.raises(BadClip) as caught:
        decode_clip(str(path), VIDEO, AUDIO)
    assert caught.value.path == str(path)
    for found in prepared(path):
        assert isinstance(found, BadClip)
        assert (found.path, found.reason) == (path.name, caught.value.reason)
    return caught.value.reason


def loudness(path: Path) -> tuple[float, float]:
    """Peak of the sound as it is decoded for training, and as it is prepared."""
    direct = decode_clip(str(path), VIDEO, AUDIO).wave
    (piece,) = prepared(path)
    assert isinstance(piece, Piece)
    return float(np.abs(direct).max()), float(np.abs(flac(piece)).max())


def flac(piece: Piece) -> np.ndarray:
    """The sound of a prepared clip: float32, full scale 1."""
    with av.open(io.BytesIO(piece.flac)) as container:
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)]) / np.float32(32768)


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
