"""How the pixel ops (`patchify`, `diffuse_patches`, `masked_mse`) see their input.

Video, image and spectrogram are one thing inside: a strided view [B, T, H, W, C] cut into patches (pt, ph, pw). An
image has T = 1; a spectrogram [B, F, M] has T = C = 1, H = F, W = M; channels-first is a permuted view. Token n is
patch (t, h, w) in row-major order; inside a patch the P = pt*ph*pw*C elements are ordered (t, h, w, c) as in MAE and
VideoMAE.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from maekernels._checks import FLOATS, check, check_ids, describe

MAX_CHANNELS = 4
_CHUNK = 2**18


class Grid(NamedTuple):
    """Patches along (time, height, width), their size, and the channels."""

    t: int
    h: int
    w: int
    pt: int
    ph: int
    pw: int
    channels: int

    @property
    def tokens(self) -> int:
        return self.t * self.h * self.w

    @property
    def patch_dim(self) -> int:
        return self.pt * self.ph * self.pw * self.channels


def as_video(x: Tensor, patch: Sequence[int], channels_first: bool) -> tuple[Tensor, Grid]:
    """The view [B, T, H, W, C] of `x`, and its grid. Shapes have been checked by `check_pixels`."""
    if x.dim() == 3:
        video = x[:, None, :, :, None]
    elif x.dim() == 4:
        video = (x.movedim(1, 3) if channels_first else x)[:, None]
    else:
        video = x.movedim(1, 4) if channels_first else x
    pt, ph, pw = patch if len(patch) == 3 else (1, *patch)
    _, t, h, w, c = video.shape
    return video, Grid(t // pt, h // ph, w // pw, pt, ph, pw, c)


def check_pixels(
    x: Tensor, ids: Tensor, patch: Sequence[int], mean: Sequence[float], std: Sequence[float], channels_first: bool
) -> Grid:
    """The grid of valid arguments; `ValueError` naming the argument otherwise."""
    check(len(patch) in (2, 3) and all(p > 0 for p in patch), "patch", tuple(patch), "2 or 3 positive sizes")
    allowed = "[B, T, H, W, C] video" if len(patch) == 3 else "[B, H, W, C] image or [B, F, M] spectrogram"
    allowed = f"uint8 or float {allowed} for patch={tuple(patch)}, with channels_first the C before the sizes"
    rank_ok = x.dim() == 5 if len(patch) == 3 else x.dim() in (3, 4)
    check(rank_ok and (x.dtype == torch.uint8 or x.dtype in FLOATS), "x", describe(x), allowed)
    video, grid = as_video(x, patch, channels_first)
    sizes, c = video.shape[1:4], video.shape[4]
    divides = all(size % p == 0 for size, p in zip(sizes, (grid.pt, grid.ph, grid.pw), strict=True))
    check(divides, "patch", tuple(patch), f"divisors of the sizes of x={describe(x)}")
    check(1 <= c <= MAX_CHANNELS, "x", describe(x), f"of 1 to {MAX_CHANNELS} channels ({channels_first=})")
    for name, values in (("mean", mean), ("std", std)):
        check(len(values) == c, name, tuple(values), f"one value for each of the {c} channels of x={describe(x)}")
    check(all(s > 0 for s in std), "std", tuple(std), "positive")
    check_ids(ids, x.shape[0], x.device)
    return grid


def scale_and_shift(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> tuple[list[float], list[float]]:
    """value = x * scale + shift for each channel; uint8 is scaled by 1/255 first."""
    unit = 255.0 if x.dtype == torch.uint8 else 1.0
    return [1.0 / (unit * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)]


def gather_patches(
    x: Tensor, ids: Tensor, patch: Sequence[int], mean: Sequence[float], std: Sequence[float], channels_first: bool
) -> Tensor:
    """Normalised chosen patches, float32 (float64 from float64) [B, K, P], in plain torch.

    The patches are picked from `x` as it is stored, before any arithmetic: a pixel that is not chosen is not read.
    """
    video, g = as_video(x, patch, channels_first)
    chosen = _gather_rows(video, ids, g) if video.is_contiguous() else _gather_strided(video, ids, g)
    scale, shift = scale_and_shift(x, mean, std)
    values = chosen.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    repeat = g.patch_dim // g.channels
    return values.mul_(values.new_tensor(scale).repeat(repeat)).add_(values.new_tensor(shift).repeat(repeat))


def _gather_rows(video: Tensor, ids: Tensor, g: Grid) -> Tensor:
    """Copies of whole patch rows (pw * C contiguous elements)."""
    batch, token = torch.arange(ids.shape[0], device=ids.device)[:, None], ids.long()
    t, h, w = token // (g.h * g.w), token // g.w % g.h, token % g.w
    first = ((batch * g.t + t) * g.pt * g.h + h) * g.ph * g.w + w
    dt = torch.arange(g.pt, device=ids.device)[:, None] * (g.h * g.ph * g.w)
    dh = torch.arange(g.ph, device=ids.device) * g.w
    rows = (first[..., None] + (dt + dh).flatten()).flatten()
    return video.reshape(-1, g.pw * g.channels).index_select(0, rows).view(*ids.shape, g.patch_dim)


def _gather_strided(video: Tensor, ids: Tensor, g: Grid) -> Tensor:
    """Any strides, without a copy of the whole input."""
    patches = video.unflatten(3, (g.w, g.pw)).unflatten(2, (g.h, g.ph)).unflatten(1, (g.t, g.pt))
    patches = patches.permute(0, 1, 3, 5, 2, 4, 6, 7)  # [B, t, h, w, pt, ph, pw, C]
    batch, token = torch.arange(ids.shape[0], device=ids.device)[:, None], ids.long()
    return patches[batch, token // (g.h * g.w), token // g.w % g.h, token % g.w].flatten(2)


def sample_chunks(batch: int, elements: int) -> Iterator[slice]:
    """Slices of the batch whose temporaries stay in a CPU's cache; `elements` of one sample."""
    step = max(1, _CHUNK // max(1, elements))
    return (slice(b, min(b + step, batch)) for b in range(0, batch, step))


NORM_PIX_EPS = 1e-6


def normalise_patches(values: Tensor) -> Tensor:
    """(v - mean) / sqrt(var + 1e-6) over the last axis, var unbiased as in MAE. Overwrites `values`."""
    centred = values.sub_(values.mean(-1, keepdim=True))
    dim = values.shape[-1]
    variance = torch.linalg.vector_norm(centred, dim=-1, keepdim=True).square_().div_(dim - 1)
    return centred.mul_(variance.add_(NORM_PIX_EPS).rsqrt_())
