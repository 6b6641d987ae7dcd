"""What a clip costs over a whole schedule of masks, and what each technique of DiffMAViL saves."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from diffmavil.config import Config, DecoderConfig, MaskConfig, ModelConfig, OptimConfig, RatioSchedule
from diffmavil.model.flops import Flops, forward_flops, meta_model, meta_teacher, teacher_flops
from diffmavil.training.curriculum import mixed_counts
from diffmavil.training.muon import orthogonal_flops
from diffmavil.training.optim import muon_matrices


class Cost(NamedTuple):
    """One cell of the table of techniques."""

    technique: str
    views: int
    frames: int
    gflop: float
    """Forward of one clip, mean over the masking schedule."""
    saved: float
    """Share of MAViL's cost that is saved, at the same views and frames."""


def scheduled_flops(config: ModelConfig, mask: MaskConfig) -> Flops:
    """Cost of one clip's forward, averaged over the masking schedule."""
    model = meta_model(config)
    stretches = math.lcm(mask.video.levels, mask.audio.levels)
    mixed = mask if mask.mix else replace(mask, mix=(0.0,))
    costs = []
    for i in range(stretches):
        video, audio = (
            mixed_counts(mixed, schedule, (i + 0.5) / stretches, tokens)
            for schedule, tokens in ((mask.video, config.video.tokens), (mask.audio, config.audio.tokens))
        )
        costs += [forward_flops(model, *counts) for counts in zip(video, audio, strict=True)]
    return Flops(*(sum(part) / len(costs) for part in zip(*costs, strict=True)))


def optimizer_flops(config: ModelConfig, optim: OptimConfig) -> int:
    """Matrix products of the optimiser in one step, the same for any batch: Muon's iterations, 0 for the others."""
    if optim.name != "muon":
        return 0
    shapes = [p.shape for p in muon_matrices(meta_model(config))]
    return sum(orthogonal_flops(rows, columns, optim.muon_steps) for rows, columns in shapes)


def with_teacher(config: Config) -> tuple[ModelConfig, float]:
    """The model of a run that has not met its teacher, and the FLOPs of a teacher as large as the student, which sees
    each clip whole and once; 0 in the first stage.
    """
    if config.teacher.stage == 1:
        return config.model, 0.0
    model = replace(config.model, target_width=config.model.target_width or config.model.encoder.width)
    return model, teacher_flops(meta_teacher(config.model))


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
