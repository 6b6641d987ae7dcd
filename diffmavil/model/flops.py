"""FLOPs of a forward pass, counted on the real modules.

Counted: 2 per multiply-add, in the Linear layers and the two matmuls of attention, for the forward of one clip with all
its views, read from the shapes of the real modules. Not counted: norms, activations, softmax, the contrast between
clips (it depends on the batch, and is below 0.1 % of the rest). A training step costs three forwards, and in the second
stage one of the teacher, which has no backward pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import nn

from diffmavil.config import ModelConfig
from diffmavil.model.blocks import CrossBlock, SelfBlock
from diffmavil.model.classifier import Classifier
from diffmavil.model.decoder import Decoder, DiffusedPatch
from diffmavil.model.draws import turns
from diffmavil.model.encoder import Encoder
from diffmavil.model.fusion import Fusion
from diffmavil.model.mavil import DiffMAViL
from diffmavil.model.teacher import Teacher

FORWARDS = 3
"""A training step costs three forwards: the backward pass makes two products for each of the forward's."""


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


def count_parameters(model: nn.Module) -> int:
    """Numbers in `model` that are trained or frozen."""
    return sum(p.numel() for p in model.parameters())


@functools.cache
def meta_model(config: ModelConfig) -> DiffMAViL:
    """The real modules without memory behind them. Shared between callers: for reading only."""
    with torch.device("meta"):
        return DiffMAViL(config)


@functools.cache
def meta_teacher(config: ModelConfig) -> Teacher:
    """As `meta_model`."""
    with torch.device("meta"):
        return Teacher(config)


def forward_flops(model: DiffMAViL, keep_video: int, keep_audio: int) -> Flops:
    """Cost of the forward of one clip's views with these numbers of visible tokens; an absent branch costs nothing."""
    config = model.config
    keep = {"video": keep_video, "audio": keep_audio}
    parts = dict.fromkeys(Flops._fields, 0.0)
    cls = int(config.encoder.cls)
    for name, branch in model.branches.items():
        masked = config.masked_views * _encoder(branch.encoder, keep[name])
        contrasted = config.contrast_views * _encoder(branch.encoder, branch.contrast_keep)
        parts[f"{name}_encoder"] = masked + contrasted
        decoded = _decoder(branch.decoder, keep[name] + cls, branch.decode_count(keep[name]))
        parts[f"{name}_decoder"] = config.predicted_views * decoded
    parts["fusion"] = config.predicted_views * _fusion(model.fusion, keep_video + cls, keep_audio + cls)
    return Flops(**parts)


def _fusion(fusion: Fusion, *tokens: int) -> float:
    """Of so many tokens of each modality, CLS among them."""
    return sum(_self_block(cast(SelfBlock, block), sum(tokens)) for block in fusion.blocks)


def teacher_flops(model: Teacher) -> float:
    """Cost of the forward of one clip, nothing masked, of which all views have their targets."""
    cls = int(model.config.encoder.cls)
    encoders = sum(_encoder(branch.encoder, branch.tokens) for branch in model.branches.values())
    return encoders + _fusion(model.fusion, *(branch.tokens + cls for branch in model.branches.values()))


def classifier_flops(model: Classifier, *, learning: bool = False) -> float:
    """Cost of one training clip's forward; `learning`: of those parts alone that learn, to which alone it goes back."""
    kept = {name: model.kept(name) for name in model.branches}
    counted = _learns if learning else _any_part
    encoders = sum(_encoder(branch.encoder, kept[name], counted) for name, branch in model.branches.items())
    cls = int(model.config.encoder.cls)
    fusion = _fusion(model.fusion, kept.get("video", 0) + cls, kept.get("audio", 0) + cls)
    return encoders + fusion + _linear(model.head, 1)


def mixed_flops(model: DiffMAViL, keep_video: int | tuple[int, ...], keep_audio: int | tuple[int, ...]) -> float:
    """Cost of one clip's forward, the mean where runs of clips keep other numbers of tokens in turn."""
    costs = [forward_flops(model, video, audio).total for audio, video in turns(keep_audio, keep_video)]
    return sum(costs) / len(costs)


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


def _any_part(part: nn.Module) -> bool:
    return True


def _learns(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())


def _encoder(encoder: Encoder, keep: int, counted: Callable[[nn.Module], bool] = _any_part) -> float:
    tokens = keep + (encoder.embed.cls is not None)
    blocks = sum(_self_block(cast(SelfBlock, block), tokens) for block in encoder.blocks if counted(block))
    return counted(encoder.embed) * _linear(encoder.embed, keep) + blocks


def _decoder(decoder: Decoder, context: int, decoded: int) -> float:
    contexts = len(decoder.blocks) if decoder.mixes else 1
    cost = contexts * _linear(decoder.context, context) + _linear(decoder.head, decoded)
    if decoder.mixes:
        cost += 2 * context * decoder.mix.weight.numel() * decoder.context.in_features
    if isinstance(decoder.masked, DiffusedPatch):
        cost += _linear(decoder.masked.proj, decoded) + _linear(decoder.masked.time, 1)
    for block in decoder.blocks:
        if isinstance(block, CrossBlock):
            cost += _cross_block(block, decoded, context)
        else:
            cost += _self_block(cast(SelfBlock, block), context + decoded)
    return cost
