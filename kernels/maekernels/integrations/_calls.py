"""Whether the ops can compute a given call of a patched model. If not, the package's own code does.

`patch` checks a model once; later replacements and the arguments of each call are checked here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maekernels._checks import FLOATS
from maekernels._eager import transformed
from maekernels.integrations._instance import has_hooks, overridden
from maekernels.integrations.forks import unknown_embedding


def for_ops(x: Any) -> bool:
    """Whether `x` is a float tensor that all ops support: float64 only on a CPU, and none under torch.func."""
    if not torch.compiler.is_compiling() and transformed():
        return False  # custom ops have no rules for its transforms: vmap, grad and others
    if not isinstance(x, Tensor) or x.dtype not in FLOATS:
        return False
    return x.device.type == "cpu" or (x.device.type == "cuda" and x.dtype != torch.float64)


def embeds_plainly(embed: Any, package: str) -> bool:
    """Whether `package`'s own code still embeds the patches, by a convolution that is neither replaced nor hooked."""
    if type(embed).forward.__module__ != package or overridden(embed, "forward"):
        return False
    return unknown_embedding(embed.projection) is None and not has_hooks(embed, embed.projection)
