"""What a forward pass costs: `python -m diffmavil.flops [PRESET] [--json | --presets]`.

Counted: 2 per multiply-add, in the Linear layers and the two matmuls of attention, for the forward of one clip with all
its views, read from the shapes of the real modules. Not counted: norms, activations, softmax, the contrast between
clips (it depends on the batch, and is below 0.1 % of the rest). A training step costs three forwards.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from diffmavil.config import Config, DecoderConfig, MaskConfig, ModelConfig, RatioSchedule
from diffmavil.curriculum import mixed_counts
from diffmavil.model import DiffMAViL
from diffmavil.model.blocks import CrossBlock, SelfBlock
from diffmavil.model.decoder import Decoder, DiffusedPatch
from diffmavil.model.encoder import Encoder
from diffmavil.presets import PRESETS, preset

_DEFAULT = "diffmavil-base"


class Flops(NamedTuple):
    """FLOPs of one clip's forward, by part of the model."""

    video_encoder: float
    audio_encoder: float
    fusion: float
    video_decoder: float
    audio_decoder: float

    @property
    def total(self) -> float:
        return sum(self)


class Cost(NamedTuple):
    """One cell of the table of techniques."""

    technique: str
    views: int
    frames: int
    gflop: float
    """Forward of one clip, mean over the masking schedule."""
    saved: float
    """Share of MAViL's cost that is saved, at the same views and frames."""


def count_parameters(model: nn.Module) -> int:
    """Trainable numbers in `model`."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@functools.cache
def meta_model(config: ModelConfig) -> DiffMAViL:
    """The real modules without memory behind them. Shared between callers: for reading only."""
    with torch.device("meta"):
        return DiffMAViL(config)


def forward_flops(model: DiffMAViL, keep_video: int, keep_audio: int) -> Flops:
    """Cost of one clip's forward with these numbers of visible tokens."""
    video, audio = model.video, model.audio
    fused = (keep_video + 1) + (keep_audio + 1)
    one_view = Flops(
        video_encoder=_encoder(video.encoder, keep_video),
        audio_encoder=_encoder(audio.encoder, keep_audio),
        fusion=sum(_self_block(cast(SelfBlock, block), fused) for block in model.fusion.blocks),
        video_decoder=_decoder(video.decoder, keep_video, video.decode_count(keep_video)),
        audio_decoder=_decoder(audio.decoder, keep_audio, audio.decode_count(keep_audio)),
    )
    return Flops(*(model.config.views * part for part in one_view))


def mixed_flops(model: DiffMAViL, keep_video: int | tuple[int, ...], keep_audio: int | tuple[int, ...]) -> float:
    """Cost of one clip's forward, the mean where runs of clips keep other numbers of tokens in turn."""
    turns = max(len(keep) for keep in (keep_video, keep_audio, (0,)) if isinstance(keep, tuple))
    video, audio = (keep if isinstance(keep, tuple) else (keep,) * turns for keep in (keep_video, keep_audio))
    costs = [forward_flops(model, *counts).total for counts in zip(video, audio, strict=True)]
    return sum(costs) / len(costs)


def scheduled_flops(config: ModelConfig, mask: MaskConfig) -> Flops:
    """Cost of one clip's forward, averaged over the masking schedule."""
    model = meta_model(replace(config, views=1))  # the same modules, whatever the number of views
    stretches = math.lcm(mask.video.levels, mask.audio.levels)
    costs = []
    for i, shift in itertools.product(range(stretches), mask.mix or (0.0,)):
        progress = (i + 0.5) / stretches
        counts = (
            mixed_counts(schedule, (shift,), progress, tokens)[0]
            for schedule, tokens in ((mask.video, config.video.tokens), (mask.audio, config.audio.tokens))
        )
        costs.append(forward_flops(model, *counts))
    return Flops(*(config.views * sum(part) / len(costs) for part in zip(*costs, strict=True)))


def techniques(config: ModelConfig) -> list[tuple[str, ModelConfig, MaskConfig]]:
    """MAViL at the size of `config`, and what DiffMAViL adds to it, one after the other."""
    constant, falling = RatioSchedule(), RatioSchedule(kind="linear", start=0.9, end=0.8)
    fixed, curriculum = MaskConfig(constant, constant), MaskConfig(falling, falling)

    def with_attention(decoder: DecoderConfig, kind: str) -> DecoderConfig:
        return replace(decoder, attention=kind)

    mavil = replace(
        config,
        diffusion=replace(config.diffusion, corruption="mask_token"),
        video_decoder=with_attention(config.video_decoder, "self"),
        audio_decoder=with_attention(config.audio_decoder, "self"),
        decode_fraction=1.0,
    )
    diffused = replace(mavil, diffusion=replace(mavil.diffusion, corruption="diffusion"))
    video_cross = replace(diffused, video_decoder=with_attention(diffused.video_decoder, "cross"))
    both_cross = replace(video_cross, audio_decoder=with_attention(video_cross.audio_decoder, "cross"))
    return [
        ("MAViL", mavil, fixed),
        ("+ diffusion", diffused, fixed),
        ("+ video cross-attn", video_cross, fixed),
        ("+ ratio 0.9 -> 0.8", video_cross, curriculum),
        ("+ audio cross-attn", both_cross, curriculum),
        ("+ decode half", replace(both_cross, decode_fraction=0.5), curriculum),
        ("+ decode a quarter", replace(both_cross, decode_fraction=0.25), curriculum),
    ]


def technique_costs(config: ModelConfig) -> list[Cost]:
    """The table of techniques for 1 and 2 views, 8 and 16 frames."""
    costs = []
    for views in (1, 2):
        for frames in (8, 16):
            sized = replace(config, views=views, video=replace(config.video, frames=frames))
            full = 0.0
            for name, model, mask in techniques(sized):
                flops = scheduled_flops(model, mask).total
                full = full or flops
                costs.append(Cost(name, views, frames, flops / 1e9, 1 - flops / full))
    return costs


def _linear(module: nn.Module, rows: int) -> float:
    """All Linear layers of `module`, each applied to `rows` tokens."""
    layers = [m for m in module.modules() if isinstance(m, nn.Linear)]
    return sum(2 * rows * layer.in_features * layer.out_features for layer in layers)


def _self_block(block: SelfBlock, tokens: int) -> float:
    return _linear(block, tokens) + 4 * tokens**2 * block.attn.proj.in_features


def _cross_block(block: CrossBlock, queries: int, context: int) -> float:
    attn = block.attn
    linear = _linear(attn.q, queries) + _linear(attn.kv, context) + _linear(attn.proj, queries)
    return linear + _linear(block.mlp, queries) + 4 * queries * context * attn.proj.in_features


def _encoder(encoder: Encoder, keep: int) -> float:
    blocks = sum(_self_block(cast(SelfBlock, block), keep + 1) for block in encoder.blocks)
    return _linear(encoder.embed, keep) + blocks


def _decoder(decoder: Decoder, keep: int, decoded: int) -> float:
    context = keep + 1
    cost = _linear(decoder.context, context) + _linear(decoder.head, decoded)
    if isinstance(decoder.masked, DiffusedPatch):
        cost += _linear(decoder.masked.proj, decoded) + _linear(decoder.masked.time, 1)
    for block in decoder.blocks:
        if isinstance(block, CrossBlock):
            cost += _cross_block(block, decoded, context)
        else:
            cost += _self_block(cast(SelfBlock, block), context + decoded)
    return cost


def _technique_table(name: str, costs: list[Cost]) -> Table:
    table = Table(
        title=f"GFLOP of one clip's forward, at the size of {name}",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    table.add_column("technique")
    for views, frames in dict.fromkeys((c.views, c.frames) for c in costs):
        table.add_column(f"{views} view{'s' * (views > 1)}\n{frames} frames", justify="right")
    for technique in dict.fromkeys(c.technique for c in costs):
        row = [c for c in costs if c.technique == technique]
        table.add_row(technique, *(f"{c.gflop:.1f} {_signed_percent(-c.saved):>6}" for c in row))
    return table


def _signed_percent(share: float) -> str:
    return f"{100 * share:+.1f}%" if share else ""


def _part_table(name: str, config: Config) -> Table:
    model, flops = meta_model(replace(config.model, views=1)), scheduled_flops(config.model, config.mask)
    title = f"{name}: {config.model.views} view(s), {config.model.video.frames} frames, mean over its masking schedule"
    table = Table(title=title, show_footer=True, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    modules = [model.video.encoder, model.audio.encoder, model.fusion, model.video.decoder, model.audio.decoder]
    table.add_column("part", "total")
    table.add_column("parameters, M", f"{count_parameters(model) / 1e6:.2f}", justify="right")
    table.add_column("GFLOP", f"{flops.total / 1e9:.2f}", justify="right")
    table.add_column("share", justify="right")
    for part, module, cost in zip(flops._fields, modules, flops, strict=True):
        share = f"{100 * cost / flops.total:.1f} %"
        table.add_row(part.replace("_", " "), f"{count_parameters(module) / 1e6:.2f}", f"{cost / 1e9:.2f}", share)
    return table


def _preset_table() -> Table:
    title = "presets: one clip's forward with all views, mean over the masking schedule"
    table = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in ("preset", "parameters, M", "GFLOP"):
        table.add_column(column, justify="left" if column == "preset" else "right")
    for name, config in PRESETS.items():
        parameters = count_parameters(meta_model(replace(config.model, views=1)))
        gflop = scheduled_flops(config.model, config.mask).total / 1e9
        table.add_row(name, f"{parameters / 1e6:.1f}", f"{gflop:.1f}")
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; an unknown preset ends with the list of names and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m diffmavil.flops", description="What a forward pass costs.")
    parser.add_argument("preset", nargs="?", default=_DEFAULT, help=f"default {_DEFAULT}")
    parser.add_argument("--json", action="store_true", help="the table of techniques as a list of objects")
    parser.add_argument("--presets", action="store_true", help="parameters and GFLOP of every preset")
    args = parser.parse_args(argv)
    try:
        config = preset(args.preset)
    except ValueError as error:
        parser.error(str(error))
    if args.json:
        print(json.dumps([cost._asdict() for cost in technique_costs(config.model)], indent=1))
        return
    console = Console()
    if args.presets:
        console.print(_preset_table())
        return
    console.print(_technique_table(args.preset, technique_costs(config.model)))
    console.print()
    console.print(_part_table(args.preset, config))


if __name__ == "__main__":
    main()
