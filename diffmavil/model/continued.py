"""Begin with weights of ours: a pretraining that goes on with other clips, a longer window, or a teacher's features.

Encoders are taken whole, and compute what they did: all that belongs to a token, and the transformer, must agree. The
number of frames, the size of the picture and the length of the sound may differ, where positions follow from the grid.
Fusion blocks and decoders are taken tensor by tensor, by name and shape; a decoder only if its attention is of the
same kind with as many heads, and its last Linear only if it predicts the same. What is new begins as it does without
weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from diffmavil.config import ModelConfig, require
from diffmavil.config.model import hears, sees
from diffmavil.model.exchange.image_mae import InitReport
from diffmavil.model.exchange.report import groups
from diffmavil.model.mavil import DiffMAViL


def continues(config: ModelConfig, theirs: ModelConfig, source: str) -> ModelConfig:
    """`config` with the sound's statistics of the weights, unless it has its own.

    Args:
        config: of the model that is to begin.
        theirs: of the weights.
        source: what a person calls them, for messages.

    Raises:
        ValueError: no modality in common, encoders that would not compute what they did, or no statistics of the sound
            on either side.
    """
    both = {
        "audio": hears(config.modalities) and hears(theirs.modalities),
        "video": sees(config.modalities) and sees(theirs.modalities),
    }
    trained = f"--init {source} was trained"
    common = f"one with a modality in common: as {trained}, it has {theirs.modalities}"
    require(any(both.values()), "model.modalities", config.modalities, common)
    for name, value in vars(theirs.encoder).items():
        _agree(f"model.encoder.{name}", getattr(config.encoder, name), value, trained)
    fixed = {"audio": ("mels", "patch", "padding"), "video": ("patch", "mean", "std")}
    for modality in (name for name, shared in both.items() if shared):
        own, other = getattr(config, modality), getattr(theirs, modality)
        stored = theirs.encoder.positions != "sincos"
        for name in (*fixed[modality], *(("grid",) if stored else ())):
            _agree(f"model.{modality}.{name}", getattr(own, name), getattr(other, name), trained)
    if both["audio"] and config.audio.mean is None:
        known = f"given, with std, as the weights were trained: --init {source} does not tell"
        require(theirs.audio.mean is not None, "model.audio.mean", None, known)
        config = replace(config, audio=replace(config.audio, mean=theirs.audio.mean, std=theirs.audio.std))
    return config


def _agree(name: str, given: object, value: object, trained: str) -> None:
    require(given == value, name, given, f"{value!r}, as {trained}")


def _others(modality: str, own: ModelConfig, theirs: ModelConfig) -> list[str]:
    """Where names of that modality's decoder begin that mean something else there."""
    ours, other = (getattr(config, f"{modality}_decoder") for config in (own, theirs))
    if (ours.attention, ours.heads) != (other.attention, other.heads):
        return [f"{modality}.decoder."]
    return [f"{modality}.decoder.head."] if own.target_width != theirs.target_width else []


@torch.no_grad()
def initialise_from_ours(
    model: DiffMAViL, weights: Mapping[str, Tensor], theirs: ModelConfig, source: str
) -> InitReport:
    """Overwrite in place what weights of a model of `theirs` have for `model`; `continues` has said that they fit."""
    own = model.state_dict()
    others = tuple(part for modality in model.branches for part in _others(modality, model.config, theirs))
    taken = {
        name: value
        for name, value in weights.items()
        if name in own and own[name].shape == value.shape and not name.startswith(others)
    }
    model.load_state_dict(own | taken)
    parts: dict[str, list[str]] = {}
    for name in own:
        parts.setdefault(".".join(name.split(".")[: 1 if name.startswith("fusion") else 2]), []).append(name)
    mapped = [
        f"{part}: {count} of {len(names)} tensors"
        for part, names in parts.items()
        if (count := sum(name in taken for name in names))
    ]
    ours, trained = ((sound.mean, sound.std) for sound in (model.config.audio, theirs.audio))
    if "audio" in model.branches and hears(theirs.modalities) and trained != ours:
        mapped.append(f"mean and std of the sound are {ours} here, and {trained} as the weights were trained")
    return InitReport(
        f"{source}, weights of ours",
        tuple(mapped),
        tuple(groups(name for name in weights if name not in taken)),
        tuple(groups(name for name in own if name not in taken)),
    )
