"""Whose weights a file holds, found out by the names and shapes in it, and a model of ours made from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from diffmavil.config import Config, ModelConfig
from diffmavil.model.exchange import names as n
from diffmavil.model.exchange.asked import Asked
from diffmavil.model.exchange.locate import Found
from diffmavil.model.exchange.pair import from_cav_mae, from_mavil
from diffmavil.model.exchange.reader import Reader
from diffmavil.model.exchange.report import Report, groups
from diffmavil.model.exchange.single import from_picture, from_sound, from_video
from diffmavil.model.exchange.state import Tensors, described
from diffmavil.model.mavil import DiffMAViL

_SEED = 0
"""Of what begins at random."""
_MODEL_TYPES = ("vit_mae", "videomae")


@dataclass(frozen=True)
class Source:
    """What a file was found to be, and how it becomes ours."""

    title: str
    read: Callable[[Reader], ModelConfig]


@dataclass(frozen=True)
class Imported:
    model: DiffMAViL
    config: Config
    report: Report


def import_weights(found: Found, asked: Asked) -> Imported:
    """A model of ours, in evaluation mode, that computes what the file's does.

    Raises:
        ValueError: nothing that can be read there, a kind that we do not know, parts that are missing or do not fit
            each other, or positions that cannot be interpolated.
    """
    state = Tensors(found.weights, "IN")
    source = detect(state, found)
    reader = Reader(state, Report(f"{found.weights}: {source.title}"), asked, dict(found.told))
    model_config = source.read(reader)
    if asked.modalities not in (None, model_config.modalities):
        raise state.refusal(f"--modalities={asked.modalities}: {source.title} has {model_config.modalities} alone")
    return _filled(Config(model=model_config), reader)


def detect(state: Tensors, found: Found) -> Source:
    """What the file holds. Raises `ValueError`, telling what was found in it, if that is nothing we know."""
    told = found.told.get("model_type")
    if told is not None and told not in _MODEL_TYPES:
        raise state.refusal(f"config.json beside it says model_type={told!r}; must be {' or '.join(_MODEL_TYPES)}")
    activation = found.told.get("hidden_act", "gelu")
    if activation != "gelu":
        raise state.refusal(f"config.json beside it says hidden_act={activation!r}; must be 'gelu', as ours is")
    if {"patch_embed_v.proj.weight", "blocks_v.0.attn.qkv.weight", "cls_token_v"} <= state.named.keys():
        return Source("MAViL, as av-superb's inference code names it", from_mavil)
    if {"patch_embed_a.proj.weight", "patch_embed_v.proj.weight", "blocks_u.0.attn.qkv.weight"} <= state.named.keys():
        return Source("CAV-MAE", from_cav_mae)
    video = n.find_names(state, n.KNOWN_VIDEO)
    if video is not None and state.dim(f"{video.patch}.weight") == 5:
        if f"{video.block.format(0)}.attention.attention.query.bias" in state:
            video = n.VIDEO_TRANSFORMERS_5.within(video.patch.removesuffix(n.VIDEO_TRANSFORMERS_5.patch))
        return Source(f"VideoMAE ({video.kind})", partial(from_video, names=video))
    one = n.find_names(state)
    if one is not None and state.dim(f"{one.patch}.weight") == 4:
        return _flat(state, one)
    raise state.refusal(
        "is none of MAE, ViTMAE, CrossMAE, AudioMAE, VideoMAE, CAV-MAE, MAViL and ours; "
        f"found: {described(state.named)}"
    )


def _flat(state: Tensors, names: n.Names) -> Source:
    """One encoder of pictures or spectrograms."""
    if state.named[f"{names.patch}.weight"].shape[1] == 1:
        return Source(f"AudioMAE ({names.kind})", partial(from_sound, names=names))
    crossed = "decoder_blocks.0.cross_attn.q.weight" in state
    title = "CrossMAE (its own names)" if crossed else f"an image MAE ({names.kind})"
    return Source(title, partial(from_picture, names=names))


def _filled(config: Config, reader: Reader) -> Imported:
    """The model with what was read; the rest begins as it does before a training with seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_SEED)
        model = DiffMAViL(config.model)
    own = model.state_dict()
    computed = {name for name, _ in model.named_buffers()} - own.keys()
    values = {name: value for name, value in reader.values.items() if name not in computed}
    assert values.keys() <= own.keys(), sorted(values.keys() - own.keys())
    model.load_state_dict(own | values)
    reader.report.new = groups(sorted(own.keys() - values.keys()))
    return Imported(model.eval(), config, reader.report)
