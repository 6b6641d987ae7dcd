"""The second stage: a frozen teacher or an average, in steps, runs, resumes, plans and processes."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from diffmavil.config import Config, TeacherConfig
from diffmavil.config.files import load_config
from diffmavil.model import DiffMAViL
from diffmavil.model.flops import FORWARDS, meta_model, meta_teacher, mixed_flops, teacher_flops
from diffmavil.model.teacher import Teacher
from diffmavil.model.weights import WEIGHTS_FILE, export_weights, load_weights
from diffmavil.training.budget import memory_bytes, resolve_batches
from diffmavil.training.checkpoint import checkpoints
from diffmavil.training.compiling import compile_blocks
from diffmavil.training.distributed import World
from diffmavil.training.graphs import GraphedPasses, Work
from diffmavil.training.planner import plan, stretch_counts
from diffmavil.training.second_stage import SecondStage, decay_at, taught
from diffmavil.training.step import TrainStep
from tests.killed import kill_after_two_checkpoints
from tests.runs import losses, very_small

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
STAGE_2 = "diffmavil-tiny-fast-stage2"


def config_of(cache: Path, source: str = "frozen", **model: object) -> Config:
    """Of a student that has met its teacher; runs of it take 8 steps."""
    base = very_small(cache)
    model = replace(base.model, decode_fraction=0.25, **model)  # type: ignore[arg-type]
    train = replace(base.train, steps=8, batch_size=4, precision="fp32")
    config = replace(base, model=model, train=train, teacher=TeacherConfig(stage=2, source=source, decay=(0.5, 0.9)))
    return taught(config, None)


def step_of(config: Config) -> TrainStep:
    torch.manual_seed(5)
    teacher = Teacher(config.model).learn_from(DiffMAViL(config.model))
    return TrainStep(SecondStage(config, ALONE.device, teacher), config, ALONE)


def trained(step: TrainStep, steps: int) -> list[torch.Tensor]:
    """The scalars of each step; always the same clips and masks."""
    found, inputs = [], step.task.random_inputs(4)
    for number in range(steps):
        for group in step.optimizers[0].param_groups:
            group["lr"] = 3e-3
        found.append(step.one_pass(inputs, plan(step.config, 0), 0, 1.0))
        step._update(step._clip())
        step.task.after_step(min(number + 1, 8))
    return found


def weights_of(step: TrainStep) -> dict[str, torch.Tensor]:
    assert isinstance(step.task, SecondStage)
    return {name: value.clone() for name, value in step.task.teacher.state_dict().items()}


def gradients(step: TrainStep, now) -> list[torch.Tensor]:
    found = [step.one_pass(step.task.random_inputs(4), now, now.position, 1.0)]
    found += [p.grad for p in step.model.parameters() if p.grad is not None]
    step.drop_gradients()
    return found


# A step


def test_the_student_learns_and_a_frozen_teacher_stays_as_it_is_to_the_last_bit(cache: Path) -> None:
    step = step_of(config_of(cache))
    before = weights_of(step)
    found = trained(step, 40)
    assert found[-1][1] < 0.7 * found[0][1]  # of video
    assert found[-1][2] < 0.7 * found[0][2]  # of audio
    assert all(torch.equal(value, before[name]) for name, value in weights_of(step).items())
    optimised = {id(p) for one in step.optimizers for group in one.param_groups for p in group["params"]}
    assert isinstance(step.task, SecondStage)
    assert not any(id(p) in optimised or p.grad is not None for p in step.task.teacher.parameters())
    assert not any("teacher" in name for name in (*step.state.counters, *step.model.state_dict()))


def test_an_average_begins_as_the_student_and_follows_it_by_its_schedule(cache: Path) -> None:
    config = config_of(cache, "ema")
    step = step_of(config)
    expected = weights_of(step)
    assert all(torch.equal(value, step.model.state_dict()[name]) for name, value in expected.items())
    for number in range(3):
        trained(step, 1)
        after = step.model.state_dict()
        # The helper says each time that the first step is done.
        decay = decay_at(config.teacher, plan(config, 0).progress)
        expected = {name: decay * value + (1 - decay) * after[name] for name, value in expected.items()}
        for name, value in weights_of(step).items():
            torch.testing.assert_close(value, expected[name], msg=f"{name} at {number}")
    assert {name.removeprefix("teacher/") for name in step.state.counters if "/" in name} == expected.keys()


def test_the_decay_rises_over_its_ramp() -> None:
    config = TeacherConfig(stage=2, source="ema", decay=(0.5, 0.9), decay_ramp=0.25)
    assert [decay_at(config, x) for x in (0, 0.125, 0.25, 1)] == pytest.approx([0.5, 0.7, 0.9, 0.9])
    assert decay_at(replace(config, decay_ramp=0.0), 0) == 0.9


def test_a_step_in_passes_is_the_step_at_once(cache: Path) -> None:
    config = config_of(cache)
    whole, parts = step_of(config), step_of(config)
    inputs = whole.task.random_inputs(4)
    whole.task.inputs = parts.task.inputs = lambda batch: inputs  # type: ignore[method-assign]
    now = plan(config, 0)
    one = whole.gradients([0] * 4, now, 0)  # type: ignore[arg-type]  # only its length is looked at
    two = parts.gradients([0] * 4, now._replace(at_once=2), 0)  # type: ignore[arg-type]
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_and_recorded_steps_give_what_plain_ones_give(cache: Path) -> None:
    def recorded(work: Work) -> Work:
        work()
        return work

    config = config_of(cache)
    plain, graphed, compiled = step_of(config), step_of(config), step_of(config)
    graphed._graphs = GraphedPasses(graphed.task, ALONE, record=recorded)
    torch.compiler.reset()
    for module in (compiled.model, *compiled.task.frozen):
        compile_blocks(module, config, backend="aot_eager")
    for number in (0, 1):
        now = plan(config, number)
        expected = gradients(plain, now)
        for step in (graphed, compiled):
            for ours, theirs in zip(gradients(step, now), expected, strict=True):
                torch.testing.assert_close(ours, theirs)


# What it costs


def test_the_teacher_is_counted_in_telemetry_and_plan_and_memory(cache: Path) -> None:
    config = config_of(cache)
    task = step_of(config).task
    now, own = plan(config, 0), meta_model(config.model)
    teacher = teacher_flops(meta_teacher(config.model))
    assert task.step_flops(now) == FORWARDS * mixed_flops(own, now.keep_video, now.keep_audio) + teacher
    adaptive = replace(config, batch=replace(config.batch, rule="flops", multiple=1))
    adaptive = replace(adaptive, train=replace(adaptive.train, batch_size=64))
    sizes = resolve_batches(adaptive, ALONE, config.model).batch.sizes
    costs = [FORWARDS * mixed_flops(own, *keep) + teacher for keep in stretch_counts(adaptive)]
    assert sizes == tuple(int(64 * max(costs) / cost * (1 + 1e-9)) for cost in costs)
    assert sizes != resolve_batches(adaptive, ALONE).batch.sizes
    key: dict[str, Any] = {"keep_video": 2, "keep_audio": 2, "device": ALONE.device}
    deep = replace(config.model, encoder=replace(config.model.encoder, depth=3))
    fixed, clip = memory_bytes(config, **key, teacher=config.model)
    more = sum(p.numel() for p in meta_teacher(deep).parameters())
    more -= sum(p.numel() for p in meta_teacher(config.model).parameters())
    assert memory_bytes(config, **key, teacher=deep) == (fixed + 4 * more, clip)


# Runs


@pytest.fixture(scope="module")
def teacher_run(train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage1") / "teacher"
    train(folder, "--train.steps", "2", preset="mavil-tiny")
    return folder


@pytest.fixture(scope="module")
def student_run(train, teacher_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight steps, with checkpoints of the middle and the end."""
    folder = tmp_path_factory.mktemp("stage2") / "student"
    flags = ("--teacher", str(teacher_run), "--train.checkpoint-every", "4")
    done = train(folder, *flags, preset=STAGE_2)
    assert f"teacher: {teacher_run / WEIGHTS_FILE}, frozen" in done.stdout
    return folder


def test_a_run_holds_the_student_alone_and_names_its_teacher(student_run: Path, teacher_run: Path) -> None:
    model, config = load_weights(student_run / WEIGHTS_FILE)
    first = load_config(teacher_run / "config.yaml")
    assert config.teacher.source == str(teacher_run / WEIGHTS_FILE)
    assert config.teacher.sha256 == hashlib.sha256((teacher_run / WEIGHTS_FILE).read_bytes()).hexdigest()
    assert (config.model.audio.mean, config.model.audio.std) == (first.model.audio.mean, first.model.audio.std)
    names = set(model.state_dict())
    with safe_open(student_run / WEIGHTS_FILE, "pt") as file:
        assert set(file.keys()) == names
    for shard in checkpoints(student_run)[-1].glob("*.safetensors"):
        with safe_open(shard, "pt") as file:
            assert not any("teacher" in name for name in file.keys())  # noqa: SIM118


def test_a_resume_is_bit_exact_and_takes_no_other_teacher(
    train, student_run: Path, teacher_run: Path, tmp_path: Path
) -> None:
    cut = shutil.copytree(student_run, tmp_path / "cut")
    shutil.rmtree(cut / "checkpoints" / "step-00000008")
    (cut / WEIGHTS_FILE).unlink()
    refused = train(cut, "--resume", "--teacher", str(student_run), preset=None, code=2)
    assert "a run goes on with the teacher it began with" in refused.stderr
    refused = train(cut, "--resume", "--teacher", "ema", preset=None, code=2)
    assert "Traceback" not in refused.stderr
    moved = shutil.copytree(teacher_run, tmp_path / "moved")
    done = train(cut, "--resume", "--teacher", str(moved), preset=None)
    assert "changed on resume: teacher.source" in done.stdout
    assert losses(cut) == losses(student_run)
    ours, theirs = (load_weights(folder / WEIGHTS_FILE)[0].state_dict() for folder in (cut, student_run))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_a_run_of_the_first_stage_does_not_become_one_of_the_second(train, teacher_run: Path) -> None:
    done = train(teacher_run, "--resume", "--stage", "2", "--teacher", "ema", preset=None, code=2)
    assert "teacher.stage=2: must be 1, or left out, with --resume" in done.stderr


def test_an_average_killed_and_resumed_goes_on_as_if_nothing_had_been(
    train, train_command, environment, tmp_path: Path
) -> None:
    flags = ("--teacher", "ema", "--train.steps", "16")
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    train(whole, *flags, preset=STAGE_2)
    command = train_command(folder, *flags, "--train.checkpoint-every", "2", preset=STAGE_2)
    kill_after_two_checkpoints(command, folder, environment)
    train(folder, "--train.steps", "16", "--resume", preset=None)
    assert losses(folder) == losses(whole)
    names, ours, theirs = set(), saved_tensors(folder), saved_tensors(whole)
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
        names |= {name} if name.startswith("counters/teacher/") else set()
    assert len(names) > 20  # the average is among them


def saved_tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for shard in checkpoints(folder)[-1].glob("*.safetensors"):
        with safe_open(shard, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def test_sound_alone_has_the_targets_of_its_own_branch(train, cache: Path, tmp_path: Path) -> None:
    base = very_small(cache)
    config = replace(base, model=replace(base.model, modalities="audio"))
    export_weights(DiffMAViL(config.model), config, tmp_path / WEIGHTS_FILE)
    flags = ("--stage", "2", "--teacher", str(tmp_path), "--model.modalities", "audio", "--train.steps", "2")
    train(tmp_path / "run", *flags)
    assert all(len(parts) == 2 for parts in losses(tmp_path / "run").values())  # the total, and of sound


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["frozen", "ema"])
def test_two_processes_follow_the_loss_curve_of_one(kind: str, train, teacher_run: Path, tmp_path: Path) -> None:
    flags = ("--teacher", "ema" if kind == "ema" else str(teacher_run))
    train(tmp_path / "one", *flags, preset=STAGE_2)
    train(tmp_path / "two", *flags, preset=STAGE_2, nproc=2)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) == 8
    for step in one:
        assert two[step] == pytest.approx(one[step], rel=2e-4, abs=2e-4), step
