"""Whether one call of a patched model is one for the ops. What is not is computed by the package's own code.

`patch` looks at a model once; what was replaced since, and what a call brings, is seen here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maekernels._checks import FLOATS
from maekernels.integrations._instance import has_hooks, overridden
from maekernels.integrations.forks import unknown_embedding


def for_ops(x: Any) -> bool:
    """A float tensor of a type and on a device that all ops have: float64 on a CPU alone."""
    if not isinstance(x, Tensor) or x.dtype not in FLOATS:
        return False
    return x.device.type == "cpu" or (x.device.type == "cuda" and x.dtype != torch.float64)


def embeds_plainly(embed: Any, package: str) -> bool:
    """The module `package` still embeds the patches, by a convolution that nobody replaced or watches."""
    if type(embed).forward.__module__ != package or overridden(embed, "forward"):
        return False
    return unknown_embedding(embed.projection) is None and not has_hooks(embed, embed.projection)
