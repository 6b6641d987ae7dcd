"""NVIDIA apex, where it is really usable: found out by making and running the thing that is asked for.

apex comes from source and its parts are built or left out one by one, so that an import says little. The package
`apex` on PyPI is an unrelated one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

_NO_CLIPPING = 1e30  # 0 would divide by it
_HOW = (
    "it is built from source: git clone https://github.com/NVIDIA/apex && cd apex && APEX_CPP_EXT=1 APEX_CUDA_EXT=1 "
    "pip install -v --no-build-isolation . (the package `apex` on PyPI is an unrelated one)"
)


def fused_adam(groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
    """apex.optimizers.FusedAdam with decoupled weight decay. Raises `ValueError` where it is not usable."""
    return _optimizer("apex_adam", "FusedAdam", groups, lr=lr, betas=betas, adam_w_mode=True)


def fused_lamb(groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
    """apex.optimizers.FusedLAMB. It would clip gradients itself, at norm 1; here clipping is the step's own.

    Raises:
        ValueError: where it is not usable.
    """
    return _optimizer("apex_lamb", "FusedLAMB", groups, lr=lr, betas=betas, max_grad_norm=_NO_CLIPPING)


def fused_layer_norm(width: int, eps: float) -> nn.Module:
    """apex.normalization.FusedLayerNorm. Raises `ValueError` where it is not usable."""

    def probe(made: Any, device: torch.device) -> None:
        made(width, eps=eps).to(device)(torch.ones(2, width, device=device)).sum().backward()

    return _usable("model.norm='apex'", "apex.normalization", "FusedLayerNorm", probe)(width, eps=eps)


def _optimizer(setting: str, name: str, groups: list[dict[str, Any]], **settings: Any) -> torch.optim.Optimizer:
    def probe(made: Any, device: torch.device) -> None:
        parameter = nn.Parameter(torch.ones(8, device=device))
        optimizer = made([parameter], **settings)
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()

    return _usable(f"optim.name={setting!r}", "apex.optimizers", name, probe)(groups, **settings)


def _usable(setting: str, module: str, name: str, probe: Callable[[Any, torch.device], None]) -> Any:
    """`module.name`, after `probe` has run with it on this process's GPU."""
    if not torch.cuda.is_available():
        raise ValueError(f"{setting}: NVIDIA apex works on CUDA, and torch sees no CUDA device here")
    try:
        found = getattr(importlib.import_module(module), name)
        probe(found, torch.device("cuda", torch.cuda.current_device()))
    except (ImportError, AttributeError, RuntimeError, TypeError) as error:
        raise ValueError(f"{setting}: NVIDIA apex's {name} is not usable here ({error}); {_HOW}") from error
    return found
