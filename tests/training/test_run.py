"""Whole runs: what is written, many processes, divergence, bad data."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace

import pytest
import torch

from diffmavil.config.errors import UsageError
from diffmavil.config.presets import PRESETS
from diffmavil.data.clips import Clip, ClipSet, signature
from diffmavil.model import DiffMAViL
from diffmavil.model.weights import export_weights, load_weights
from diffmavil.training.checkpoint import checkpoints
from diffmavil.training.distributed import World
from diffmavil.training.pretraining import random_clips
from tests.data.clip_files import write_clip
from tests.runs import losses
from tests.warm import free_port


def test_a_run_writes_what_the_readme_says(whole_run):
    assert (whole_run / "config.yaml").exists()
    assert list((whole_run / "tensorboard").glob("events*"))
    assert [c.name for c in checkpoints(whole_run)] == ["step-00000008"]
    records = [json.loads(line) for line in (whole_run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == list(range(1, 9))
    assert all(0 <= r["data_wait"] <= 1 and r["clips_per_second"] > 0 and r["gflop_per_second"] > 0 for r in records)
    ratios = [r["mask_ratio/video"] for r in records]
    assert ratios[0] > ratios[-1]


def test_exported_weights_carry_config_and_statistics(whole_run):
    model, config = load_weights(whole_run / "model.safetensors")
    assert config.model.audio.mean is not None
    assert config.model.video.size == 32
    assert not model.training


def test_weights_of_a_run_that_forced_kernels_of_cuda_are_read_on_a_cpu(tmp_path):
    config = PRESETS["diffmavil-tiny"]
    model = DiffMAViL(config.model)
    forced = replace(config, model=replace(config.model, attention="flash", norm="apex"))
    export_weights(model, forced, tmp_path / "model.safetensors")
    read, told = load_weights(tmp_path / "model.safetensors")
    assert told == forced
    video, spec = random_clips(config, 2, torch.device("cpu"))
    with torch.inference_mode():
        assert torch.equal(read.features(video, spec).fused, model.features(video, spec).fused)


def test_a_second_run_in_the_same_folder_is_refused(whole_run, train):
    done = train(whole_run, code=2)
    assert "--resume" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--batch.at-once", *"11111111")], ids=["whole", "clip by clip"])
def test_two_processes_follow_the_loss_curve_of_one(whole_run, train, tmp_path, flags):
    """By torch's launcher. Also where each computes its clips one after the other: the contrast is that of the whole
    batch."""
    folder = tmp_path / "two"
    train(folder, *flags, nproc=2, real=not flags)
    one, two = losses(whole_run), losses(folder)
    assert one.keys() == two.keys()
    for step in one:
        assert two[step] == pytest.approx(one[step], rel=2e-4, abs=2e-4), step


class Two(World):
    """A process beside another one, which has a clip less."""

    def gather(self, value):
        return [value, value.replace("2 clips", "1 clips")]


def test_processes_with_other_clips_are_refused():
    """As of machines that have copies of a set, one of them a file short; where the copies lie does not matter."""
    names = ("/a/x", "/a/y"), ("/b/x", "/b/y"), ("/a/x", "/a/w")
    here, there, other = (signature(ClipSet([Clip(name) for name in each], [])) for each in names)
    assert here == there != other
    peers = Two(0, 2, torch.device("cpu"))
    peers.check_alike("the training clips", lambda: "4 clips")
    with pytest.raises(UsageError, match=r"the training clips: 2 clips .* on rank 0, 1 clips .* on rank 1"):
        peers.check_alike("the training clips", lambda: here)


@pytest.mark.slow
def test_two_machines_with_other_copies_of_a_set_do_not_train_together(train_command, environment, tmp_path):
    """Each has its own home folder, and one copy is a clip short."""
    for rank, clips in enumerate((8, 7)):
        (tmp_path / f"home{rank}" / "clips").mkdir(parents=True)
        for i in range(clips):
            write_clip(tmp_path / f"home{rank}" / "clips" / f"{i}.mp4", seconds=1.0)
    data = ("--data.root", "~/clips", "--data.eval-root", str(tmp_path / "home1" / "clips"))
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            train_command(tmp_path / "run", *data),
            env={**environment, **place, "RANK": rank, "LOCAL_RANK": rank, "HOME": str(tmp_path / f"home{rank}")},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    for process in ranks:
        _, said = process.communicate(timeout=200)
        assert process.returncode == 2, said
        assert "the training clips: 8 clips (digest " in said
        assert "7 clips (digest " in said
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


def test_divergence_stops_the_run_with_a_message(train, tmp_path):
    done = train(tmp_path / "run", "--optim.lr", "1e30", "--train.max-nonfinite", "2", code=1)
    assert "not finite" in done.stderr
    assert "optim.lr" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_batch_that_does_not_divide_is_refused(train, tmp_path):
    done = train(tmp_path / "run", "--train.batch-size", "5", nproc=2, code=2)
    assert "multiple of the 2 processes" in done.stderr


def test_nothing_to_train_on_is_a_usage_error(train, tmp_path):
    (tmp_path / "empty").mkdir()
    done = train(tmp_path / "run", "--data.root", str(tmp_path / "empty"), code=2)
    assert "mp4" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("nproc", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_batch_larger_than_the_set_says_so_once_and_trains(train, tmp_path, nproc):
    flags = ("--data.synthetic-train", "24", "--train.batch-size", "28", "--train.steps", "2")
    done = train(tmp_path / "run", *flags, nproc=nproc)
    assert done.stdout.count("a step takes up to 28 clips of a set of 24: some come twice") == 1
    assert len(losses(tmp_path / "run")) == 2
