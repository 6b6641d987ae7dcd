"""Compiled blocks and recorded steps give the gradients of the plain ones, with as many graphs as there are shapes."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.overrides import TorchFunctionMode

from diffmavil.config import Config, EncoderConfig, MaskConfig, RatioSchedule
from diffmavil.config.presets import PRESETS
from diffmavil.data.dataset import Batch
from diffmavil.model import DiffMAViL
from diffmavil.training.compiling import compile_blocks
from diffmavil.training.distributed import World
from diffmavil.training.graphs import GraphedPasses, Work
from diffmavil.training.planner import plan, shapes
from diffmavil.training.pretraining import Pretraining
from diffmavil.training.step import TrainStep

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def small(mix: tuple[float, ...] = ()) -> Config:
    """Two levels of masking, two blocks an encoder."""
    tiny = PRESETS["diffmavil-tiny"]
    falling = RatioSchedule("linear", 0.9, 0.8, levels=2)
    audio = replace(tiny.model.audio, mean=0.0, std=1.0)
    model = replace(tiny.model, audio=audio, encoder=EncoderConfig(depth=2, width=48, heads=3))
    train = replace(tiny.train, steps=4, batch_size=4, precision="fp32")
    return replace(tiny, model=model, train=train, mask=MaskConfig(falling, falling, mix=mix))


def step_of(config: Config) -> TrainStep:
    return TrainStep(Pretraining(config, ALONE.device), config, ALONE)


def gradients(step: TrainStep, number: int) -> list[torch.Tensor]:
    now = plan(step.config, number)
    losses = step.one_pass(step.task.random_inputs(4), now, now.position, 1.0)
    found = [p.grad for p in step.model.parameters() if p.grad is not None]
    step.drop_gradients()
    return [losses, *found]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_blocks_have_a_graph_for_each_kind_and_shape_and_change_nothing():
    config = small()
    plain, compiled = step_of(config), step_of(config)
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compile_blocks(compiled.model, config, backend=counter)
    for number in (0, 1, 2, 3):
        for ours, theirs in zip(gradients(compiled, number), gradients(plain, number), strict=True):
            torch.testing.assert_close(ours, theirs)
    kinds = 5  # encoders, fusion, decoders: of each, blocks of all depths share one graph
    assert len(shapes(config)) == 2
    assert counter.frame_count <= kinds * len(shapes(config))


def recorded(work: Work) -> Work:
    """A rehearsal of a CUDA graph: it runs once when recorded, and again on the same memory at each replay."""
    work()
    return work


@pytest.mark.parametrize("mix", [(), (-0.1, 0.05)], ids=["plain", "mixed"])
def test_recorded_passes_give_what_plain_ones_give(mix):
    config = small(mix)
    plain, graphed = step_of(config), step_of(config)
    passes = GraphedPasses(graphed.task, ALONE, record=recorded)
    graphed._graphs = passes
    for number in (0, 1, 2, 3):
        for ours, theirs in zip(gradients(graphed, number), gradients(plain, number), strict=True):
            torch.testing.assert_close(ours, theirs)
    assert len(passes._recorded) == 2  # positions and noise change from step to step, shapes do not


def test_recorded_gradients_have_the_layout_of_their_parameters():
    config = small()
    mixes = {f"{name}_decoder": replace(getattr(config.model, f"{name}_decoder"), attention="cross", reads="mix")
             for name in ("audio", "video")}  # fmt: skip
    step = step_of(replace(config, model=replace(config.model, **mixes)))
    step._graphs = GraphedPasses(step.task, ALONE, record=recorded)
    step.one_pass(step.task.random_inputs(4), plan(config, 0), 0, 1.0)
    named = dict(step.model.named_parameters())
    assert any(name.endswith("mix.weight") for name in named)
    for name, parameter in named.items():
        assert parameter.grad is not None, name
        assert parameter.grad.stride() == parameter.stride(), name  # fused optimisers on CUDA refuse another


def test_several_recorded_passes_add_up():
    config = small()
    step = step_of(config)
    step._graphs = GraphedPasses(step.task, ALONE, record=recorded)
    inputs = step.task.random_inputs(4)
    now = plan(config, 0)
    alone = []
    for offset in (0, 9):
        step.one_pass(inputs, now, offset, 0.5)
        alone.append([p.grad.clone() for p in step.model.parameters() if p.grad is not None])
        step.drop_gradients()
    for offset in (0, 9):
        step.one_pass(inputs, now, offset, 0.5)
    together = [p.grad for p in step.model.parameters() if p.grad is not None]
    for whole, first, second in zip(together, *alone, strict=True):
        torch.testing.assert_close(whole, first + second)


def test_a_graph_holds_no_packed_sequences_of_xformers():
    config = PRESETS["diffmavil-tiny"]
    mixed = replace(config, mask=replace(config.mask, mix=(-0.1, 0.1)), train=replace(config.train, cuda_graph=True))
    with pytest.raises(ValueError, match=r"model\.attention='xformers': must be another with both train\.cuda_graph"):
        replace(mixed, model=replace(mixed.model, attention="xformers"))


def test_a_cuda_graph_that_cannot_be_had_is_refused():
    config = small()
    with pytest.raises(ValueError, match=r"train\.cuda_graph=True: must be False on cpu"):
        step_of(replace(config, train=replace(config.train, cuda_graph=True)))
    with pytest.raises(ValueError, match="must be False with 2 processes"):
        GraphedPasses(Pretraining(config, ALONE.device), World(0, 2, torch.device("cpu")), record=recorded)


def test_warming_up_leaves_no_trace():
    config = small()
    plain, warmed = step_of(config), step_of(config)
    said = warmed.warm_up()
    assert "every shape of the curriculum (2) run once" in said
    for ours, theirs in zip(gradients(warmed, 1), gradients(plain, 1), strict=True):
        assert torch.equal(ours, theirs)


def test_compiled_code_lies_in_the_cache_of_the_config(tmp_path, monkeypatch):
    """Even where torch has written its own folder into the environment already, as its imports do; not a user's."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

    config = small()
    config = replace(config, data=replace(config.data, cache=str(tmp_path)))
    ours, users = str(tmp_path / "inductor"), str(tmp_path / "users")
    for before, after in ((None, ours), (default_cache_dir(), ours), (users, users)):
        if before is None:
            monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        else:
            monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", before)
        # A setting that monkeypatch restores is hidden afterwards.
        with torch._dynamo.config.patch(optimize_ddp=True):
            compile_blocks(DiffMAViL(config.model), config)
            assert not torch._dynamo.config.optimize_ddp
        assert cache_dir() == after


def test_a_step_copies_nothing_from_the_host():
    """On CUDA such a copy waits for the device, and no graph records it: what a step makes, it makes on the device."""
    step = step_of(small(mix=(-0.1, 0.05)))
    video, _ = step.task.random_inputs(16)
    wave = torch.zeros(16, step.config.model.audio.samples)
    batch = Batch(video, wave, torch.full((16,), 100), [()] * 16, torch.arange(16), [""] * 16)
    now = plan(step.config, 0)
    step.task.inputs(batch)  # its window and filters are made once
    with HostTensors() as made:
        step.one_pass(step.task.inputs(batch), now, 0, 1.0)
    assert made.found == []


class HostTensors(TorchFunctionMode):
    """Notes what makes a tensor of Python's numbers or the reverse, but in the ops: on CUDA those are kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        caller = Path(sys._getframe(1).f_code.co_filename)
        ours = "diffmavil" in caller.parts or caller.name == "attention.py"
        if ours and name in (
            "tensor",
            "as_tensor",
            "new_tensor",
            "from_numpy",
            "item",
            "tolist",
            "nonzero",
            "__bool__",
        ):
            self.found.append(f"{caller.name}: {name}")
        return func(*args, **(kwargs or {}))
