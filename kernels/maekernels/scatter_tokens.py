"""Tokens put back to their places, the rest filled.

    out[b, ids[b, k], :] = values[b, k, :]        all other rows: fill

Shapes: values [B, K, D], ids [B, K], fill a number or [D], out [B, N, D]. ids are unique within a sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maekernels._checks import check, check_backend, check_float, check_ids, check_range, describe
from maekernels.gather_tokens import _gather_tokens, flat_rows


def scatter_tokens(
    values: Tensor, ids: Tensor, length: int, fill: float | Tensor = 0.0, *, backend: str | None = None
) -> Tensor:
    """Place rows of each sample in a sequence of `length`. Differentiable in `values` and in a tensor `fill`.

    Args:
        values: float [B, K, D], any strides.
        ids: int32 or int64 [B, K], unique within a sample, in [0, length).
        fill: of the other rows: a number, or a float tensor [D] (a mask token).
        backend: for tests and benchmarks only: 'torch' or 'triton'.

    Returns:
        [B, length, D] in the dtype of `values`.
    """
    check_float("values", values, "[B, K, D]")
    check_ids(ids, values.shape[0], values.device)
    check(ids.shape[1] == values.shape[1], "ids", describe(ids), f"[B, K] of values={describe(values)}")
    check(length >= ids.shape[1], "length", length, f"at least the K={ids.shape[1]} of ids")
    check_backend(backend, values.device)
    row = None
    if isinstance(fill, Tensor):
        ok = fill.shape == values.shape[2:] and fill.is_floating_point() and fill.device == values.device
        check(ok, "fill", describe(fill), f"a number or a float tensor [{values.shape[2]}] on {values.device}")
        row, fill = fill.to(values.dtype), 0.0
    return (_reference if backend == "torch" else _scatter_tokens)(values, ids, length, float(fill), row)


def _reference(values: Tensor, ids: Tensor, length: int, number: float, row: Tensor | None) -> Tensor:
    batch, _, dim = values.shape
    if row is None:
        out = values.new_full((batch * length, dim), number)
    else:
        out = row.expand(batch * length, dim).contiguous()
    return out.index_copy(0, flat_rows(ids, length), values.flatten(0, 1)).view(batch, length, dim)


@torch.library.custom_op("maekernels::scatter_tokens", mutates_args=(), device_types="cpu")
def _scatter_tokens(values: Tensor, ids: Tensor, length: int, number: float, row: Tensor | None) -> Tensor:
    check_range(ids, length)
    return _reference(values, ids, length, number, row)


@_scatter_tokens.register_fake
def _(values, ids, length, number, row):
    return values.new_empty((values.shape[0], length, values.shape[2]))


@torch.library.custom_op("maekernels::scatter_tokens_fill_grad", mutates_args=(), device_types="cpu")
def _fill_grad(grad: Tensor, ids: Tensor) -> Tensor:
    """d loss / d fill: the sum of the gradient over the rows that hold the fill. [B, N, D] -> [D]."""
    held = torch.ones(grad.shape[:2], dtype=torch.bool, device=grad.device).scatter_(1, ids.long(), False)
    total = grad[held].sum(0, dtype=torch.promote_types(grad.dtype, torch.float32))
    return total.to(grad.dtype)


@_fill_grad.register_fake
def _(grad, ids):
    return grad.new_empty(grad.shape[2])


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])


def _backward(ctx, grad):
    (ids,) = ctx.saved_tensors
    grad_values = _gather_tokens(grad, ids) if ctx.needs_input_grad[0] else None
    grad_row = _fill_grad(grad, ids) if ctx.needs_input_grad[4] else None
    return grad_values, None, None, None, grad_row


_scatter_tokens.register_autograd(_backward, setup_context=_setup_context)
