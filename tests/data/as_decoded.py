"""How the decoder and the preparation see a clip, in small; for the tests of odd streams."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest

from diffmavil.config import AudioConfig, VideoConfig
from diffmavil.data.decode import BadClip, decode_clip
from diffmavil.data.prepare.items import Item
from diffmavil.data.prepare.settings import Settings
from diffmavil.data.prepare.transcode import Piece, transcode

VIDEO, AUDIO = VideoConfig(frames=4, size=32, seconds=0.5, patch=(2, 8, 8)), AudioConfig(frames=48, mels=64)
RATE = AUDIO.sample_rate


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


def flac(piece: Piece) -> np.ndarray:
    """The sound of a prepared clip: float32, full scale 1."""
    with av.open(io.BytesIO(piece.flac), "r") as container:
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)]) / np.float32(32768)


def pictures(piece: Piece | BadClip) -> list[np.ndarray]:
    """The frames of a prepared clip, RGB."""
    assert isinstance(piece, Piece), piece
    with av.open(io.BytesIO(piece.mp4), "r") as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
