"""Compiled blocks and recorded steps give the gradients of the plain ones, with as many graphs as there are shapes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from diffmavil.compiling import compile_blocks
from diffmavil.config import Config, EncoderConfig, MaskConfig, RatioSchedule
from diffmavil.distributed import World
from diffmavil.graphs import GraphedPasses, Work
from diffmavil.model import DiffMAViL
from diffmavil.planner import plan, shapes
from diffmavil.presets import PRESETS
from diffmavil.step import TrainStep, random_clips

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def small(mix: tuple[float, ...] = ()) -> Config:
    """Two levels of masking, two blocks an encoder."""
    tiny = PRESETS["diffmavil-tiny"]
    falling = RatioSchedule("linear", 0.9, 0.8, levels=2)
    audio = replace(tiny.model.audio, mean=0.0, std=1.0)
    model = replace(tiny.model, audio=audio, encoder=EncoderConfig(depth=2, width=48, heads=3))
    train = replace(tiny.train, steps=4, batch_size=4, precision="fp32")
    return replace(tiny, model=model, train=train, mask=MaskConfig(falling, falling, mix=mix))


def gradients(step: TrainStep, number: int) -> list[torch.Tensor]:
    now = plan(step.config, number)
    video, spec = random_clips(step.config, 4, ALONE.device)
    losses = step.one_pass(video, spec, now, now.position, 1.0)
    found = [p.grad for p in step.model.parameters() if p.grad is not None]
    step.drop_gradients()
    return [losses, *found]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_blocks_have_a_graph_for_each_kind_and_shape_and_change_nothing():
    config = small()
    plain, compiled = TrainStep(config, ALONE), TrainStep(config, ALONE)
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
    plain, graphed = TrainStep(config, ALONE), TrainStep(config, ALONE)
    passes = GraphedPasses(graphed.model, ALONE, record=recorded)
    graphed._graphs = passes
    for number in (0, 1, 2, 3):
        for ours, theirs in zip(gradients(graphed, number), gradients(plain, number), strict=True):
            torch.testing.assert_close(ours, theirs)
    assert len(passes._recorded) == 2  # positions and noise change from step to step, shapes do not


def test_several_recorded_passes_add_up():
    config = small()
    step = TrainStep(config, ALONE)
    step._graphs = GraphedPasses(step.model, ALONE, record=recorded)
    video, spec = random_clips(config, 4, ALONE.device)
    now = plan(config, 0)
    alone = []
    for offset in (0, 9):
        step.one_pass(video, spec, now, offset, 0.5)
        alone.append([p.grad.clone() for p in step.model.parameters() if p.grad is not None])
        step.drop_gradients()
    for offset in (0, 9):
        step.one_pass(video, spec, now, offset, 0.5)
    together = [p.grad for p in step.model.parameters() if p.grad is not None]
    for whole, first, second in zip(together, *alone, strict=True):
        torch.testing.assert_close(whole, first + second)


def test_a_cuda_graph_that_cannot_be_had_is_refused():
    config = small()
    with pytest.raises(ValueError, match=r"train\.cuda_graph=True: must be False on cpu"):
        TrainStep(replace(config, train=replace(config.train, cuda_graph=True)), ALONE)
    with pytest.raises(ValueError, match="must be False with 2 processes"):
        GraphedPasses(DiffMAViL(config.model), World(0, 2, torch.device("cpu")), record=recorded)


def test_warming_up_leaves_no_trace():
    config = small()
    plain, warmed = TrainStep(config, ALONE), TrainStep(config, ALONE)
    said = warmed.warm_up()
    assert "every shape of the curriculum (2) run once" in said
    for ours, theirs in zip(gradients(warmed, 1), gradients(plain, 1), strict=True):
        assert torch.equal(ours, theirs)
