"""Runs that are stopped, killed, resumed and made longer."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time

import pytest

from diffmavil.evaluation.pretrained import find_weights
from diffmavil.model.weights import load_weights
from diffmavil.training.checkpoint import checkpoints
from diffmavil.training.metrics import read_metrics
from tests.killed import kill_after_two_checkpoints
from tests.runs import losses


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
    kill_after_two_checkpoints(train_command(folder, *steps, "--train.checkpoint-every", "2"), folder, environment)
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
