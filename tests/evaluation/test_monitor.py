"""Looks at the features in the loop: what they find, that they change nothing, and what is made of a collapse."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import diffmavil.evaluation.monitor as monitoring
from diffmavil.config import Config
from diffmavil.data.clips import Split
from diffmavil.data.sources import split_source
from diffmavil.evaluation.features import KINDS, extract, untrained_model
from diffmavil.evaluation.monitor import FeatureMonitor, effective_rank, statistics
from diffmavil.model import DiffMAViL
from diffmavil.model.weights import load_weights
from diffmavil.reporting.page import write_report
from diffmavil.training.compiling import compile_blocks
from diffmavil.training.metrics import read_metrics
from tests.runs import losses

STATISTICS = {f"probe/{what}/{kind}" for what in ("rank", "norm", "dead") for kind in KINDS}
NEIGHBOURS = {f"probe/knn/{kind}" for kind in KINDS}


@pytest.fixture
def split(config: Config) -> Split:
    return split_source(config.data)


# Numbers


@pytest.mark.parametrize(
    ("values", "rank"),
    [
        ([1, 1, 1, 1], 4.0),
        ([5, 0, 0, 0], 1.0),
        ([3, 1, 0, 0], math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))),
    ],
    ids=["all alike", "one", "two"],
)
def test_effective_rank_is_exp_of_the_entropy_of_the_singular_values(values, rank):
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, 4, generator=generator, dtype=torch.float64)).Q for n in (30, 9))
    assert effective_rank(7 * u * torch.tensor(values) @ v.T) == pytest.approx(rank, rel=1e-6)


def test_statistics_of_features_some_of_which_never_change():
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    x[:, :2] = 3.0
    found = statistics(x)
    assert found["dead"] == 0.25
    assert found["norm"] == pytest.approx(x.norm(dim=1).mean().item())
    assert statistics(torch.full((50, 8), 2.0)) == {"rank": pytest.approx(1), "norm": pytest.approx(32**0.5), "dead": 1}
    assert statistics(torch.zeros(5, 4)) == {"rank": 0, "norm": 0, "dead": 1}
    assert all(math.isnan(value) for value in statistics(torch.zeros(0, 4)).values())


def test_a_look_is_at_the_features_of_held_out_clips(config: Config, split: Split, tmp_path: Path):
    model = untrained_model(config.model, seed=3)
    seen = FeatureMonitor(model, config, split, tmp_path)(10).metrics
    assert seen.keys() == STATISTICS | NEIGHBOURS | {"probe/seconds"}
    features = extract({"it": model}, config, split.held_out).features["it"]
    for kind in KINDS:
        assert seen[f"probe/rank/{kind}"] == pytest.approx(effective_rank(features[kind]), rel=1e-4)
        assert 0 <= seen[f"probe/knn/{kind}"] <= 1
    assert seen["probe/seconds"] > 0


def test_clips_are_bounded_spread_and_decoded_once(config: Config, split: Split, tmp_path: Path, monkeypatch):
    decoded = []
    batches = monitoring.eval_batches
    monkeypatch.setattr(monitoring, "eval_batches", lambda *a, **k: decoded.append(a[1]) or batches(*a, **k))
    config = replace(config, train=replace(config.train, probe_clips=6))
    look = FeatureMonitor(untrained_model(config.model, seed=3), config, split, tmp_path)
    first, second = look(10).metrics, look(20).metrics
    assert [clips.clips for clips in decoded] == [split.held_out.clips[::4], split.train.clips[::4]]
    assert {**first, "probe/seconds": 0} == {**second, "probe/seconds": 0}
    monkeypatch.setattr(monitoring, "KEEP_BYTES", 0)
    look = FeatureMonitor(untrained_model(config.model, seed=3), config, split, tmp_path)
    assert {**first, "probe/seconds": 0} == {**look(10).metrics, "probe/seconds": 0}
    assert {**first, "probe/seconds": 0} == {**look(20).metrics, "probe/seconds": 0}
    assert len(decoded) == 6, "too much to keep"


def test_without_labels_there_are_no_neighbours(config: Config, split: Split, tmp_path: Path):
    bare = replace(split.held_out, clips=[replace(clip, labels=()) for clip in split.held_out.clips])
    look = FeatureMonitor(untrained_model(config.model, seed=3), config, Split(split.train, bare), tmp_path)
    assert look(10).metrics.keys() == STATISTICS | {"probe/seconds"}


def test_clips_that_are_gone_are_told_and_end_nothing(config: Config, split: Split, tmp_path: Path):
    gone = replace(split.held_out, clips=[replace(clip, path="gone.mp4") for clip in split.held_out.clips[:2]])
    metrics, lines = FeatureMonitor(untrained_model(config.model, seed=3), config, Split(split.train, gone), tmp_path)(
        7
    )
    assert metrics.keys() == {"probe/seconds"}
    assert len(lines) == 1
    assert lines[0].startswith("step 7: the features were not looked at: no clip could be used")


# What it must leave alone


def test_a_look_changes_neither_model_nor_random_numbers(config: Config, split: Split, tmp_path: Path):
    model = untrained_model(config.model, seed=3).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    FeatureMonitor(model, config, split, tmp_path)(10)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_look_compiles_nothing(config: Config, split: Split, tmp_path: Path):
    model = untrained_model(config.model, seed=3)

    def backend(graph, inputs):
        pytest.fail("compiled for whole clips")

    compile_blocks(model, config, backend)
    assert FeatureMonitor(model, config, split, tmp_path)(10).metrics.keys() >= STATISTICS


# A collapse


@pytest.fixture
def collapse(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Makes audio features differ between clips by this share of what they do."""
    features = DiffMAViL.features

    def apply(share: float) -> None:
        def pressed(self: DiffMAViL, video: Tensor, spec: Tensor, heard: Tensor):
            found = features(self, video, spec, heard)
            return found._replace(audio=1 + share * found.audio)

        monkeypatch.setattr(DiffMAViL, "features", pressed)

    return apply


def test_a_collapse_is_told_once_until_it_is_over(config: Config, split: Split, tmp_path: Path, collapse):
    look = FeatureMonitor(untrained_model(config.model, seed=3), config, split, tmp_path)
    assert look(1).lines == []
    collapse(1e-4)
    rank, dead = look(2).lines
    assert rank.startswith(
        "step 2: warning, the model may be collapsing: the effective rank of the audio features is 1"
    )
    assert dead.endswith("collapsing: 100% of the dimensions of the audio features are the same for all clips")
    assert look(3).lines == []
    collapse(1.0)
    assert look(4).lines == []
    collapse(math.nan)
    assert look(5).lines[0] == "step 5: warning, the model may be collapsing: no audio features are finite"


def test_after_a_resume_ranks_are_compared_with_the_runs_first(config: Config, split: Split, tmp_path: Path):
    records = [{"step": 1, "loss": 1.0}, {"step": 2, "probe/rank/video": 4000.0}, {"step": 3, "probe/rank/video": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    lines = FeatureMonitor(untrained_model(config.model, seed=3), config, split, tmp_path)(4).lines
    assert len(lines) == 1
    assert "the effective rank of the video features is" in lines[0]
    assert lines[0].endswith("at first 4000.0")


# Whole runs

PROBES = ("--train.probe-every", "3", "--train.probe-clips", "8")


@pytest.fixture(scope="module")
def probed(train, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "probed"
    train(folder, *PROBES, "--train.checkpoint-every", "4", "--data.workers", "1")
    return folder


def probes(run_dir: Path) -> dict[int, dict[str, float]]:
    """Step -> what was seen, without the time it took."""
    found = {int(record["step"]): record for record in read_metrics(run_dir)}
    seen = {step: {k: v for k, v in record.items() if k.startswith("probe/")} for step, record in found.items()}
    return {step: {k: v for k, v in record.items() if k != "probe/seconds"} for step, record in seen.items() if record}


def test_a_run_is_the_same_bit_for_bit_with_and_without(probed: Path, train, tmp_path: Path):
    plain = tmp_path / "plain"
    train(plain)
    assert losses(plain) == losses(probed)
    ours, theirs = (load_weights(folder / "model.safetensors")[0].state_dict() for folder in (plain, probed))
    assert all(value.equal(theirs[name]) for name, value in ours.items())


def test_what_was_seen_stands_in_its_steps_records_tensorboard_and_report(probed: Path):
    assert list(probes(probed)) == [3, 6, 8]  # of eight steps, the last too
    assert all(seen.keys() == STATISTICS | NEIGHBOURS for seen in probes(probed).values())
    board = EventAccumulator(str(probed / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("probe/knn/fused")] == [3, 6, 8]
    page = write_report(probed).read_text()
    assert "Features while training" in page
    assert "effective rank" in page


def test_a_resumed_run_sees_the_same(probed: Path, train, tmp_path: Path):
    folder = tmp_path / "resumed"
    shutil.copytree(probed, folder)
    shutil.rmtree(folder / "checkpoints" / "step-00000008")
    (folder / "model.safetensors").unlink()
    train(folder, "--resume", preset=None)
    assert losses(folder) == losses(probed)
    assert probes(folder) == probes(probed)


def test_of_two_processes_one_looks_and_the_other_waits(probed: Path, train, tmp_path: Path):
    folder = tmp_path / "two"
    train(folder, *PROBES, nproc=2)
    assert probes(folder).keys() == {3, 6, 8}
    for step, seen in probes(folder).items():
        assert seen == pytest.approx(probes(probed)[step], rel=1e-3, abs=0.2), step
