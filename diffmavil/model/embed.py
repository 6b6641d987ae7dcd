"""Patches to tokens and back: patch embedding, fixed positions, pictures from patches."""

from __future__ import annotations

import math

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from diffmavil.config import require


def sincos_positions(grid: tuple[int, ...], width: int) -> Tensor:
    """Fixed sine-cosine positions of a grid of patches: `[prod(grid), width]` float32, row-major.

    The `width / 2` frequencies are divided over the axes (the last axes take what is left over), and each axis has
    the frequencies 10000^(-i/n) of Vaswani et al. 2017. On a 2-D grid this is the table of MAE up to the order of axes.
    """
    require(width > 0 and width % 4 == 0, "width", width, "a multiple of 4")
    share, extra = divmod(width // 2, len(grid))
    columns = []
    for axis, size in enumerate(grid):
        count = share + (axis >= len(grid) - extra)
        frequencies = 10_000 ** (-torch.arange(count, dtype=torch.float64) / max(count, 1))
        angles = torch.arange(size, dtype=torch.float64)[:, None] * frequencies
        table = torch.cat([angles.sin(), angles.cos()], dim=1)
        before, after = math.prod(grid[:axis]), math.prod(grid[axis + 1 :])
        columns.append(repeat(table, "n d -> (before n after) d", before=before, after=after))
    return torch.cat(columns, dim=1).float()


def sequence_positions(grid: tuple[int, ...], width: int) -> Tensor:
    """VideoMAE's: all patches are numbered through; even columns are sines, odd ones cosines: `[prod(grid), width]`.

    The frequencies are those of Vaswani et al. 2017.
    """
    require(width > 0 and width % 2 == 0, "width", width, "even")
    frequencies = 10_000 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(math.prod(grid), dtype=torch.float64)[:, None] * frequencies
    return rearrange([angles.sin(), angles.cos()], "two n d -> n (d two)").float()


def position_table(kind: str, grid: tuple[int, ...], width: int) -> Tensor:
    """What `EncoderConfig.positions` names, `[prod(grid), width]`; a stored table begins as sincos."""
    return (sequence_positions if kind == "sequence" else sincos_positions)(grid, width)


def all_ids(batch: int, views: int, tokens: int, device: torch.device) -> Tensor:
    """Every position, for every sample and view: `[batch, views, tokens]` int32."""
    return repeat(torch.arange(tokens, dtype=torch.int32, device=device), "n -> b v n", b=batch, v=views).contiguous()


def unpatchify(patches: Tensor, grid: tuple[int, ...], patch: tuple[int, ...]) -> Tensor:
    """All patches of a clip, put back in place; the inverse of `maekernels.patchify` with every id.

    Args:
        patches: `[B, N, P]`, rows in row-major grid order, values in the order (t, h, w, c) or (f, m).
        grid: patches along each axis: (t, h, w) for video, (f, m) for a spectrogram.
        patch: size of one patch along the same axes.

    Returns:
        video `[B, T, H, W, 3]` or spectrogram `[B, F, M]`.
    """
    require(
        len(grid) in (2, 3) and len(grid) == len(patch), "grid, patch", (grid, patch), "both of 2 or both of 3 axes"
    )
    if len(grid) == 2:
        (f, m), (pf, pm) = grid, patch
        return rearrange(patches, "b (f m) (pf pm) -> b (f pf) (m pm)", f=f, m=m, pf=pf, pm=pm)
    (t, h, w), (pt, ph, pw) = grid, patch
    pattern = "b (t h w) (pt ph pw c) -> b (t pt) (h ph) (w pw) c"
    return rearrange(patches, pattern, t=t, h=h, w=w, pt=pt, ph=ph, pw=pw)


class PatchEmbed(nn.Module):
    """Visible patches to tokens: Linear, fixed positions, and one CLS token in front.

    Args:
        cls: False leaves the CLS token out.
        positions: see `EncoderConfig`.
    """

    positions: Tensor

    def __init__(
        self, grid: tuple[int, ...], patch_dim: int, width: int, *, cls: bool = True, positions: str = "sincos"
    ) -> None:
        super().__init__()
        self.proj = nn.Linear(patch_dim, width)
        self.cls = nn.Parameter(torch.empty(1, 1, width)) if cls else None
        self.register_buffer("positions", position_table(positions, grid, width), persistent=positions == "stored")

    def forward(self, patches: Tensor, ids: Tensor) -> Tensor:
        """patches `[B, K, P]`, their positions ids `[B, K]` -> `[B, 1 + K, D]`, or `[B, K, D]` without CLS."""
        tokens = self.proj(patches) + self.positions[ids]
        if self.cls is None:
            return tokens
        cls = repeat(self.cls, "1 1 d -> b 1 d", b=tokens.shape[0])
        return torch.cat([cls, tokens], dim=1)
