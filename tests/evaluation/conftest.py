"""What is evaluated here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from diffmavil.config import AudioConfig, Config, DecoderConfig, EncoderConfig, VideoConfig
from diffmavil.config.presets import preset


@pytest.fixture(scope="module")
def config(cache: Path) -> Config:
    """A very small model on a few generated clips."""
    base = preset("diffmavil-tiny")
    decoder = DecoderConfig(depth=1, width=32, heads=4, attention="cross")
    model = replace(
        base.model,
        video=VideoConfig(frames=4, size=32),
        audio=AudioConfig(frames=64, mels=32, mean=-6.0, std=4.0),
        encoder=EncoderConfig(depth=1, width=48, heads=3),
        video_decoder=decoder,
        audio_decoder=decoder,
    )
    data = replace(base.data, cache=str(cache), synthetic_train=24, synthetic_eval=24, workers=0)
    return replace(base, model=model, data=data)
