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
from operator import attrgetter

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
    wrong = [name for name in _fixed(theirs, both) if attrgetter(name)(config) != attrgetter(name)(theirs)]
    given = ", ".join(f"model.{name}={attrgetter(name)(config)!r}" for name in wrong)
    flags = " ".join(_flag(name, attrgetter(name)(theirs)) for name in wrong)
    if wrong:
        raise ValueError(f"{given}: must be as {trained}: {flags}")
    if both["audio"] and config.audio.mean is None:
        known = f"given, with std, as the weights were trained: --init {source} does not tell"
        require(theirs.audio.mean is not None, "model.audio.mean", None, known)
        config = replace(config, audio=replace(config.audio, mean=theirs.audio.mean, std=theirs.audio.std))
    return config


def _fixed(theirs: ModelConfig, both: Mapping[str, bool]) -> list[str]:
    """Settings without which the encoders of the modalities that both have would not compute what they did."""
    names = [f"encoder.{name}" for name in vars(theirs.encoder)]
    names += ["shared_encoder"] * all(both.values())
    # Positions of other kinds than sincos belong to one size of the input.
    of_size = {"audio": ["frames"], "video": ["frames", "size"]} if theirs.encoder.positions != "sincos" else {}
    of = {"audio": ["mels", "patch", "padding"], "video": ["patch", "mean", "std"]}
    names += [f"{kind}.{name}" for kind in of if both[kind] for name in (*of[kind], *of_size.get(kind, ()))]
    return names


def _flag(name: str, value: object) -> str:
    """As the command line takes it."""
    *above, last = f"--model.{name}".replace("_", "-").split(".")
    if isinstance(value, bool):
        return ".".join([*above, last if value else f"no-{last}"])
    values = value if isinstance(value, tuple) else (value,)
    return f"{'.'.join([*above, last])} {' '.join(map(str, values))}"


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
    # Of a shared encoder one name may be taken for both.
    filled = {own[name].data_ptr() for name in taken}
    taken |= {name: value for name, value in own.items() if value.data_ptr() in filled}
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
