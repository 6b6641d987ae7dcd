"""Diffused patches: patchify, normalise and add noise in one pass over the pixels.

    v[b, q, :]   = the normalised patch ids[b, q] of x[b]                      (as `patchify`)
    norm_pix:  v = (v - mean(v)) / sqrt(var(v) + 1e-6)                         over the P elements, var unbiased
    "channel": v = (v - mean(v)) / (sqrt(var(v)) + 1e-6)                       over each channel of the patch
    out          = sqrt(alpha_bar[b]) v + sqrt(1 - alpha_bar[b]) eps

eps is keyed by (seed, sample offset + b, element ids[b, q] * P + p): the noise of a patch does not depend on which
other patches are selected, and selecting all of them equals `add_noise` on the whole patchified sample.

Shapes: x as in `patchify`, ids [B, Q], alpha_bar [B], out [B, Q, P].

Cost, with s and o bytes per element of x and of out:

    forward    reads B Q P s, writes B Q P o; B Q P / 4 Philox blocks of 40 integer instructions; 10 B Q P FLOPs, 15
               with norm_pix
    backward   B Q P o read and written (and B Q P s read with norm_pix, 10 B Q P FLOPs), then `patchify`'s backward

uint8 to bfloat16 moves 3 bytes and takes 10 integer instructions per element: calculated for an H200 (4.3 TB/s, 132 SMs
with 64 integer lanes), both take about 0.7 ps, so neither the noise nor the memory traffic may be duplicated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from maekernels import philox
from maekernels._checks import (
    FLOATS,
    check,
    check_alpha_bar,
    check_alpha_bar_range,
    check_backend,
    check_kernel_dtype,
    check_range,
    run_op,
)
from maekernels._native import PYTHON_CPU
from maekernels._pixels import (
    PLAIN,
    NormPix,
    as_video,
    check_pixels,
    gather_patches,
    load_patches,
    norm_mode,
    normalise_backward,
    normalise_channels,
    normalise_channels_backward,
    normalise_patches,
    normalise_rows,
    patch_tile,
    pixel_args,
    sample_chunks,
)
from maekernels._triton import interpreted, jit, register_cuda
from maekernels.patchify import _patchify_backward
from maekernels.philox import philox_normal, philox_normals8

if TYPE_CHECKING:
    import triton.language as tl


def diffuse_patches(
    x: Tensor,
    ids: Tensor,
    patch: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    alpha_bar: Tensor,
    seed: int | Tensor,
    offset: int = 0,
    norm_pix: NormPix = False,
    dtype: torch.dtype = torch.float32,
    *,
    channels_first: bool = False,
    backend: str | None = None,
) -> Tensor:
    """x_t of the selected patches. Differentiable in a float `x`.

    Args:
        x, ids, patch, mean, std, channels_first: as in `patchify`; ids [B, Q].
        alpha_bar: float32 [B] in [0, 1].
        seed: int in [0, 2^63) or a 0-d int64 tensor on the device.
        offset: index of the first sample.
        norm_pix: normalise each patch by its own mean and standard deviation before adding noise; 'channel': each of
            its channels separately, like VideoMAE's target.
        dtype: of the result.
        backend: for tests and benchmarks only: 'torch', 'native' or 'triton'.

    Returns:
        [B, Q, P] in `dtype`.
    """
    check_pixels(x, ids, patch, mean, std, channels_first, norm_pix)
    check(math.prod(x.shape[1:]) < 2**31, "x", tuple(x.shape), "such that a sample has fewer than 2^31 numbers")
    check_alpha_bar(alpha_bar, x.shape[0], x.device)
    check(dtype in FLOATS, "dtype", dtype, "a float type")
    check(offset >= 0, "offset", offset, "not negative")
    check_backend(backend, x.device)
    op = _reference if backend == "torch" else _diffuse_patches
    seed = philox.as_seed(seed, x.device)
    mode = norm_mode(norm_pix)
    args = (list(patch), list(mean), list(std), alpha_bar, seed, offset, mode, dtype, channels_first)
    return run_op(op, x, ids, *args)


def _reference(
    x: Tensor,
    ids: Tensor,
    patch: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    alpha_bar: Tensor,
    seed: Tensor,
    offset: int,
    norm_pix: int,
    dtype: torch.dtype,
    channels_first: bool,
) -> Tensor:
    values = gather_patches(x, ids, patch, mean, std, channels_first)
    if norm_pix != PLAIN:
        values = normalise_patches(values, norm_pix, len(mean)).values
    noise = patch_noise(seed, ids, values.shape[2], offset)
    signal, sigma = alpha_bar[:, None, None].sqrt(), (1 - alpha_bar[:, None, None]).sqrt()
    return (signal * values + sigma * noise).to(dtype)


def _reference_backward(
    grad: Tensor,
    x: Tensor,
    ids: Tensor,
    patch: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    alpha_bar: Tensor,
    norm_pix: int,
    channels_first: bool,
) -> Tensor:
    """d loss / d v before the patch normalisation, [B, Q, P] in the dtype of `grad`; for norm_pix."""
    values = gather_patches(x, ids, patch, mean, std, channels_first)
    normal = normalise_patches(values, norm_pix, len(mean))
    return normalise_backward(alpha_bar[:, None, None].sqrt() * grad, normal, norm_pix, len(mean)).to(grad.dtype)


def patch_noise(seed: Tensor, ids: Tensor, patch_dim: int, offset: int) -> Tensor:
    """Standard normal noise of whole patches, float32 [B, Q, P]."""
    batch, count = ids.shape
    samples = torch.arange(offset, offset + batch, device=ids.device)[:, None]
    if patch_dim % 4 == 0:
        blocks = ids.long()[..., None] * (patch_dim // 4) + torch.arange(patch_dim // 4, device=ids.device)
        return philox.normal_of_blocks(seed, samples, blocks.flatten(1)).view(batch, count, patch_dim)
    # Patches may start inside a Philox block: generate every block a patch touches, then select its elements.
    first = ids.long()[..., None] * patch_dim
    blocks = first // 4 + torch.arange((patch_dim + 6) // 4, device=ids.device)
    noise = philox.normal_of_blocks(seed, samples, blocks.flatten(1)).view(batch, count, -1)
    return noise.gather(2, first % 4 + torch.arange(patch_dim, device=ids.device))


@jit(do_not_specialize=("offset",))
def _diffuse_kernel(
    x_ptr, ids_ptr, alpha_bar_ptr, seed_ptr, out_ptr, offset, rows, K, scale, shift, sb, st, sh, sw, sc,
    GT: tl.constexpr, GH: tl.constexpr, GW: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    C: tl.constexpr, PACKED: tl.constexpr, P: tl.constexpr, NORM: tl.constexpr, FAST: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """A tile of ROWS selected patches by CHUNK of their P elements; with NORM, CHUNK covers all P."""
    CHUNKS: tl.constexpr = (P + CHUNK - 1) // CHUNK
    row = tl.program_id(0) // CHUNKS * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(0) % CHUNKS * CHUNK
    p = first + tl.arange(0, CHUNK)
    inside = (row < rows)[:, None] & (p < P)[None, :]
    value, token = load_patches(
        x_ptr, ids_ptr, row, rows, p, inside, K, scale, shift, sb, st, sh, sw, sc,
        GT, GH, GW, PT, PH, PW, C, PACKED, True,
    )  # fmt: skip
    if NORM == 1:
        value, _ = normalise_rows(value, inside, P)
    elif NORM == 2:
        value = normalise_channels(value, p, inside, P, C)
    seed = tl.load(seed_ptr)
    sample = (offset + (row // K).to(tl.int64))[:, None]
    if P % 8 == 0:
        pair = (token.to(tl.int32) * (P // 8) + first // 8)[:, None] + tl.arange(0, CHUNK // 8)[None, :]
        noise = philox_normals8(seed, sample, pair, FAST)
    else:
        noise = philox_normal(seed, sample, (token.to(tl.int32) * P)[:, None] + p[None, :])
    alpha_bar = tl.load(alpha_bar_ptr + row // K, mask=row < rows, other=1.0)[:, None]
    value = tl.sqrt(alpha_bar) * value + tl.sqrt(1.0 - alpha_bar) * noise
    out = row.to(tl.int64)[:, None] * P + p[None, :]
    tl.store(out_ptr + out, value.to(out_ptr.dtype.element_ty), mask=inside)


@jit
def _diffuse_backward_kernel(
    grad_ptr, x_ptr, ids_ptr, alpha_bar_ptr, out_ptr, rows, K, scale, shift, sb, st, sh, sw, sc,
    GT: tl.constexpr, GH: tl.constexpr, GW: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    C: tl.constexpr, PACKED: tl.constexpr, P: tl.constexpr, NORM: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The gradient with respect to the patches before the noise and, with NORM, before their normalisation."""
    CHUNKS: tl.constexpr = (P + CHUNK - 1) // CHUNK
    row = tl.program_id(0) // CHUNKS * ROWS + tl.arange(0, ROWS)
    p = tl.program_id(0) % CHUNKS * CHUNK + tl.arange(0, CHUNK)
    inside = (row < rows)[:, None] & (p < P)[None, :]
    place = row.to(tl.int64)[:, None] * P + p[None, :]
    grad = tl.load(grad_ptr + place, mask=inside, other=0.0).to(tl.float32)
    grad *= tl.sqrt(tl.load(alpha_bar_ptr + row // K, mask=row < rows, other=1.0))[:, None]
    if NORM:
        value, _ = load_patches(
            x_ptr, ids_ptr, row, rows, p, inside, K, scale, shift, sb, st, sh, sw, sc,
            GT, GH, GW, PT, PH, PW, C, PACKED, False,
        )  # fmt: skip
        if NORM == 1:
            value, rstd = normalise_rows(value, inside, P)
            along = tl.sum(grad * value, axis=1) / (P - 1)
            grad = rstd * (grad - (tl.sum(grad, axis=1) / P)[:, None] - value * along[:, None])
        else:
            grad = normalise_channels_backward(grad, value, p, inside, P, C)
    tl.store(out_ptr + place, grad.to(out_ptr.dtype.element_ty), mask=inside)


def _launch_diffuse(
    x: Tensor,
    ids: Tensor,
    patch: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    alpha_bar: Tensor,
    seed: Tensor,
    offset: int,
    norm_pix: int,
    dtype: torch.dtype,
    channels_first: bool,
) -> Tensor:
    cut, args = pixel_args(x, patch, mean, std, channels_first)
    dim, ids = cut.patch_dim, ids.contiguous()
    out = x.new_empty((*ids.shape, dim), dtype=dtype)
    check_kernel_dtype("dtype", out)
    tile = patch_tile(dim, whole=norm_pix != PLAIN)
    if out.numel():
        fast = out.element_size() == 2 and not interpreted()
        _diffuse_kernel[(tile.programs(ids.numel(), dim),)](
            x, ids, alpha_bar.contiguous(), seed, out, offset, ids.numel(), ids.shape[1], **args,
            P=dim, NORM=norm_pix, FAST=fast, **tile.meta,
        )  # fmt: skip
    return out


def _launch_diffuse_backward(
    grad: Tensor,
    x: Tensor,
    ids: Tensor,
    patch: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    alpha_bar: Tensor,
    norm_pix: int,
    channels_first: bool,
) -> Tensor:
    cut, args = pixel_args(x, patch, mean, std, channels_first)
    dim, ids, grad = cut.patch_dim, ids.contiguous(), grad.contiguous()
    out = torch.empty_like(grad)
    tile = patch_tile(dim, whole=norm_pix != PLAIN)
    if out.numel():
        _diffuse_backward_kernel[(tile.programs(ids.numel(), dim),)](
            grad, x, ids, alpha_bar.contiguous(), out, ids.numel(), ids.shape[1], **args,
            P=dim, NORM=norm_pix, **tile.meta,
        )  # fmt: skip
    return out


@torch.library.custom_op("maekernels::diffuse_patches", mutates_args=(), device_types=PYTHON_CPU)
def _diffuse_patches(
    x: Tensor,
    ids: Tensor,
    patch: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    alpha_bar: Tensor,
    seed: Tensor,
    offset: int,
    norm_pix: int,
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


@torch.library.custom_op("maekernels::diffuse_patches_backward", mutates_args=(), device_types=PYTHON_CPU)
def _diffuse_patches_backward(
    grad: Tensor,
    x: Tensor,
    ids: Tensor,
    patch: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    alpha_bar: Tensor,
    norm_pix: int,
    channels_first: bool,
) -> Tensor:
    """d loss / d v, [B, Q, P]; `patchify_backward` propagates it to the pixels."""
    grad = grad.contiguous()
    if norm_pix != PLAIN:
        return _reference_backward(grad, x, ids, patch, mean, std, alpha_bar, norm_pix, channels_first)
    return (alpha_bar[:, None, None].sqrt() * grad).to(grad.dtype)


@_diffuse_patches_backward.register_fake
def _(grad, x, ids, patch, mean, std, alpha_bar, norm_pix, channels_first):
    return torch.empty_like(grad, memory_format=torch.contiguous_format)


def _setup_context(ctx, inputs, output):
    x, ids, ctx.patch, ctx.mean, ctx.std, alpha_bar, _, _, ctx.norm_pix, _, ctx.channels_first = inputs
    ctx.save_for_backward(x, ids, alpha_bar)


def _backward(ctx, grad):
    x, ids, alpha_bar = ctx.saved_tensors
    grad_x = None
    if ctx.needs_input_grad[0]:
        pixels = x, ids, ctx.patch, ctx.mean, ctx.std
        values = _diffuse_patches_backward(grad, *pixels, alpha_bar, ctx.norm_pix, ctx.channels_first)
        grad_x = _patchify_backward(values, x, ids, ctx.patch, ctx.std, ctx.channels_first)
    return (grad_x, *(None,) * 10)


_diffuse_patches.register_autograd(_backward, setup_context=_setup_context)
register_cuda(_diffuse_patches, _launch_diffuse)
register_cuda(_diffuse_patches_backward, _launch_diffuse_backward)
