"""Chosen patches of a video, image or spectrogram, normalised, straight from its stored pixels.

    out[b, k, p] = (x[b, pixel p of patch ids[b, k]] - mean[c]) / std[c]        uint8 x: x / 255 first

Shapes: x [B, T, H, W, C] | [B, H, W, C] | [B, F, M], ids [B, K], out [B, K, P], P = pt*ph*pw*C ordered (t, h, w, c).
Peers convert the whole clip to float, cut it into N patches and then gather K of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maekernels._checks import FLOATS, check, check_backend, check_range
from maekernels._pixels import as_video, check_pixels, gather_patches, sample_chunks, scale_and_shift


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
            with channels_first [B, C, T, H, W] or [B, C, H, W]. Any strides.
        ids: int32 or int64 [B, K], unique within a sample, in [0, N).
        patch: (time, height, width), (height, width) or (frames, mels); divides the sizes.
        mean, std: for each channel (spectrogram: one value).
        dtype: of the result.
        backend: for tests and benchmarks only: 'torch' or 'triton'.

    Returns:
        [B, K, P] in `dtype`.
    """
    check_pixels(x, ids, patch, mean, std, channels_first)
    check(dtype in FLOATS, "dtype", dtype, "a float type")
    check_backend(backend, x.device)
    op = _reference if backend == "torch" else _patchify
    return op(x, ids, list(patch), list(mean), list(std), dtype, channels_first)


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


@torch.library.custom_op("maekernels::patchify", mutates_args=(), device_types="cpu")
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


@torch.library.custom_op("maekernels::patchify_backward", mutates_args=(), device_types="cpu")
def _patchify_backward(
    grad: Tensor, x: Tensor, ids: Tensor, patch: Sequence[int], std: Sequence[float], channels_first: bool
) -> Tensor:
    """d loss / d x: the gradient of each chosen pixel over its std, 0 elsewhere."""
    grad_x = torch.zeros_like(x)
    video, g = as_video(grad_x, patch, channels_first)
    scale = torch.tensor(scale_and_shift(x, std, std)[0], dtype=torch.promote_types(x.dtype, torch.float32))
    values = grad.to(scale.dtype).unflatten(2, (g.pt, g.ph, g.pw, g.channels)).mul(scale).to(x.dtype)
    patches = video.unflatten(3, (g.w, g.pw)).unflatten(2, (g.h, g.ph)).unflatten(1, (g.t, g.pt))
    patches = patches.permute(0, 1, 3, 5, 2, 4, 6, 7)
    batch, token = torch.arange(ids.shape[0], device=ids.device)[:, None], ids.long()
    patches[batch, token // (g.h * g.w), token // g.w % g.h, token % g.w] = values
    return grad_x


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
        grad_x = _patchify_backward(grad, x, ids, ctx.patch, ctx.std, ctx.channels_first)
    return grad_x, None, None, None, None, None, None


_patchify.register_autograd(_backward, setup_context=_setup_context)
