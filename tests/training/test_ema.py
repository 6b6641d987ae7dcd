"""An average of the weights along a pretraining: exported besides, and the same after a resume."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffmavil.config import TrainConfig
from diffmavil.config.presets import FINETUNE_PRESETS
from diffmavil.model.weights import load_weights

FLAGS = ("--train.ema", "0.5", "--optim.warmup", "0")


@pytest.fixture(scope="module")
def averaged(train, tmp_path_factory) -> Path:
    """Four steps of a run that is to go on, and then all eight."""
    folder = tmp_path_factory.mktemp("ema") / "run"
    train(folder, *FLAGS, "--train.checkpoint-every", "4")
    return folder


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_weights(path)[0].state_dict()


def test_the_average_is_exported_beside_the_last_weights(averaged: Path, whole_run: Path) -> None:
    last, mean = weights(averaged / "model.safetensors"), weights(averaged / "ema.safetensors")
    assert not (whole_run / "ema.safetensors").exists()
    apart = [(x - last[name]).norm().item() for name, x in mean.items()]
    assert 0 < max(apart) < 0.1, "it follows, some steps behind"


def test_a_resumed_run_has_the_same_average(averaged: Path, train, tmp_path: Path) -> None:
    whole = weights(averaged / "ema.safetensors")
    cut = shutil.copytree(averaged, tmp_path / "cut")
    shutil.rmtree(cut / "checkpoints" / "step-00000008")
    for name in ("model", "ema"):
        (cut / f"{name}.safetensors").unlink()
    train(cut, "--resume", preset=None)
    assert all(torch.equal(x, whole[name]) for name, x in weights(cut / "ema.safetensors").items())
    refused = train(cut, "--resume", "--train.ema", "0", "--train.steps", "12", preset=None, code=2)
    assert "error: train.ema=0.0: must be above 0, as the run began" in refused.stderr


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"train.ema=1.0: must be in \[0, 1\)"):
        TrainConfig(ema=1.0)
    config = FINETUNE_PRESETS["finetune-tiny"]
    with pytest.raises(ValueError, match=r"train.ema=0.9: must be 0 in fine-tuning, where head.ema averages"):
        replace(config, train=replace(config.train, ema=0.9))
