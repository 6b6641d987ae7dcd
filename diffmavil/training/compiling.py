"""`torch.compile` of the transformer's blocks, region by region.

Blocks of one kind and width share their graphs, so that a model of any depth compiles as many graphs as there are kinds
of blocks (encoder, fusion, decoder) times shapes; and the curriculum has few shapes. What lies between the blocks
(drawing masks, cutting patches, losses) is ops of maekernels and stays as it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from diffmavil.config import Config
from diffmavil.config.folders import expand
from diffmavil.model.blocks import Blocks
from diffmavil.training.planner import shapes

_PER_SHAPE = 14
"""Graphs of one shape and size of a pass at most: two encoders, fusion and two decoders with gradients, two encoders
with the contrast's own views, two without gradients where a step takes several passes, two encoders and fusion of a
teacher, and room for a mixed batch."""
_SIZES = 2
"""Of the passes of one step: they differ by one clip where it does not divide."""


def compile_blocks(model: nn.Module, config: Config, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile every block, at its first call with each shape. A graph break is an error.

    Compiled code is kept under `data.cache`, unless TORCHINDUCTOR_CACHE_DIR names another folder.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # a second, and triton, at import

    # torch writes its default into the environment as soon as anything asks for the folder, imports among it.
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", default_cache_dir()) == default_cache_dir():
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(expand(config.data.cache) / "inductor")
    dynamo = torch._dynamo.config
    needed = _PER_SHAPE * _SIZES * len(shapes(config))
    dynamo.recompile_limit = max(dynamo.recompile_limit, needed)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, needed)
    # Under DDP dynamo would cut a block in two where a bucket of gradients is full. Blocks are small enough for buckets
    # to leave in time, and a cut block is two graphs.
    dynamo.optimize_ddp = False
    for module in model.modules():
        if isinstance(module, Blocks):
            for block in module:
                block.compile(fullgraph=True, dynamic=False, backend=backend)


def graphs_compiled() -> int:
    """By this process so far."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]
