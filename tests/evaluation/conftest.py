"""What is evaluated here."""

from __future__ import annotations

import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diffmavil.config import Config, FinetuneConfig, HeadConfig
from diffmavil.data.clips import Clip, ClipSet
from tests.runs import very_small


@pytest.fixture(scope="module")
def config(cache: Path) -> Config:
    return very_small(cache)


@pytest.fixture
def tuned(config: Config) -> FinetuneConfig:
    model = replace(config.model, modalities="audio")
    head = HeadConfig(classes=("a", "b", "c"), labels="one")
    return FinetuneConfig(model=model, data=config.data, train=replace(config.train, batch_size=4), head=head)


@pytest.fixture
def clips(tmp_path: Path) -> ClipSet:
    """Seven sounds, each louder than the one before and in itself; of the third there is nothing to be decoded."""
    found = []
    for i in range(7):
        path = tmp_path / f"{i}.wav"
        rise = np.linspace(0.2, 1, 48_000 if i else 4800)
        noise = np.random.default_rng(i).normal(size=len(rise))
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            file.writeframes((300 * 2**i * rise * noise).clip(-32_000, 32_000).astype(np.int16).tobytes())
        found.append(Clip(str(path), labels=(i % 3,)))
    (tmp_path / "2.wav").write_bytes(b"no sound")
    return ClipSet(found, ["a", "b", "c"])
