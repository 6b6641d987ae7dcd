"""The rows of `benchmarks/step.py`: each technique on top of those before it, and peers for comparison."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import peer_models
from benchmarks.mavil_eager import EagerMAViL
from benchmarks.measure import Clock
from diffmavil.config import Config, MaskConfig, ModelConfig, RatioSchedule
from diffmavil.model.flops import meta_model, mixed_flops
from diffmavil.model.mavil import AUDIO_STREAM, VIDEO_STREAM
from diffmavil.training.compiling import compile_blocks
from diffmavil.training.costs import techniques
from diffmavil.training.distributed import World
from diffmavil.training.graphs import GraphedPasses
from diffmavil.training.planner import stretch_counts
from diffmavil.training.pretraining import Pretraining, random_clips

MAVIL = "+ attention (MAViL)"
"""The row of the published recipe in our implementation, with which the rows after it are compared."""
_COMPILED = ", compiled"
Passes = Callable[["Part"], object]
"""Forward and backward for a batch of a part."""
Made = Callable[[int], tuple[nn.Module, Callable[[], Tensor]]]
"""From a number of clips: a model, and its loss on that many clips."""


@dataclass(frozen=True)
class Part:
    """One shape of a row: its fraction of the clips, and the batch size of a step."""

    keep_video: int
    keep_audio: int
    share: float
    batch: int


@dataclass
class Row:
    """A technique, on top of those before it."""

    name: str
    model: ModelConfig
    parts: list[Part]
    make: Callable[[Row], Passes]
    """Builds the model and its passes."""
    parameters: list[nn.Parameter]
    graphed: bool = False
    """Whether its passes are replayed as CUDA graphs."""


@dataclass(frozen=True)
class Bench:
    device: torch.device
    clock: Clock
    batch: int
    levels: int
    dtype: torch.dtype
    config: Config
    """The config of the measured size."""

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def rows(bench: Bench, compiled: bool, graphed: bool) -> list[Row]:
    """From MAViL as AudioMAE implements it to the fastest preset."""
    steps = {name: (model, mask) for name, model, mask in techniques(bench.config.model)}
    mavil, fixed = steps["MAViL"]
    written_out = replace(mavil, attention="math")
    found = [
        ("MAViL as AudioMAE writes it", mavil, fixed, _eager(bench, gather_first=False), False),
        ("+ gather before embedding", mavil, fixed, _eager(bench, gather_first=True), False),
        ("+ fused ops", written_out, fixed, _ours(bench), False),
        (MAVIL, mavil, fixed, _ours(bench), False),
    ]
    for name in ("+ diffusion", "+ video cross-attn", "+ ratio 0.9 -> 0.8"):
        found.append((name, *steps[name], _ours(bench), False))
    model, mask = steps["+ ratio 0.9 -> 0.8"]
    found.append(("+ adaptive batch", model, mask, _ours(bench), True))
    if compiled:
        found.append(("+ compile", model, mask, _ours(bench, compiled), True))
    first = len(found)
    if graphed:
        found.append(("+ CUDA graph", model, mask, _ours(bench, compiled, graphed), True))
    for name in ("+ audio cross-attn", "+ decode half", "+ decode a quarter"):
        found.append((name, *steps[name], _ours(bench, compiled, graphed), True))
    return [
        Row(name, model, parts(bench, model, mask, adaptive), make, [], graphed=graphed and i >= first)
        for i, (name, model, mask, make, adaptive) in enumerate(found)
    ]


def parts(bench: Bench, model: ModelConfig, mask: MaskConfig, adaptive: bool) -> list[Part]:
    """The shapes of a masking schedule; adaptive batches each cost what the most expensive does at `bench.batch`."""
    video, audio = (replace(s, levels=1 if s.kind == "constant" else bench.levels) for s in (mask.video, mask.audio))
    counts = stretch_counts(replace(bench.config, model=model, mask=MaskConfig(video=video, audio=audio)))
    costs = [mixed_flops(meta_model(model), *keep) for keep in counts]
    sizes = [int(bench.batch * max(costs) / cost) if adaptive else bench.batch for cost in costs]
    return [
        Part(*keep, 1 / len(counts), size)  # type: ignore[arg-type]  # no mix: one count each
        for keep, size in zip(counts, sizes, strict=True)
    ]


def _eager(bench: Bench, *, gather_first: bool) -> Callable[[Row], Passes]:
    def make(row: Row) -> Passes:
        model = EagerMAViL(row.model, gather_first=gather_first).to(bench.device)
        row.parameters = list(model.parameters())
        return _backward(bench, lambda part: model(*clips(bench, part.batch), **_kept(part)))

    return make


def _ours(bench: Bench, compiled: bool = False, graphed: bool = False) -> Callable[[Row], Passes]:
    def make(row: Row) -> Passes:
        audio = replace(row.model.audio, mean=0.0, std=1.0)  # the clips here are spectrograms and need no statistics
        task = Pretraining(replace(bench.config, model=replace(row.model, audio=audio)), bench.device)
        model = task.model
        row.parameters = list(model.parameters())
        if compiled:
            # Rows with the same kind of block share its compiled graphs, and so dynamo's limit for it.
            torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = _GRAPHS
            falling = RatioSchedule(kind="linear", start=0.9, end=0.8, levels=bench.levels)
            compile_blocks(model, replace(bench.config, mask=MaskConfig(falling, falling)))
        if graphed:
            replay = GraphedPasses(task, World(rank=0, size=1, device=bench.device))

            def passes(part: Part) -> None:
                with bench.autocast():
                    replay(clips(bench, part.batch), _key(part), 1.0)

            return passes
        return _backward(bench, lambda part: model(*clips(bench, part.batch), **_key(part)).total)

    return make


def _kept(part: Part) -> dict[str, int]:
    return {"keep_video": part.keep_video, "keep_audio": part.keep_audio}


def _key(part: Part) -> dict[str, Any]:
    return {"seed": 0, "offset": 0, **_kept(part)}


def _backward(bench: Bench, loss: Callable[[Part], Tensor]) -> Passes:
    def passes(part: Part) -> None:
        with bench.autocast():
            value = loss(part)
        value.backward()

    return passes


_GRAPHS = 256
_clips: dict[tuple[int, ModelConfig], tuple[Tensor, Tensor]] = {}


def clips(bench: Bench, batch: int) -> tuple[Tensor, Tensor]:
    """The same clips for every row, on the device before timing starts."""
    key = (batch, bench.config.model)
    if key not in _clips:
        _clips[key] = random_clips(bench.config, batch, bench.device)
    return _clips[key]


def peer_rows(bench: Bench, compiled: bool, report: Callable[[str], None]) -> list[tuple[Row, float]]:
    """The models of transformers and ours for comparison, with the FLOPs of one clip's forward; empty without it.

    compiled: each of them a second time, with `torch.compile` applied to their model or to our blocks.
    """
    try:
        transformers = peer_models.load_transformers()
    except ImportError as error:
        report(f"peers left out: transformers cannot be used here ({error})")
        return []
    mavil, _ = next((model, mask) for name, model, mask in techniques(bench.config.model) if name == "MAViL")
    fast = next(model for name, model, _ in techniques(bench.config.model) if name == "+ decode a quarter")
    mavil, fast = (replace(model, views=1) for model in (mavil, fast))
    keep_video, keep_audio = (round(0.2 * m.tokens) for m in (mavil.video, mavil.audio))
    version = f"transformers {transformers.__version__}"
    found: list[tuple[Row, float]] = []

    def add(name: str, made: Made, compile_it: Callable[[nn.Module], None]) -> None:
        flops = peer_models.counted_flops(made(1)[1], 1)

        def make(row: Row) -> Passes:
            module, loss = made(row.parts[0].batch)
            row.parameters = list(module.parameters())
            if row.name.endswith(_COMPILED):
                compile_it(module)
            return _backward(bench, lambda part: loss())

        for suffix in ("", _COMPILED) if compiled else ("",):
            part = Part(keep_video, keep_audio, 1.0, bench.batch)
            found.append((Row(f"{name}{suffix}", mavil, [part], make, []), flops))

    def ours(model: ModelConfig, stream: int, keep: int, batch: int) -> tuple[nn.Module, Callable[[], Tensor]]:
        module = peer_models.OneModality(model, stream).to(bench.device)
        video, spec = clips(bench, batch)
        return module, functools.partial(module, video if stream == VIDEO_STREAM else spec, keep, 0)

    def theirs(stream: int, batch: int) -> tuple[nn.Module, Callable[[], Tensor]]:
        if stream == VIDEO_STREAM:
            return peer_models.video_mae(mavil, batch, keep_video, bench.device)
        return peer_models.vit_mae(mavil, batch, 0.8, bench.device)

    for what, peer, stream, keep in (
        ("video", "VideoMAE", VIDEO_STREAM, keep_video),
        ("audio", "ViTMAE", AUDIO_STREAM, keep_audio),
    ):
        add(f"{what} alone: {peer} ({version})", functools.partial(theirs, stream), lambda module: module.compile())
        for name, model in (("ours, as MAE", mavil), ("ours, -fast", fast)):
            made = functools.partial(ours, model, stream, keep)
            add(f"{what} alone: {name}", made, lambda module: compile_blocks(module, bench.config))
    return found
