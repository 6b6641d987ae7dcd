"""AdamW with the field's parameter groups, and the learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from diffmavil.config import OptimConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The matrices of Linear layers decay; biases, norms, and learnt single tokens do not (as in MAE)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim == 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim != 2], "weight_decay": 0.0},
    ]


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW: one pass over all parameters, and able to skip a step on the device (`found_inf`)."""
    groups = parameter_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def learning_rate(config: OptimConfig, progress: float) -> float:
    """Linear warm-up, then half a cosine to `min_lr`; `progress` in [0, 1] is the share of samples seen."""
    if progress < config.warmup:
        return config.lr * progress / config.warmup
    u = (progress - config.warmup) / (1 - config.warmup)
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * u)) / 2
