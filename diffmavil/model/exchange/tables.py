"""Tables of positions of other people's: the grid they belong to, and another grid's made from them."""

from __future__ import annotations

import math

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def square(tokens: int) -> int | None:
    """The side of a square grid of so many patches; None: there is none."""
    side = math.isqrt(tokens)
    return side if side * side == tokens else None


def resize_table(table: Tensor, grid: tuple[int, ...], wanted: tuple[int, ...]) -> Tensor:
    """Positions `[prod(grid), D]` -> `[prod(wanted), D]`: bicubic over the last two axes, linear over time before them.

    Raises:
        ValueError: the table has other rows than the grid has patches, or one grid more axes than the other.
    """
    if len(table) != math.prod(grid) or len(grid) != len(wanted):
        raise ValueError(f"positions of {len(table)} patches cannot be interpolated from grid {grid} to {wanted}")
    if grid == wanted:
        return table
    (*times, height, width), (*new_times, new_height, new_width) = grid, wanted
    frames, new_frames = math.prod(times), math.prod(new_times)
    planes = rearrange(table, "(t h w) d -> t d h w", t=frames, h=height, w=width)
    if (height, width) != (new_height, new_width):
        planes = F.interpolate(planes, size=(new_height, new_width), mode="bicubic", align_corners=False)
    if frames != new_frames:
        lines = rearrange(planes, "t d h w -> (h w) d t")
        lines = F.interpolate(lines, size=new_frames, mode="linear", align_corners=False)
        planes = rearrange(lines, "(h w) d t -> t d h w", h=new_height)
    return rearrange(planes, "t d h w -> (t h w) d").contiguous()
