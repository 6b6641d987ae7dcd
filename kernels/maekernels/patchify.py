"""Selected patches of a video, image or spectrogram, normalised, straight from the stored pixels.

    out[b, k, p] = (x[b, pixel p of patch ids[b, k]] - mean[c]) / std[c]        uint8 x: x / 255 first

Shapes: x [B, T, H, W, C] | [B, H, W, C] | [B, F, M], ids [B, K], out [B, K, P], P = `pt*ph*pw*C` ordered (t, h, w, c).
Other implementations convert the whole clip to float, cut it into N patches and then gather K of them.

Cost, with s and o bytes per element of x and of out:

    forward    reads B K P s, writes B K P o;  2 B K P FLOPs
    backward   reads B K P o, writes B N P s (every pixel once, 0 where no patch was selected);  B K P FLOPs

Memory-bound. A row of a 16-pixel RGB patch is 48 bytes, one and a half 32-byte sectors: neighbouring patches that are
not selected add up to a third to the bytes counted here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from maekernels._checks import FLOATS, check, check_backend, check_kernel_dtype, check_range, run_op
from maekernels._eager import differentiable, direct
from maekernels._native import PYTHON_CPU
from maekernels._pixels import (
    as_video,
    check_pixels,
    gather_patches,
    load_patches,
    of_channel,
    patch_offset,
    patch_origin,
    patch_tile,
    pixel_args,
    sample_chunks,
    scale_and_shift,
    scatter_patches,
)
from maekernels._tokens import launch_inverse
from maekernels._triton import jit, register_cuda

if TYPE_CHECKING:
    import triton.language as tl


def patchify(
    x: Tensor,
    ids: Tensor,
    patch: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    *,
    channels_first: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Gather the patches `ids` of `x`, normalised. Differentiable in a float `x`.

    Args:
        x: uint8 or float; video [B, T, H, W, C] for 3 patch sizes, image [B, H, W, C] or spectrogram [B, F, M] for 2;
            with channels_first [B, C, T, H, W] or [B, C, H, W]. Any strides; 1 to 4 channels.
        ids: int32 or int64 [B, K] in [0, N); unique within a sample if `x` needs its gradient.
        patch: (time, height, width), (height, width) or (frames, mels); must divide the sizes.
        mean, std: one value per channel (spectrogram: a single value).
        dtype: of the result.
        backend: for tests and benchmarks only: 'torch', 'native' or 'triton'.

    Returns:
        [B, K, P] in `dtype`.
    """
    check_pixels(x, ids, patch, mean, std, channels_first)
    check(dtype in FLOATS, "dtype", dtype, "a float type")
    check_backend(backend, x.device)
    op = _reference if backend == "torch" else _patches
    return run_op(op, x, ids, list(patch), list(mean), list(std), dtype, channels_first)


def _reference(
    x: Tensor,
    ids: Tensor,
    patch: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    channels_first: bool,
) -> Tensor:
    return gather_patches(x, ids, patch, mean, std, channels_first).to(dtype)


def _reference_backward(
    grad: Tensor, x: Tensor, ids: Tensor, patch: Sequence[int], std: Sequence[float], channels_first: bool
) -> Tensor:
    """d loss / d x: the gradient of each selected pixel divided by its std, 0 elsewhere."""
    scale = grad.new_tensor(scale_and_shift(x, std, std)[0], dtype=torch.promote_types(x.dtype, torch.float32))
    values = (grad.unflatten(2, (-1, len(std))) * scale).flatten(2)
    return scatter_patches(torch.zeros_like(x), values.to(x.dtype), ids, patch, channels_first)


@jit
def _patchify_kernel(
    x_ptr, ids_ptr, out_ptr, rows, K, scale, shift, sb, st, sh, sw, sc,
    GT: tl.constexpr, GH: tl.constexpr, GW: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    C: tl.constexpr, PACKED: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A tile of ROWS selected patches by CHUNK of their P elements."""
    CHUNKS: tl.constexpr = (P + CHUNK - 1) // CHUNK
    row = tl.program_id(0) // CHUNKS * ROWS + tl.arange(0, ROWS)
    p = tl.program_id(0) % CHUNKS * CHUNK + tl.arange(0, CHUNK)
    inside = (row < rows)[:, None] & (p < P)[None, :]
    value, _ = load_patches(
        x_ptr, ids_ptr, row, rows, p, inside, K, scale, shift, sb, st, sh, sw, sc,
        GT, GH, GW, PT, PH, PW, C, PACKED, False,
    )  # fmt: skip
    out = row.to(tl.int64)[:, None] * P + p[None, :]
    tl.store(out_ptr + out, value.to(out_ptr.dtype.element_ty), mask=inside)


@jit
def _patchify_backward_kernel(
    grad_ptr, inverse_ptr, out_ptr, rows, K, scale, shift, sb, st, sh, sw, sc,
    GT: tl.constexpr, GH: tl.constexpr, GW: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    C: tl.constexpr, PACKED: tl.constexpr, N: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A tile of ROWS patches of the whole grid: every pixel is written once, selected or not."""
    CHUNKS: tl.constexpr = (P + CHUNK - 1) // CHUNK
    row = tl.program_id(0) // CHUNKS * ROWS + tl.arange(0, ROWS)
    p = tl.program_id(0) % CHUNKS * CHUNK + tl.arange(0, CHUNK)
    batch = row // N
    place = tl.load(inverse_ptr + row, mask=row < rows, other=-1)
    inside = (row < rows)[:, None] & (p < P)[None, :]
    source = (batch.to(tl.int64) * K + place)[:, None] * P + p[None, :]
    grad = tl.load(grad_ptr + source, mask=inside & (place >= 0)[:, None], other=0.0).to(tl.float32)
    origin = patch_origin(batch, row % N, sb, st, sh, sw, GH, GW, PT, PH, PW)
    offset = origin[:, None] + patch_offset(p, st, sh, sw, sc, PH, PW, C, PACKED)[None, :]
    value = grad * of_channel(scale, p, C)[None, :]
    tl.store(out_ptr + offset, value.to(out_ptr.dtype.element_ty), mask=inside)


def _launch_patchify(
    x: Tensor,
    ids: Tensor,
    patch: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    channels_first: bool,
) -> Tensor:
    cut, args = pixel_args(x, patch, mean, std, channels_first)
    dim, ids = cut.patch_dim, ids.contiguous()
    out = x.new_empty((*ids.shape, dim), dtype=dtype)
    check_kernel_dtype("dtype", out)
    tile = patch_tile(dim, whole=False)
    if out.numel():
        grid = (tile.programs(ids.numel(), dim),)
        _patchify_kernel[grid](x, ids, out, ids.numel(), ids.shape[1], **args, P=dim, **tile.meta)
    return out


def _launch_patchify_backward(
    grad: Tensor, x: Tensor, ids: Tensor, patch: Sequence[int], std: Sequence[float], channels_first: bool
) -> Tensor:
    out = torch.empty_like(x)
    cut, args = pixel_args(out, patch, std, std, channels_first)
    dim, total = cut.patch_dim, len(x) * cut.tokens
    tile = patch_tile(dim, whole=False)
    if out.numel():
        inverse, grad = launch_inverse(ids, cut.tokens), grad.contiguous()
        _patchify_backward_kernel[(tile.programs(total, dim),)](
            grad, inverse, out, total, ids.shape[1], **args, N=cut.tokens, P=dim, **tile.meta
        )
    return out


@torch.library.custom_op("maekernels::patchify", mutates_args=(), device_types=PYTHON_CPU)
def _patchify(
    x: Tensor,
    ids: Tensor,
    patch: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    channels_first: bool,
) -> Tensor:
    grid = as_video(x, patch, channels_first)[1]
    check_range(ids, grid.tokens)
    out = x.new_empty((*ids.shape, grid.patch_dim), dtype=dtype)
    for part in sample_chunks(len(x), ids.shape[1] * grid.patch_dim):
        out[part] = _reference(x[part], ids[part], patch, mean, std, dtype, channels_first)
    return out


@_patchify.register_fake
def _(x, ids, patch, mean, std, dtype, channels_first):
    return x.new_empty((*ids.shape, as_video(x, patch, channels_first)[1].patch_dim), dtype=dtype)


@torch.library.custom_op("maekernels::patchify_backward", mutates_args=(), device_types=PYTHON_CPU)
def _patchify_backward(
    grad: Tensor, x: Tensor, ids: Tensor, patch: Sequence[int], std: Sequence[float], channels_first: bool
) -> Tensor:
    return _reference_backward(grad, x, ids, patch, std, channels_first)


@_patchify_backward.register_fake
def _(grad, x, ids, patch, std, channels_first):
    return torch.empty_like(x)


def _setup_context(ctx, inputs, output):
    x, ids, ctx.patch, _, ctx.std, _, ctx.channels_first = inputs
    ctx.save_for_backward(x, ids)


def _backward(ctx, grad):
    x, ids = ctx.saved_tensors
    grad_x = None
    if ctx.needs_input_grad[0]:
        grad_x = _gradient(grad, x, ids, ctx.patch, ctx.std, ctx.channels_first)
    return grad_x, None, None, None, None, None, None


_gradient = direct(_patchify_backward)
_patches = differentiable(_patchify, _backward, _setup_context)
register_cuda(_patchify, _launch_patchify)
register_cuda(_patchify_backward, _launch_patchify_backward)
