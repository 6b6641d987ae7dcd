"""Mean squared error of predicted patches against the pixels themselves.

    v    = the normalised patch ids[b, q] of x[b]                        (as `patchify`)
    norm_pix:  v = (v - mean(v)) / sqrt(var(v) + 1e-6)                   over the P elements, var unbiased (MAE)
    loss = mean over b, q, p of (pred[b, q, p] - v[b, q, p])^2,     d loss / d pred = 2 (pred - v) / (B Q P)

Shapes: pred [B, Q, P], x as in `patchify`, ids [B, Q], loss a float32 scalar. The target is read from the stored
pixels and never kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maekernels._checks import check, check_backend, check_float, check_range, describe
from maekernels._pixels import as_video, check_pixels, gather_patches, normalise_patches, sample_chunks


def masked_mse(
    pred: Tensor,
    x: Tensor,
    ids: Tensor,
    patch: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    norm_pix: bool = True,
    *,
    channels_first: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Mean squared error over all elements of the patches `ids`. Differentiable in `pred`; the target is data.

    Args:
        pred: float [B, Q, P], P ordered (t, h, w, c).
        x, ids, patch, mean, std, channels_first: as in `patchify`; ids [B, Q].
        norm_pix: normalise each target patch by its own mean and standard deviation.
        backend: for tests and benchmarks only: 'torch' or 'triton'.

    Returns:
        float32 scalar (float64 for float64 `pred`); nan when there are no elements, as torch's mean.
    """
    grid = check_pixels(x, ids, patch, mean, std, channels_first)
    check_float("pred", pred, "[B, Q, P]")
    ok = pred.shape == (*ids.shape, grid.patch_dim) and pred.device == x.device
    check(ok, "pred", describe(pred), f"[B, Q, P]={[*ids.shape, grid.patch_dim]} on {x.device}, from ids and patch")
    check_backend(backend, x.device)
    args = (ids, list(patch), list(mean), list(std), norm_pix, channels_first)
    if backend == "torch":
        return _reference(pred, x.detach(), *args)
    return _masked_mse(pred, x.detach(), *args, save=pred.requires_grad and torch.is_grad_enabled())[0]


def _difference(
    pred: Tensor,
    x: Tensor,
    ids: Tensor,
    patch: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    norm_pix: bool,
    channels_first: bool,
) -> Tensor:
    """Target minus prediction, [B, Q, P]."""
    target = gather_patches(x, ids, patch, mean, std, channels_first)
    if norm_pix:
        target = normalise_patches(target)
    return target.to(torch.promote_types(pred.dtype, torch.float32)).sub_(pred)


def _reference(
    pred: Tensor,
    x: Tensor,
    ids: Tensor,
    patch: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    norm_pix: bool,
    channels_first: bool,
) -> Tensor:
    return _difference(pred, x, ids, patch, mean, std, norm_pix, channels_first).square().mean()


@torch.library.custom_op("maekernels::masked_mse", mutates_args=(), device_types="cpu")
def _masked_mse(
    pred: Tensor,
    x: Tensor,
    ids: Tensor,
    patch: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    norm_pix: bool,
    channels_first: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """The loss, and with `save` its gradient, else an empty tensor."""
    check_range(ids, as_video(x, patch, channels_first)[1].tokens)
    total = pred.new_zeros((), dtype=torch.float64)
    grad = torch.empty_like(pred, memory_format=torch.contiguous_format) if save else pred.new_empty(0)
    for part in sample_chunks(len(pred), pred[:1].numel()):
        args = (pred[part], x[part], ids[part], patch, mean, std, norm_pix, channels_first)
        difference = _difference(*args)
        flat = difference.view(-1)
        total += torch.dot(flat, flat)
        if save:
            torch.mul(difference, -2.0 / pred.numel(), out=grad[part])
    return (total / pred.numel()).to(torch.promote_types(pred.dtype, torch.float32)), grad


@_masked_mse.register_fake
def _(pred, x, ids, patch, mean, std, norm_pix, channels_first, save):
    loss = pred.new_empty((), dtype=torch.promote_types(pred.dtype, torch.float32))
    return loss, torch.empty_like(pred, memory_format=torch.contiguous_format) if save else pred.new_empty(0)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(output[1])


def _backward(ctx, grad_loss, _):
    (grad,) = ctx.saved_tensors
    return (grad * grad_loss.to(grad.dtype), *(None,) * 8)


_masked_mse.register_autograd(_backward, setup_context=_setup_context)
