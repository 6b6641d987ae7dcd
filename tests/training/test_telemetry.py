"""What is recorded of intervals whose steps were skipped: nothing, and never a loss of 0."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffmavil.config.files import CONFIG_FILE, save_config
from diffmavil.config.presets import preset
from diffmavil.reporting.page import write_report
from diffmavil.training.distributed import World
from diffmavil.training.metrics import read_metrics
from diffmavil.training.planner import plan
from diffmavil.training.step import StepResult
from diffmavil.training.telemetry import Monitor, Observation, Telemetry

NAN = float("nan")
LOSSES = [2.0, NAN, NAN, NAN, 1.0, 1.5]
"""Of each step; a logging interval has two."""


@pytest.fixture
def run_dir(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A run of six steps, of which the second to the fourth were skipped."""
    return run(tmp_path)


def run(tmp_path: Path, monitor: Monitor | None = None, probe_every: int = 0) -> Path:
    config = preset("diffmavil-tiny")
    settings = replace(config.train, steps=6, log_every=2, max_nonfinite=10, probe_every=probe_every)
    config = replace(config, train=settings)
    save_config(config, tmp_path / CONFIG_FILE)
    names = ("loss", "loss/video", "loss/audio", "loss/inter", "loss/intra")
    task = SimpleNamespace(names=names, step_flops=lambda now: 1.0, metrics=lambda now: RATIOS)
    step: Any = SimpleNamespace(task=task, nonfinite=torch.zeros(()), nonfinite_run=torch.zeros(()))
    folder: Any = SimpleNamespace(folder=tmp_path, notes=())
    loader: Any = SimpleNamespace(data_wait=0.0, bad={})
    with Telemetry(folder, config, World(0, 1, torch.device("cpu")), step, loader, 0, monitor) as telemetry:
        for done, loss in enumerate(LOSSES, 1):
            step.nonfinite += loss != loss
            result = StepResult(torch.full((5,), loss), torch.tensor(loss))
            telemetry.after_step(done, plan(config, done - 1), result, flush=False)
    return tmp_path


def test_a_monitor_sees_its_steps_and_its_time_is_not_that_of_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def look(done: int) -> Observation:
        time.sleep(0.3)
        return Observation({"probe/rank/audio": float(done)}, [f"step {done}: seen"])

    run(tmp_path, look, probe_every=3)
    records = read_metrics(tmp_path)
    assert [record["step"] for record in records] == [2, 3, 4, 6]
    assert [record.get("probe/rank/audio") for record in records] == [None, 3.0, None, 6.0]
    assert all(record["seconds_per_step"] < 0.2 for record in records)
    told = capsys.readouterr().out
    assert told.index("step 3: seen") < told.index("step 3/6")


def test_a_monitor_sees_the_last_step_too(tmp_path: Path) -> None:
    """Whose weights are those that the rate has fallen to nothing for."""
    seen: list[int] = []

    def look(done: int) -> Observation:
        seen.append(done)
        return Observation({}, [])

    run(tmp_path, look, probe_every=4)
    assert seen == [4, 6]


def test_without_an_interval_a_monitor_sees_nothing(tmp_path: Path) -> None:
    run(tmp_path, lambda done: pytest.fail("asked for nothing"))
    assert [record["step"] for record in read_metrics(tmp_path)] == [2, 4, 6]


RATIOS = {"mask_ratio/video": 0.9, "mask_ratio/audio": 0.8}


def test_an_interval_without_a_good_step_has_no_loss(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")) for line in lines]
    assert [record["loss"] for record in records] == [2.0, None, 1.25]
    assert [record["grad_norm"] for record in records] == [2.0, None, 1.25]
    assert [record["loss/audio"] for record in records] == [2.0, None, 1.25]
    assert [record["nonfinite_steps"] for record in records] == [1, 3, 3]
    told = capsys.readouterr().out.splitlines()
    assert "loss 2.0000" in told[0]
    assert "no loss (all steps skipped)" in told[1]
    assert "nan" not in told[1]
    assert "loss 1.2500" in told[2]


def test_tensorboard_gets_no_such_point(run_dir: Path) -> None:
    board = EventAccumulator(str(run_dir / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(2, 2.0), (6, 1.25)]
    assert [event.step for event in board.Scalars("batch_size")] == [2, 4, 6]


def test_the_report_shows_a_gap(run_dir: Path) -> None:
    losses = [record["loss"] for record in read_metrics(run_dir)]
    assert losses[0] == 2.0
    assert losses[1] != losses[1]
    page = write_report(run_dir).read_text()
    assert "<svg" in page
    assert "6 of 6" in page
