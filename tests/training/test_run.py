"""Whole runs: what is written, resume, signals, many processes, divergence, bad data."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffmavil.config.errors import UsageError
from diffmavil.config.presets import PRESETS
from diffmavil.data.clips import Clip, ClipSet, told_apart
from diffmavil.evaluation.pretrained import find_weights
from diffmavil.model import DiffMAViL
from diffmavil.model.weights import export_weights, load_weights
from diffmavil.training.checkpoint import checkpoints
from diffmavil.training.distributed import World
from diffmavil.training.metrics import read_metrics
from diffmavil.training.pretraining import random_clips
from tests.runs import losses


@pytest.fixture(scope="session")
def whole_run(train, tmp_path_factory) -> Path:
    """Eight steps, never interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(folder)
    return folder


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


def test_resume_is_bit_exact(whole_run, train, tmp_path):
    """Stopped at step 4 and resumed, with another number of workers: the same losses to the last bit."""
    folder = tmp_path / "cut"
    train(folder, "--train.checkpoint-every", "4")
    shutil.rmtree(folder / "checkpoints" / "step-00000008")
    (folder / "model.safetensors").unlink()
    done = train(folder, "--resume", "--data.workers", "1", preset=None)
    assert "changed on resume: data.workers: 0 -> 1" in done.stdout
    assert losses(folder) == losses(whole_run)
    assert (folder / "model.safetensors").read_bytes() != b""
    ours, theirs = load_weights(folder / "model.safetensors")[0], load_weights(whole_run / "model.safetensors")[0]
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert a.equal(b), name


def test_sigterm_saves_exits_0_and_the_run_goes_on_as_if_nothing_had_been(
    whole_run, train, train_command, environment, tmp_path
):
    folder = tmp_path / "terminated"
    process = subprocess.Popen(
        train_command(folder), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline, "the run never took a step"
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert len(checkpoints(folder)) == 1, output
    assert re.search(r"stopped by a signal after step \d of 8; --resume goes on from there", output), output
    train(folder, "--resume", preset=None)
    assert losses(folder) == losses(whole_run)


def test_kill_9_and_resume_as_if_nothing_had_been(train, train_command, environment, tmp_path):
    """Killed at any moment, a write of a checkpoint or of a metric included: the same losses to the last bit."""
    # Many more steps than pass before the kill, so that it comes in the middle on a slow machine too.
    steps = ("--train.steps", "60")
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    train(whole, *steps)
    process = subprocess.Popen(
        train_command(folder, *steps, "--train.checkpoint-every", "2"),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 120
    while len(checkpoints(folder)) < 2:
        assert time.monotonic() < deadline, "the run never wrote its second checkpoint"
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, output
    assert not (folder / "model.safetensors").exists()
    train(folder, *steps, "--resume", preset=None)  # the fixture says 8 steps each time
    resumed = losses(folder)
    assert list(resumed) == list(range(1, 61))
    assert resumed == losses(whole)


def test_a_killed_write_leaves_no_half_checkpoint(whole_run, train, tmp_path):
    """A partial folder, as a kill leaves it, is neither used nor in the way."""
    folder = tmp_path / "killed"
    train(folder, "--train.checkpoint-every", "4")
    shutil.rmtree(folder / "checkpoints" / "step-00000008")
    partial = folder / "checkpoints" / ".step-00000008.partial"
    partial.mkdir()
    (partial / "__0_0.distcp").write_bytes(b"cut off")
    train(folder, "--resume", preset=None)
    assert losses(folder) == losses(whole_run)
    assert not partial.exists()


def test_an_adaptive_run_resumes_bit_exactly_with_the_plan_it_was_given(train, tmp_path):
    """Batches of several sizes, in passes, with the mixed ratios of packed attention; stopped at step 3 and resumed."""
    flags = (
        *("--batch.rule", "flops", "--batch.multiple", "2", "--batch.lr-rule", "sqrt", "--batch.memory-gib", "0.01"),
        *("--train.batch-size", "16"),
        *(
            "--mask.video.levels",
            "2",
            "--mask.audio.levels",
            "2",
            "--mask.video.start",
            "0.95",
            "--mask.mix",
            "0",
            "-0.1",
        ),
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = train(whole, *flags)
    assert "clips a step" in done.stdout  # the plan, before training
    records = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    sizes = [r["batch_size"] for r in records]
    assert len(set(sizes)) == 2
    assert [r["samples"] for r in records] == [sum(sizes[: i + 1]) for i in range(len(sizes))]
    train(cut, *flags, "--train.checkpoint-every", "3")
    for later in checkpoints(cut)[1:]:
        shutil.rmtree(later)
    train(cut, "--resume", "--train.batch-size", "16", preset=None)  # the fixture says 4 each time
    assert losses(cut) == losses(whole)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--batch.at-once", *"11111111")], ids=["whole", "clip by clip"])
def test_two_processes_follow_the_loss_curve_of_one(whole_run, train, tmp_path, flags):
    """Also where each computes its clips one after the other: the contrast is that of the whole batch."""
    folder = tmp_path / "two"
    train(folder, *flags, nproc=2)
    one, two = losses(whole_run), losses(folder)
    assert one.keys() == two.keys()
    for step in one:
        assert two[step] == pytest.approx(one[step], rel=2e-4, abs=2e-4), step


@pytest.mark.slow
def test_two_processes_resume_from_one(whole_run, train, tmp_path):
    folder = tmp_path / "grown"
    train(folder, "--train.checkpoint-every", "4")
    shutil.rmtree(folder / "checkpoints" / "step-00000008")
    train(folder, "--resume", preset=None, nproc=2)
    one, two = losses(whole_run), losses(folder)
    for step in one:
        assert two[step] == pytest.approx(one[step], rel=2e-4, abs=2e-4), step


def test_a_resume_with_another_batch_sees_every_sample_once(whole_run, train, tmp_path):
    """Half of the run with batches of 4, the rest of its 32 samples with batches of 8; a further resume keeps to it."""
    folder = tmp_path / "run"
    train(folder, "--train.checkpoint-every", "4")
    shutil.rmtree(folder / "checkpoints" / "step-00000008")
    done = train(folder, "--resume", "--train.batch-size", "8", "--train.checkpoint-every", "1", preset=None)
    assert "changed on resume: train.batch_size: 4 -> 8" in done.stdout
    records = read_metrics(folder)
    assert [(r["step"], r["samples"]) for r in records] == [
        *((step, 4 * step) for step in range(1, 5)),
        *((4 + step, 16 + 8 * step) for step in range(1, 3)),
    ]
    shutil.rmtree(folder / "checkpoints" / "step-00000006")
    done = train(folder, "--resume", "--train.batch-size", "8", "--train.steps", "4", preset=None)
    assert "changed on resume: train" not in done.stdout
    assert read_metrics(folder)[-1]["loss"] == records[-1]["loss"]


def test_a_resume_to_an_end_that_is_passed_is_refused(whole_run, train, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole_run, folder)
    before = (folder / "config.yaml").read_bytes()
    done = train(folder, "--resume", "--train.steps", "5", preset=None, code=2)
    assert "train.steps (or head.epochs)=5: must be more than 7 with batches of 4" in done.stderr
    done = train(folder, "--resume", "--train.batch-size", "2", "--train.steps", "12", preset=None, code=2)
    assert "train.steps (or head.epochs)=12: must be more than 14 with batches of 2" in done.stderr
    assert (folder / "config.yaml").read_bytes() == before


def test_a_run_that_goes_on_gives_its_newest_weights_and_not_those_of_its_first_end(whole_run, train, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole_run, folder)
    train(folder, "--resume", "--train.steps", "8", preset=None)
    assert not (folder / "model-step-8.safetensors").exists(), "nothing was left to do"
    first = (folder / "model.safetensors").read_bytes()
    done = train(folder, "--resume", "--train.steps", "12", "--optim.lr", "1e30", "--train.max-nonfinite", "1",
                 preset=None, code=1)  # fmt: skip
    assert "the weights of its earlier end are model-step-8.safetensors now" in done.stdout
    assert (folder / "model-step-8.safetensors").read_bytes() == first
    assert find_weights(folder).parent.name == "checkpoints"


class Two(World):
    """A process beside another one, which has a clip less."""

    def gather(self, value):
        return [value, value.replace("2 clips", "1 clips")]


def test_processes_with_other_clips_are_refused():
    """As of machines that have copies of a set, one of them a file short; where the copies lie does not matter."""
    names = ("/a/x", "/a/y"), ("/b/x", "/b/y"), ("/a/x", "/a/w")
    here, there, other = (told_apart(ClipSet([Clip(name) for name in each], [])) for each in names)
    assert here == there != other
    peers = Two(0, 2, torch.device("cpu"))
    peers.check_alike("the training clips", lambda: "4 clips")
    with pytest.raises(UsageError, match=r"the training clips: 2 clips .* on rank 0, 1 clips .* on rank 1"):
        peers.check_alike("the training clips", lambda: here)


def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(whole_run, train, tmp_path):
    folder = tmp_path / "run"
    train(folder, "--train.checkpoint-every", "4")
    (folder / "model.safetensors").unlink()
    tensors = next((folder / "checkpoints" / "step-00000008").glob("*.safetensors"))
    tensors.write_bytes(tensors.read_bytes()[:-1])
    done = train(folder, "--resume", preset=None)
    assert "step-00000008 is damaged and left out: " in done.stdout
    assert losses(folder) == losses(whole_run)
    for tensors in (folder / "checkpoints").glob("*/*.safetensors"):
        tensors.write_bytes(b"")
    done = train(folder, "--resume", preset=None, code=1)
    assert "no checkpoint is whole" in done.stderr
    assert "Traceback" not in done.stderr


def test_divergence_stops_the_run_with_a_message(train, tmp_path):
    done = train(tmp_path / "run", "--optim.lr", "1e30", "--train.max-nonfinite", "2", code=1)
    assert "not finite" in done.stderr
    assert "optim.lr" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_batch_that_does_not_divide_is_refused(train, tmp_path):
    done = train(tmp_path / "run", "--train.batch-size", "5", nproc=2, code=1)
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
