"""What is recorded of the losses: of a model of one modality, those that it has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffmavil.config import Config
from diffmavil.config.presets import preset
from diffmavil.training.metrics import read_metrics
from diffmavil.training.planner import plan
from diffmavil.training.pretraining import Pretraining, loss_names

ALL = ("loss", "loss/video", "loss/audio", "loss/inter", "loss/intra")


def config(modalities: str, views: int) -> Config:
    base = preset("diffmavil-tiny")
    model = replace(base.model, modalities=modalities, views=views)
    return replace(base, model=replace(model, audio=replace(model.audio, mean=-6.0, std=4.0)))


@pytest.mark.parametrize("views", [1, 2])
def test_with_sound_and_picture_every_loss_is_recorded(views: int) -> None:
    assert loss_names(config("av", views).model) == ALL


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("modalities", ["audio", "video"])
def test_of_one_modality_what_is_left_out_is_0_and_nothing_else(modalities: str, views: int) -> None:
    task = Pretraining(config(modalities, views), torch.device("cpu"))
    losses = task.model(*task.random_inputs(2), **task.arguments(plan(task.config, 0), 0))
    recorded = [name for name, value in zip(ALL, losses, strict=True) if value != 0]
    assert [name for name in task.names if name is not None] == recorded
    assert len(task.names) == len(ALL)


def test_a_run_of_sound_alone_tells_of_sound_alone(train, tmp_path: Path) -> None:
    flags = ("--model.modalities", "audio", "--train.probe-every", "4", "--train.probe-clips", "12")
    told = train(tmp_path, *flags).stdout
    records = read_metrics(tmp_path)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    for names in (*records, board.Tags()["scalars"]):
        assert {name for name in names if name.startswith("loss")} == {"loss", "loss/audio"}
        assert not any("video" in name or "fused" in name for name in names)
    assert all(record["loss"] == record["loss/audio"] > 0 for record in records)
    assert any("probe/rank/audio" in record for record in records)
    steps = [line for line in told.splitlines() if line.startswith("step ") and " | " in line]
    assert len(steps) == 8
    assert all("(audio " in line and "video" not in line and "inter" not in line for line in steps)
    assert "the video features" not in told


@pytest.mark.parametrize(
    ("sets", "told", "noted"),
    [
        ((), False, None),
        ([(512, 1.0)], False, None),
        ([(511, 1.0)], True, None),
        ([(30, 1.0)], True, "up to 32 clips of a set of 30"),
        ([(10_000, 1.0), (200, 1.0)], True, None),
        ([(10_000, 3.0), (10, 1.0)], True, None),
        ([(10_000, 1.0), (10, 1.0)], True, "about 16 clips of a set of 10"),
        ([(10_000, 1.0), (10_000, 1.0)], False, None),
    ],
)
def test_the_contrast_is_told_which_clips_they_are_where_they_may_come_twice(sets, told, noted) -> None:
    """In a step of 32: of a small set, of a small one of several, and where two epochs meet."""
    task = Pretraining(config("av", 1), torch.device("cpu"), sets=sets)
    assert len(task.random_inputs(2)) == (3 if told else 2)
    assert (task.note is None) == (noted is None)
    assert noted is None or noted in str(task.note)
