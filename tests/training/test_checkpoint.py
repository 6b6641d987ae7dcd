"""Checkpoints: every bit comes back, damage is found, foreign names are left alone, and no pickle is obeyed."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diffmavil.config import Config, EncoderConfig
from diffmavil.config.errors import RunError
from diffmavil.config.presets import PRESETS
from diffmavil.training.checkpoint import (
    Progress,
    TrainState,
    checkpoints,
    complaint,
    load_checkpoint,
    newest_whole,
    read_progress,
    save_checkpoint,
)
from diffmavil.training.distributed import World
from diffmavil.training.optim import LR_SCALE
from diffmavil.training.planner import plan
from diffmavil.training.pretraining import Pretraining
from diffmavil.training.step import TrainStep

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def config(optimizer: str = "adamw") -> Config:
    tiny = PRESETS["diffmavil-tiny"]
    audio = replace(tiny.model.audio, mean=0.0, std=1.0)
    model = replace(tiny.model, audio=audio, encoder=EncoderConfig(depth=1, width=48, heads=3))
    train = replace(tiny.train, batch_size=4, precision="fp32", keep_checkpoints=2)
    return replace(tiny, model=model, train=train, optim=replace(tiny.optim, name=optimizer))


def trained(of: Config, steps: int = 2) -> TrainStep:
    step = TrainStep(Pretraining(of, ALONE.device), of, ALONE)
    for number in range(steps):
        step.one_pass(step.task.random_inputs(2), plan(of, number), 0, 1.0)
        step._update(step._clip())
    return step


def leaves(state: TrainState) -> dict[str, Any]:
    found = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict | list):
            for key, below in value.items() if isinstance(value, dict) else enumerate(value):
                walk(below, f"{path}/{key}")
        else:
            found[path] = value

    walk(state.tree(), "")
    return found


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_bit_comes_back(tmp_path: Path, optimizer: str):
    of = config(optimizer)
    step, fresh = trained(of), trained(of, steps=0)
    progress = Progress(2, 8, {"clips": 3, "tried": "4A==", "bad": "AA==", "reasons": {"a": "b"}})
    path = save_checkpoint(tmp_path, progress, step.state, of, ALONE)
    assert complaint(path) is None
    assert read_progress(path) == progress
    load_checkpoint(path, fresh.state)
    ours, theirs = leaves(fresh.state), leaves(step.state)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value) if isinstance(value, torch.Tensor) else ours[name] == value, name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_the_optimiser_is_asked_for_now_holds_and_what_it_knows_comes_back(tmp_path: Path, optimizer: str):
    of = config(optimizer)
    of = replace(of, optim=replace(of.optim, layer_decay=0.75))
    path = save_checkpoint(tmp_path, Progress(2, 8), trained(of).state, of, ALONE)
    changed = replace(of, optim=replace(of.optim, weight_decay=0.2, betas=(0.5, 0.6), layer_decay=0.5, muon_steps=3))
    fresh, same = trained(changed, steps=0), trained(of, steps=0)
    load_checkpoint(path, fresh.state)
    load_checkpoint(path, same.state)
    groups = [group for optimizer in fresh.optimizers for group in optimizer.param_groups]
    assert {group["weight_decay"] for group in groups} == {0.0, 0.2}
    assert {group["betas"] for group in groups if "betas" in group} == {(0.5, 0.6)}
    assert {group["ns_steps"] for group in groups if "ns_steps" in group} == ({3} if optimizer == "muon" else set())
    assert {group[LR_SCALE] for group in groups} == {1.0, 0.5, 0.25}
    ours, theirs = leaves(fresh.state), leaves(same.state)
    state = [name for name, value in theirs.items() if isinstance(value, torch.Tensor)]
    assert any("exp_avg" in name for name in state)
    assert all(torch.equal(ours[name], theirs[name]) for name in state)


def test_settings_of_another_optimiser_are_refused(tmp_path: Path):
    of = config("muon")
    path = save_checkpoint(tmp_path, Progress(2, 8), trained(of).state, of, ALONE)
    told = json.loads((path / "state.json").read_text())
    group = next(name.rpartition("/")[0] for name in told["others"] if name.endswith("/ns_steps"))
    told["others"] |= {f"{group}/amsgrad": True}
    (path / "state.json").write_text(json.dumps(told))
    with pytest.raises(RunError, match=r"other optimisers: .*amsgrad"):
        load_checkpoint(path, trained(of, steps=0).state)


def test_a_checkpoint_before_any_step_that_counted_has_what_muon_needs(tmp_path: Path):
    of = config("muon")
    step = trained(of, steps=0)
    step.one_pass(step.task.random_inputs(2), plan(of, 0), 0, 1.0)
    step._update(torch.tensor(math.nan))
    path = save_checkpoint(tmp_path, Progress(1, 4), step.state, of, ALONE)
    other = trained(of)
    load_checkpoint(path, other.state)
    for name, value in leaves(step.state).items():
        found = leaves(other.state)[name]
        assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value, name


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


DAMAGE = {
    "a bit": lambda path: flip(next(path.glob("*.safetensors"))),
    "cut off": lambda path: os.truncate(next(path.glob("*.safetensors")), 1000),
    "no tensors": lambda path: next(path.glob("*.safetensors")).unlink(),
    "no state": lambda path: (path / "state.json").unlink(),
    "another config": lambda path: flip(path / "config.yaml"),
    "no checksums": lambda path: (path / "checksums.json").unlink(),
    "no json": lambda path: (path / "checksums.json").write_text("[1"),
    "json of something else": lambda path: (path / "checksums.json").write_text("[1]"),
    "half the checksums": lambda path: (path / "checksums.json").write_text("{}"),
}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for number in (2, 4):
        save_checkpoint(folder, Progress(number, 4 * number), trained(config()).state, config(), ALONE)
    return folder


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=list(DAMAGE))
def test_a_damaged_checkpoint_is_left_out_for_the_one_before(two: Path, tmp_path: Path, damage):
    run = shutil.copytree(two, tmp_path / "run")
    damage(run / "checkpoints" / "step-00000004")
    found, said = newest_whole(run)
    assert found == run / "checkpoints" / "step-00000002"
    assert len(said) == 1
    assert said[0].startswith("step-00000004 is damaged and left out: ")
    damage(run / "checkpoints" / "step-00000002")
    with pytest.raises(RunError, match=r"(?s)no checkpoint is whole.*step-00000004.*step-00000002"):
        newest_whole(run)


def test_foreign_names_are_no_checkpoints_and_stay(two: Path, tmp_path: Path):
    run = shutil.copytree(two, tmp_path / "run")
    folder = run / "checkpoints"
    for name in ("step-00000004.bak", "step-9", "step-00000009x", "best"):
        shutil.copytree(folder / "step-00000004", folder / name)
    (folder / "step-00000007").write_text("a file")
    assert [path.name for path in checkpoints(run)] == ["step-00000002", "step-00000004"]
    save_checkpoint(run, Progress(6, 24), trained(config()).state, config(), ALONE)
    assert {path.name for path in folder.iterdir()} == {
        *("step-00000004", "step-00000006"),
        *("step-00000004.bak", "step-9", "step-00000009x", "best", "step-00000007"),
    }


def test_a_run_that_went_back_keeps_what_it_writes(two: Path, tmp_path: Path):
    """Past a damaged checkpoint, which is not one of the newest that are kept."""
    run = shutil.copytree(two, tmp_path / "run")
    flip(run / "checkpoints" / "step-00000004" / "config.yaml")
    of = replace(config(), train=replace(config().train, keep_checkpoints=1))
    path = save_checkpoint(run, Progress(3, 12), trained(of).state, of, ALONE)
    assert checkpoints(run) == [path]
    assert newest_whole(run) == (path, [])


def test_another_model_is_a_message(two: Path):
    other = replace(config(), model=replace(config().model, encoder=EncoderConfig(depth=1, width=96, heads=3)))
    with pytest.raises(RunError, match="step-00000004: cannot be loaded into this model"):
        load_checkpoint(two / "checkpoints" / "step-00000004", trained(other, steps=0).state)
    with pytest.raises(RunError, match="other optimisers"):
        load_checkpoint(two / "checkpoints" / "step-00000004", trained(config("muon"), steps=0).state)


class Planted:
    """Whoever unpickles it runs its code."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_code_in_a_file_of_torchs_format_is_not_run(two: Path, tmp_path: Path):
    """torch's own reader would unpickle it."""
    mark = tmp_path / "it-ran"
    path = shutil.copytree(two, tmp_path / "new") / "checkpoints" / "step-00000004"
    (path / ".metadata").write_bytes(pickle.dumps(Planted(mark)))
    assert complaint(path) is None
    fresh = trained(config(), steps=0)
    load_checkpoint(path, fresh.state)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Planted(mark)))
    assert mark.exists()  # it would have


def test_what_a_kill_left_half_written_goes_with_the_next_checkpoint(tmp_path: Path):
    of = config()
    left = tmp_path / "checkpoints" / ".step-00000437.partial"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    step = trained(of, steps=1)
    path = save_checkpoint(tmp_path, Progress(500, 2000, {}), step.state, of, ALONE)
    assert [file.name for file in path.parent.iterdir()] == ["step-00000500"]
