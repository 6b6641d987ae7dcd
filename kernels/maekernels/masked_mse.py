"""Mean squared error of predicted patches against the stored pixels.

    v    = the normalised patch ids[b, q] of x[b]                        (as `patchify`)
    norm_pix:  v = (v - mean(v)) / sqrt(var(v) + 1e-6)                   over the P elements, var unbiased (MAE)
    "channel": v = (v - mean(v)) / (sqrt(var(v)) + 1e-6)                 over each channel of the patch (VideoMAE)
    loss = mean over b, q, p of (pred[b, q, p] - v[b, q, p])^2,     d loss / d pred = 2 (pred - v) / (B Q P)

Shapes: pred [B, Q, P], x as in `patchify`, ids [B, Q], loss a float32 scalar. The target is computed from the stored
pixels in the forward pass and again in the backward pass, and is never stored.

Cost, with s and o bytes per element of x and of pred:

    forward    reads B Q P (s + o);                       10 B Q P FLOPs (5 without norm_pix)
    backward   reads B Q P (s + o), writes B Q P o;       11 B Q P FLOPs (5)

Memory-bound. The gradient is computed in the backward pass: storing it in the forward pass would write it there, and
then read and write it again to multiply it by the incoming gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from maekernels._checks import (
    check_backend,
    check_float,
    check_kernel_dtype,
    check_range,
    describe,
    refuse,
    run_op,
)
from maekernels._eager import differentiable, direct
from maekernels._native import PYTHON_CPU
from maekernels._pixels import (
    PLAIN,
    NormPix,
    as_video,
    check_pixels,
    gather_patches,
    load_patches,
    norm_mode,
    normalise_channels,
    normalise_patches,
    normalise_rows,
    patch_tile,
    pixel_args,
    sample_chunks,
)
from maekernels._triton import jit, register_cuda

if TYPE_CHECKING:
    import triton.language as tl


def masked_mse(
    pred: Tensor,
    x: Tensor,
    ids: Tensor,
    patch: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    norm_pix: NormPix = True,
    *,
    channels_first: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Mean squared error over all elements of the patches `ids`. Differentiable in `pred`, not in the target.

    Args:
        pred: float [B, Q, P], P ordered (t, h, w, c).
        x, ids, patch, mean, std, channels_first: as in `patchify`; ids [B, Q]. No gradient flows to `x`.
        norm_pix: normalise each target patch by its own mean and standard deviation; 'channel': each of its channels
            separately, as VideoMAE does on pixels in [0, 1] (mean 0 and std 1 for uint8).
        backend: for tests and benchmarks only: 'torch', 'native' or 'triton'.

    Returns:
        float32 scalar (float64 for float64 `pred`); nan if there are no elements, like torch's mean.
    """
    grid = check_pixels(x, ids, patch, mean, std, channels_first, norm_pix)
    check_float("pred", pred, "[B, Q, P]")
    ok = pred.shape == (*ids.shape, grid.patch_dim) and pred.device == x.device
    if not ok:
        refuse("pred", describe(pred), f"[B, Q, P]={[*ids.shape, grid.patch_dim]} on {x.device}, from ids and patch")
    check_backend(backend, x.device)
    op = _reference if backend == "torch" else _loss
    mode = norm_mode(norm_pix)
    return run_op(op, pred, x.detach(), ids, list(patch), list(mean), list(std), mode, channels_first)


def _difference(
    pred: Tensor,
    x: Tensor,
    ids: Tensor,
    patch: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    norm_pix: int,
    channels_first: bool,
) -> Tensor:
    """Prediction minus target, float32 [B, Q, P]."""
    target = gather_patches(x, ids, patch, mean, std, channels_first)
    if norm_pix != PLAIN:
        target = normalise_patches(target, norm_pix, len(mean)).values
    return pred - target.to(torch.promote_types(pred.dtype, torch.float32))


def _reference(
    pred: Tensor,
    x: Tensor,
    ids: Tensor,
    patch: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    norm_pix: int,
    channels_first: bool,
) -> Tensor:
    return _difference(pred, x, ids, patch, mean, std, norm_pix, channels_first).square().mean()


@jit
def _masked_mse_kernel(
    pred_ptr, x_ptr, ids_ptr, grad_loss_ptr, out_ptr, factor, rows, K, scale, shift, sb, st, sh, sw, sc,
    GT: tl.constexpr, GH: tl.constexpr, GW: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    C: tl.constexpr, PACKED: tl.constexpr, P: tl.constexpr, NORM: tl.constexpr, BACKWARD: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A tile of ROWS patches by CHUNK of their P elements; with NORM, CHUNK covers all P.

    Forward: out is the tile's contribution to the loss, [programs]. Backward: out is the gradient, [rows, P].
    """
    CHUNKS: tl.constexpr = (P + CHUNK - 1) // CHUNK
    row = tl.program_id(0) // CHUNKS * ROWS + tl.arange(0, ROWS)
    p = tl.program_id(0) % CHUNKS * CHUNK + tl.arange(0, CHUNK)
    inside = (row < rows)[:, None] & (p < P)[None, :]
    target, _ = load_patches(
        x_ptr, ids_ptr, row, rows, p, inside, K, scale, shift, sb, st, sh, sw, sc,
        GT, GH, GW, PT, PH, PW, C, PACKED, False,
    )  # fmt: skip
    if NORM == 1:
        target, _ = normalise_rows(target, inside, P)
    elif NORM == 2:
        target = normalise_channels(target, p, inside, P, C)
    place = row.to(tl.int64)[:, None] * P + p[None, :]
    pred = tl.load(pred_ptr + place, mask=inside, other=0.0).to(tl.float32)
    difference = tl.where(inside, pred - target, 0.0)
    if BACKWARD:
        grad = difference * (factor * tl.load(grad_loss_ptr))
        tl.store(out_ptr + place, grad.to(out_ptr.dtype.element_ty), mask=inside)
    else:
        tl.store(out_ptr + tl.program_id(0), factor * tl.sum(tl.sum(difference * difference, axis=1), axis=0))


def _launch_masked_mse(
    pred: Tensor,
    x: Tensor,
    ids: Tensor,
    patch: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    norm_pix: int,
    channels_first: bool,
) -> Tensor:
    check_kernel_dtype("pred", pred)
    if not pred.numel():
        return pred.new_full((), float("nan"), dtype=torch.float32)
    tile = patch_tile(pred.shape[2], whole=norm_pix != PLAIN)
    share = pred.new_empty(tile.programs(ids.numel(), pred.shape[2]), dtype=torch.float32)
    args = (pred, x, ids, patch, mean, std, norm_pix, channels_first)
    _launch_tiles(*args, pred, share, 1.0 / pred.numel(), backward=False)
    return share.sum()


def _launch_masked_mse_backward(
    grad_loss: Tensor,
    pred: Tensor,
    x: Tensor,
    ids: Tensor,
    patch: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    norm_pix: int,
    channels_first: bool,
) -> Tensor:
    args = (pred, x, ids, patch, mean, std, norm_pix, channels_first)
    out = torch.empty_like(pred, memory_format=torch.contiguous_format)
    if out.numel():
        _launch_tiles(*args, grad_loss, out, 2.0 / pred.numel(), backward=True)
    return out


def _launch_tiles(
    pred: Tensor,
    x: Tensor,
    ids: Tensor,
    patch: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    norm_pix: int,
    channels_first: bool,
    grad_loss: Tensor,
    out: Tensor,
    factor: float,
    *,
    backward: bool,
) -> None:
    cut, args = pixel_args(x, patch, mean, std, channels_first)
    tile = patch_tile(cut.patch_dim, whole=norm_pix != PLAIN)
    _masked_mse_kernel[(tile.programs(ids.numel(), cut.patch_dim),)](
        pred.contiguous(), x, ids.contiguous(), grad_loss, out, factor, ids.numel(), ids.shape[1], **args,
        P=cut.patch_dim, NORM=norm_pix, BACKWARD=backward, **tile.meta,
    )  # fmt: skip


@torch.library.custom_op("maekernels::masked_mse", mutates_args=(), device_types=PYTHON_CPU)
def _masked_mse(
    pred: Tensor,
    x: Tensor,
    ids: Tensor,
    patch: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    norm_pix: int,
    channels_first: bool,
) -> Tensor:
    check_range(ids, as_video(x, patch, channels_first)[1].tokens)
    total = pred.new_zeros((), dtype=torch.float64)
    for part in sample_chunks(len(pred), pred[:1].numel()):
        args = (pred[part], x[part], ids[part], patch, mean, std, norm_pix, channels_first)
        total += torch.linalg.vector_norm(_difference(*args), dim=-1).double().square().sum()
    return (total / pred.numel()).to(torch.promote_types(pred.dtype, torch.float32))


@_masked_mse.register_fake
def _(pred, x, ids, patch, mean, std, norm_pix, channels_first):
    return pred.new_empty((), dtype=torch.promote_types(pred.dtype, torch.float32))


@torch.library.custom_op("maekernels::masked_mse_backward", mutates_args=(), device_types=PYTHON_CPU)
def _masked_mse_backward(
    grad_loss: Tensor,
    pred: Tensor,
    x: Tensor,
    ids: Tensor,
    patch: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    norm_pix: int,
    channels_first: bool,
) -> Tensor:
    """d loss / d pred in the dtype of `pred`."""
    grad = torch.empty_like(pred, memory_format=torch.contiguous_format)
    factor = 2.0 / max(1, pred.numel()) * grad_loss
    for part in sample_chunks(len(pred), pred[:1].numel()):
        args = (pred[part], x[part], ids[part], patch, mean, std, norm_pix, channels_first)
        grad[part] = _difference(*args).mul_(factor)
    return grad


@_masked_mse_backward.register_fake
def _(grad_loss, pred, x, ids, patch, mean, std, norm_pix, channels_first):
    return torch.empty_like(pred, memory_format=torch.contiguous_format)


def _setup_context(ctx, inputs, output):
    pred, x, ids, *ctx.settings = inputs
    ctx.save_for_backward(pred, x, ids)


def _backward(ctx, grad_loss):
    return (_gradient(grad_loss, *ctx.saved_tensors, *ctx.settings), *(None,) * 7)


_gradient = direct(_masked_mse_backward)
_loss = differentiable(_masked_mse, _backward, _setup_context)
register_cuda(_masked_mse, _launch_masked_mse)
register_cuda(_masked_mse_backward, _launch_masked_mse_backward)
