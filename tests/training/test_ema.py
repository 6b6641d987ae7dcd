"""An average of the weights along a pretraining: exported besides, and the same after a resume."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffmavil.config import TeacherConfig, TrainConfig
from diffmavil.config.presets import FINETUNE_PRESETS
from diffmavil.model.teacher import Teacher
from diffmavil.model.weights import load_weights
from diffmavil.training.pretraining import Pretraining
from diffmavil.training.second_stage import SecondStage
from tests.runs import very_small

FLAGS = ("--train.ema", "0.5", "--optim.warmup", "0")


@pytest.fixture(scope="module")
def averaged(train, tmp_path_factory) -> Path:
    """Four steps of a run that is to go on, and then all eight."""
    folder = tmp_path_factory.mktemp("ema") / "run"
    train(folder, *FLAGS, "--train.checkpoint-every", "4")
    return folder


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_weights(path)[0].state_dict()


@pytest.mark.parametrize("teacher", [False, True], ids=["alone", "beside an averaged teacher"])
def test_it_has_the_first_weights_and_follows(cache: Path, teacher: bool) -> None:
    config = very_small(cache)
    config = replace(config, train=replace(config.train, ema=0.75))
    if teacher:
        taught = replace(config.model, target_width=config.model.encoder.width)
        config = replace(config, model=taught, teacher=TeacherConfig(stage=2, source="ema"))
    device = torch.device("cpu")
    task = SecondStage(config, device, Teacher(config.model)) if teacher else Pretraining(config, device)
    expected: dict[str, torch.Tensor] = {}
    for done in (1, 2, 3):
        with torch.no_grad():
            for parameter in task.model.parameters():
                parameter.add_(done)
        task.after_step(done)
        now = {name: p.detach().clone() for name, p in task.model.named_parameters()}
        expected = {n: 0.75 * expected[n] + 0.25 * x for n, x in now.items()} if expected else now
    for name, value in expected.items():
        torch.testing.assert_close(task.state[f"ema/module.{name}"], value)
    assert any(name.startswith("teacher/") for name in task.state) == teacher


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
    train(cut, "--resume", "--train.steps", "9", preset=None)
    aside = weights(cut / "ema-step-8.safetensors")
    assert all(torch.equal(x, whole[name]) for name, x in aside.items()), "that of the earlier end"
    refused = train(cut, "--resume", "--train.ema", "0", "--train.steps", "12", preset=None, code=2)
    assert "error: train.ema=0.0: must be above 0, or left out, with --resume" in refused.stderr


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"train.ema=1.0: must be in \[0, 1\)"):
        TrainConfig(ema=1.0)
    config = FINETUNE_PRESETS["finetune-tiny"]
    with pytest.raises(ValueError, match=r"train.ema=0.9: must be 0 in fine-tuning, where head.ema averages"):
        replace(config, train=replace(config.train, ema=0.9))
