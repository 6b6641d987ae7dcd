"""Runs that start from an image MAE: once, before step 0, in every process, and never again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from diffmavil.config.files import load_config
from diffmavil.model import DiffMAViL
from diffmavil.model.exchange import initialise_from_image_mae
from tests.model.image_mae_files import random_state
from tests.runs import losses


class Begun(NamedTuple):
    folder: Path
    said: str
    file: Path
    """Gone since."""


def save_image_mae(path: Path) -> Path:
    """Of the size that `tests.runs` trains."""
    torch.save({"model": random_state(width=48, hidden=192, depth=1)}, path)
    return path


@pytest.fixture(scope="module")
def begun(train, tmp_path_factory) -> Begun:
    """Four steps from an image MAE."""
    folder = tmp_path_factory.mktemp("begun")
    file = save_image_mae(folder / "mae.pth")
    done = train(folder / "run", "--init", str(file), "--train.steps", "4")
    file.unlink()
    return Begun(folder / "run", done.stdout, file)


def test_it_is_said_once_and_remembered(begun):
    assert begun.said.count("init: ") == 1
    assert f"init: {begun.file}, an image MAE (MAE's own names): depth 1, width 48" in begun.said
    assert "  fusion: each block <- blocks.0; norm <- norm" in begun.said
    assert load_config(begun.folder / "config.yaml").train.init == str(begun.file)


def test_training_begins_with_these_weights_in_every_process(begun, train, tmp_path):
    """Two processes that learn next to nothing: they see the losses of one, and export what they began with."""
    folder, file = tmp_path / "two", save_image_mae(tmp_path / "mae.pth")
    still = ("--train.steps", "1", "--optim.lr", "1e-12")
    done = train(folder, "--init", str(file), *still, nproc=2)
    assert done.stdout.count("init: ") == 1
    assert losses(folder)[1] == pytest.approx(losses(begun.folder)[1], rel=1e-4)
    model = DiffMAViL(load_config(folder / "config.yaml").model)
    initialise_from_image_mae(model, file)
    exported = load_file(folder / "model.safetensors")
    for name, value in model.state_dict().items():
        if ".encoder." in name or name.startswith(("fusion.blocks", "fusion.norm")):
            torch.testing.assert_close(exported[name], value, rtol=0, atol=1e-6)


def test_a_resumed_run_does_not_read_the_file_again(begun, train, tmp_path):
    folder = shutil.copytree(begun.folder, tmp_path / "resumed")
    done = train(folder, "--resume", "--train.steps", "6", preset=None)
    assert "init:" not in done.stdout
    assert load_config(folder / "config.yaml").train.init == str(begun.file)
    assert list(losses(folder)) == list(range(1, 7))


def test_another_file_on_resume_is_refused(begun, train):
    done = train(begun.folder, "--resume", "--init", "other.pth", preset=None, code=2)
    assert f"error: train.init='other.pth': must be {str(begun.file)!r}, or left out" in done.stderr


def test_a_file_that_cannot_be_used_ends_before_any_work(train, tmp_path):
    missing = tmp_path / "missing.pth"
    done = train(tmp_path / "run", "--init", str(missing), code=2)
    assert done.stderr.strip() == f"error: init={str(missing)!r}: cannot be read: No such file or directory"
    assert not (tmp_path / "run").exists()
