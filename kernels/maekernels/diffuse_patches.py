"""Diffused patches: patchify, normalise and add noise in one pass over the pixels.

    v[b, q, :]   = the normalised patch ids[b, q] of x[b]                      (as `patchify`)
    norm_pix:  v = (v - mean(v)) / sqrt(var(v) + 1e-6)                         over the P elements, var unbiased
    out          = sqrt(alpha_bar[b]) v + sqrt(1 - alpha_bar[b]) eps

eps is keyed by (seed, sample offset + b, element ids[b, q] * P + p): the noise of a patch does not depend on which
other patches are chosen, and choosing all of them equals `add_noise` on the whole patchified sample.

Shapes: x as in `patchify`, ids [B, Q], alpha_bar [B], out [B, Q, P].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maekernels import philox
from maekernels._checks import FLOATS, check, check_alpha_bar, check_alpha_bar_range, check_backend, check_range
from maekernels._pixels import as_video, check_pixels, gather_patches, normalise_patches, sample_chunks


def diffuse_patches(
    x: Tensor,
    ids: Tensor,
    patch: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    alpha_bar: Tensor,
    seed: int | Tensor,
    offset: int = 0,
    norm_pix: bool = False,
    dtype: torch.dtype = torch.float32,
    *,
    channels_first: bool = False,
    backend: str | None = None,
) -> Tensor:
    """x_t of the chosen patches. The pixels are data: no gradient flows to `x`.

    Args:
        x, ids, patch, mean, std, channels_first: as in `patchify`; ids [B, Q].
        alpha_bar: float32 [B] in [0, 1].
        seed: int in [0, 2^63) or a 0-d int64 tensor on the device.
        offset: index of the first sample.
        norm_pix: normalise each patch by its own mean and standard deviation before the noise.
        dtype: of the result.
        backend: for tests and benchmarks only: 'torch' or 'triton'.

    Returns:
        [B, Q, P] in `dtype`.
    """
    check_pixels(x, ids, patch, mean, std, channels_first)
    check_alpha_bar(alpha_bar, x.shape[0], x.device)
    check(dtype in FLOATS, "dtype", dtype, "a float type")
    check(offset >= 0, "offset", offset, "not negative")
    check_backend(backend, x.device)
    op = _reference if backend == "torch" else _diffuse_patches
    seed = philox.as_seed(seed, x.device)
    args = (list(patch), list(mean), list(std), alpha_bar, seed, offset, norm_pix, dtype, channels_first)
    return op(x.detach(), ids, *args)


def _reference(
    x: Tensor,
    ids: Tensor,
    patch: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    alpha_bar: Tensor,
    seed: Tensor,
    offset: int,
    norm_pix: bool,
    dtype: torch.dtype,
    channels_first: bool,
) -> Tensor:
    values = gather_patches(x, ids, patch, mean, std, channels_first)
    if norm_pix:
        values = normalise_patches(values)
    noise = patch_noise(seed, ids, values.shape[2], offset)
    signal, sigma = alpha_bar[:, None, None].sqrt(), (1 - alpha_bar[:, None, None]).sqrt()
    return values.mul_(signal).add_(noise.mul_(sigma)).to(dtype)


def patch_noise(seed: Tensor, ids: Tensor, patch_dim: int, offset: int) -> Tensor:
    """Standard normal noise of whole patches, float32 [B, Q, P]."""
    batch, count = ids.shape
    samples = torch.arange(offset, offset + batch, device=ids.device)[:, None]
    if patch_dim % 4 == 0:
        blocks = ids.long()[..., None] * (patch_dim // 4) + torch.arange(patch_dim // 4, device=ids.device)
        return philox.normal_of_blocks(seed, samples, blocks.flatten(1)).view(batch, count, patch_dim)
    # Patches that start inside a block: take every block a patch touches, then its elements.
    first = ids.long()[..., None] * patch_dim
    blocks = first // 4 + torch.arange((patch_dim + 6) // 4, device=ids.device)
    noise = philox.normal_of_blocks(seed, samples, blocks.flatten(1)).view(batch, count, -1)
    return noise.gather(2, first % 4 + torch.arange(patch_dim, device=ids.device))


@torch.library.custom_op("maekernels::diffuse_patches", mutates_args=(), device_types="cpu")
def _diffuse_patches(
    x: Tensor,
    ids: Tensor,
    patch: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    alpha_bar: Tensor,
    seed: Tensor,
    offset: int,
    norm_pix: bool,
    dtype: torch.dtype,
    channels_first: bool,
) -> Tensor:
    grid = as_video(x, patch, channels_first)[1]
    check_range(ids, grid.tokens)
    check_alpha_bar_range(alpha_bar)
    out = x.new_empty((*ids.shape, grid.patch_dim), dtype=dtype)
    for part in sample_chunks(len(x), ids.shape[1] * grid.patch_dim):
        first = offset + part.start
        args = (patch, mean, std, alpha_bar[part], seed, first, norm_pix, dtype, channels_first)
        out[part] = _reference(x[part], ids[part], *args)
    return out


@_diffuse_patches.register_fake
def _(x, ids, patch, mean, std, alpha_bar, seed, offset, norm_pix, dtype, channels_first):
    return x.new_empty((*ids.shape, as_video(x, patch, channels_first)[1].patch_dim), dtype=dtype)
