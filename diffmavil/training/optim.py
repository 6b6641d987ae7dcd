"""Optimisers, the groups of parameters they treat alike, and the learning-rate schedule."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from diffmavil.config import OptimConfig
from diffmavil.model.apex import fused_adam, fused_lamb
from diffmavil.training.muon import Muon

LR_SCALE = "lr_scale"
"""Key of a group: its learning rate relative to the schedule's."""
_BLOCK = re.compile(r"^(?:audio|video)\.encoder\.blocks\.(\d+)\.")
_BELOW = re.compile(r"^(?:audio|video)\.encoder\.embed\.")


def depth_of(name: str, encoder_depth: int) -> int:
    """Height of a parameter: 0 for patch embeddings, 1 + i for block i of an encoder, above them everything else."""
    if block := _BLOCK.match(name):
        return 1 + int(block.group(1))
    return 0 if _BELOW.match(name) else encoder_depth + 1


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float = 1.0, lr_video: float = 1.0
) -> list[dict[str, Any]]:
    """The matrices of Linear layers decay; biases and norms do not, as in MAE, nor learnt single tokens, as MAE's do,
    nor the weights of a decoder's mix, which begin at one.

    With `layer_decay` below 1 a group for each height (`depth_of`) too, the lower the slower; with `lr_video` other
    than 1 one for the video branch, by so much. Each trained parameter is in exactly one group.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    depth = 1 + max((int(m.group(1)) for name, _ in trained if (m := _BLOCK.match(name))), default=-1)
    found: dict[tuple[bool, int, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in trained:
        height = 0 if layer_decay == 1 else depth + 1 - depth_of(name, depth)
        exempt = parameter.ndim != 2 or name.endswith(".mix.weight")
        found[exempt, height, lr_video != 1 and name.startswith("video.")].append(parameter)
    return [
        {
            "params": params,
            "weight_decay": 0.0 if exempt else weight_decay,
            LR_SCALE: layer_decay**below * (lr_video if slower else 1.0),
        }
        for (exempt, below, slower), params in sorted(found.items(), key=lambda item: item[0])
    ]


def make_optimizers(model: nn.Module, config: OptimConfig, lr_video: float = 1.0) -> list[torch.optim.Optimizer]:
    """One optimiser, or for Muon two, which together have every trained parameter once.

    Fused AdamW makes one pass over all parameters, and is able to skip a step on the device (`found_inf`).

    Raises:
        ValueError: an apex optimiser where NVIDIA apex is not usable.
    """
    groups = parameter_groups(model, config.weight_decay, config.layer_decay, lr_video)
    if config.name == "apex_adam":
        return [fused_adam(groups, config.lr, config.betas)]
    if config.name == "apex_lamb":
        return [fused_lamb(groups, config.lr, config.betas)]
    if config.name == "muon":
        return _muon(model, groups, config)
    return [_adamw(groups, config)]


def _adamw(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def muon_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Those that `optim.name=muon` gives to Muon, frozen ones among them."""
    return [p for name, p in model.named_parameters() if ".blocks." in f".{name}" and p.ndim == 2]


def _muon(model: nn.Module, groups: list[dict[str, Any]], config: OptimConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks; the rest, input and output layers among it, to AdamW."""
    inside = set(map(id, muon_matrices(model)))
    matrices, others = [], []
    for group in groups:
        split = [p for p in group["params"] if id(p) in inside], [p for p in group["params"] if id(p) not in inside]
        for part, params in zip((matrices, others), split, strict=True):
            if params:
                part.append({**group, "params": params})
    return [Muon(matrices, config.lr, ns_steps=config.muon_steps), _adamw(others, config)]


def skips_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it reads `found_inf` as torch's fused optimisers do; the host must decide for the others."""
    return isinstance(optimizer, Muon) or bool(optimizer.defaults.get("fused"))


def learning_rate(config: OptimConfig, progress: float) -> float:
    """Linear warm-up, then half a cosine to `min_lr`; `progress` in [0, 1] is the share of samples seen."""
    if progress < config.warmup:
        return config.lr * progress / config.warmup
    u = (progress - config.warmup) / (1 - config.warmup)
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * u)) / 2
