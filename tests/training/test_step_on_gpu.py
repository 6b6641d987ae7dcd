"""The training step on a CUDA device: as on a CPU, without a wait, compiled and as a graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffmavil.config import Config, DataConfig, EncoderConfig, MaskConfig, RatioSchedule
from diffmavil.config.presets import PRESETS
from diffmavil.data.loader import Batch, make_loader
from diffmavil.data.sources import split_source
from diffmavil.training.distributed import World
from diffmavil.training.planner import plan, shapes
from diffmavil.training.pretraining import Pretraining
from diffmavil.training.step import TrainStep
from tests.gpu import DEVICE, cuda_alone, on_gpu

pytestmark = on_gpu
STEPS = 12


def small(mix: tuple[float, ...] = (), **train: object) -> Config:
    """Two levels of masking, two blocks an encoder, heads of 32 as FlashAttention wants them."""
    tiny = PRESETS["diffmavil-tiny-fast"]
    falling = RatioSchedule("linear", 0.9, 0.8, levels=2)
    audio = replace(tiny.model.audio, mean=0.0, std=1.0)
    model = replace(tiny.model, audio=audio, encoder=EncoderConfig(depth=2, width=64, heads=2), views=2)
    settings = replace(tiny.train, steps=STEPS, batch_size=16, **{"precision": "fp32", **train})
    return replace(tiny, model=model, train=settings, mask=MaskConfig(falling, falling, mix=mix))


def step_on(device: torch.device, config: Config) -> tuple[TrainStep, Batch]:
    """A step, and clips that are a little alike, so that there is something to learn."""
    task = Pretraining(config, device)
    video, _ = task.random_inputs(16)
    time = torch.arange(config.model.audio.samples) / config.model.audio.sample_rate
    wave = torch.stack([torch.sin(6.28 * (300 + 150 * i) * time) for i in range(16)])
    place = torch.arange(16, device=device)
    valid = torch.full((16,), wave.shape[1], device=device)
    batch = Batch(video, wave.to(device), valid, [()] * 16, place, [""] * 16)
    return TrainStep(task, config, World(0, 1, device)), batch


def curve(step: TrainStep, batch: Batch) -> Tensor:
    """Losses [steps, 5] of a training, read at its end."""
    found = []
    for number in range(STEPS):
        now = plan(step.config, number)
        found.append(step(batch, now, now.position).scalars)
    return torch.stack(found).cpu()


@contextmanager
def no_waits() -> Iterator[None]:
    """An operation in which the host would wait for the device raises."""
    if DEVICE.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("mix", [(), (-0.1, 0.05)], ids=["plain", "mixed"])
def test_the_loss_curve_is_that_of_a_cpu(mix):
    on_cpu = curve(*step_on(torch.device("cpu"), small(mix)))
    found = curve(*step_on(DEVICE, small(mix)))
    assert on_cpu[-1, 0] < 0.99 * on_cpu[0, 0]  # it learns: the curves could differ
    torch.testing.assert_close(found, on_cpu, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mix", [(), (-0.1, 0.05)], ids=["plain", "mixed"])
def test_a_step_never_waits_for_the_device(mix, precision):
    config = small(mix, precision=precision)
    step, batch = step_on(DEVICE, replace(config, train=replace(config.train, ema=0.9)))
    curve(step, batch)  # kernels are compiled, constants are copied
    with no_waits():
        for number in range(STEPS):
            now = plan(step.config, number)
            step(batch, now, now.position)
            step.task.after_step(number + 1)


def test_a_step_that_is_not_finite_is_skipped_on_the_device():
    step, batch = step_on(DEVICE, small())
    now = plan(step.config, 0)
    step(batch, now, 0)
    before = [p.clone() for p in step.model.parameters()]
    step(replace(batch, wave=torch.full_like(batch.wave, float("nan"))), now, 0)
    assert step.nonfinite.item() == step.nonfinite_run.item() == 1
    assert all(torch.equal(p, q) for p, q in zip(step.model.parameters(), before, strict=True))
    step(batch, now, 0)
    assert (step.nonfinite.item(), step.nonfinite_run.item()) == (1, 0)
    assert not all(torch.equal(p, q) for p, q in zip(step.model.parameters(), before, strict=True))


@cuda_alone
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("mix", [(), (-0.1, 0.05)], ids=["plain", "mixed"])
@pytest.mark.parametrize(("precision", "near"), [("fp32", 2e-3), ("bf16", 2e-2)])
def test_a_graphed_training_is_the_plain_one(mix, compiled, precision, near):
    config = small(mix, precision=precision)
    plain = curve(*step_on(DEVICE, config))
    step, batch = step_on(DEVICE, replace(config, train=replace(config.train, cuda_graph=True, compile=compiled)))
    step.warm_up()
    torch.testing.assert_close(curve(step, batch), plain, rtol=near, atol=near)
    assert step._graphs is not None
    assert len(step._graphs._recorded) == len(shapes(config))


@cuda_alone
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(
    ("precision", "mix", "near"), [("fp32", (), 2e-3), ("bf16", (), 2e-2), ("bf16", (-0.1, 0.05), 2e-2)]
)
def test_a_compiled_training_is_the_plain_one(recompute, precision, mix, near):
    config = small(mix, precision=precision)
    plain = curve(*step_on(DEVICE, config))
    train = replace(config.train, compile=True, recompute=recompute)
    torch.testing.assert_close(curve(*step_on(DEVICE, replace(config, train=train))), plain, rtol=near, atol=near)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_brings_the_batches_of_a_cpu(workers, tmp_path: Path):
    data = DataConfig(cache=str(tmp_path), synthetic_train=24, synthetic_eval=24, workers=workers)
    config = replace(small(), data=data)
    clips = split_source(data).train
    found = []
    for device in (torch.device("cpu"), DEVICE):
        with make_loader(config, clips, steps=4, device=device) as loader:
            batches = list(loader)
        assert all(batch.video.device.type == device.type for batch in batches)
        found.append([(batch.video.cpu(), batch.wave.cpu(), batch.position.cpu()) for batch in batches])
    for ours, theirs in zip(*found, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))
