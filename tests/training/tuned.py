"""Whole fine-tunings on a few short sounds: fixtures."""

from __future__ import annotations

import wave
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diffmavil.config.presets import PRESETS
from diffmavil.evaluation.classification import Classification, read_classification
from diffmavil.finetune import main
from diffmavil.model import DiffMAViL
from diffmavil.model.weights import export_weights

PITCHES = {"high": 4000, "low": 300, "middle": 1200}
MODEL = (
    *(
        "--model.audio.frames",
        "64",
        "--model.audio.mels",
        "32",
        "--model.video.size",
        "32",
        "--model.video.frames",
        "4",
    ),
    *("--model.encoder.depth", "1", "--model.encoder.width", "48", "--model.encoder.heads", "3"),
)
RUN = (
    *("--data.workers", "0", "--train.batch-size", "4", "--train.log-every", "1", "--train.precision", "fp32"),
    *("--optim.lr", "3e-3", "--head.mixup", "0.2", "--head.ema", "0.8", "--head.crops", "2", "--train.no-report"),
)
STEPS = 20


def write_tone(path: Path, pitch: float, seconds: float = 1.5) -> None:
    times = np.arange(round(16_000 * seconds)) / 16_000
    sound = 8000 * np.sin(2 * np.pi * pitch * times) * (0.6 + 0.4 * np.sin(20 * times))
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(sound.astype(np.int16).tobytes())


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders train and test of three pitches, and several.csv, whose clips carry one or two labels."""
    root = tmp_path_factory.mktemp("sounds")
    for split, count in (("train", 16), ("test", 4)):
        for label, pitch in PITCHES.items():
            for i in range(count):
                write_tone(root / split / label / f"{label}-{i}.wav", pitch * (1 + i / 100))
    lines = [f"train/{label}/{label}-{i}.wav,{label}{';loud' if i % 2 else ''}" for label in PITCHES for i in range(12)]
    (root / "several.csv").write_text("\n".join(["path,labels", *lines]) + "\n")
    return root


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights of a very small model of sound and picture."""
    folder = tmp_path_factory.mktemp("pretrained")
    config = PRESETS["diffmavil-tiny"]
    small = config.model
    audio = replace(small.audio, frames=64, mels=32, mean=-8.0, std=5.0)
    encoder = replace(small.encoder, depth=1, width=48)
    video = replace(small.video, size=32, frames=4)
    config = replace(config, model=replace(small, audio=audio, video=video, encoder=encoder))
    torch.manual_seed(0)
    export_weights(DiffMAViL(config.model), config, folder / "model.safetensors")
    (folder / "config.yaml").write_text("")
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """As the processes that these runs are compared with."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def arguments(sounds: Path, weights: Path, cache: Path) -> Callable[..., list[str]]:
    def make(folder: Path, *flags: str, start: str | None = None) -> list[str]:
        clips = ["--data.root", str(sounds / "train"), "--data.eval-root", str(sounds / "test")]
        beginning = ["--from", start or str(weights), "--task", "audio", "--train.steps", str(STEPS)]
        return [*beginning, "--run-dir", str(folder), "--data.cache", str(cache), *clips, *RUN, *flags]

    return make


@pytest.fixture(scope="session")
def whole(arguments: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from weights, never interrupted."""
    folder = tmp_path_factory.mktemp("finetuned") / "whole"
    main(arguments(folder))
    return folder


def result(folder: Path) -> Classification:
    found = read_classification(folder)
    assert found is not None
    return found
