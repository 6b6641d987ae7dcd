"""Scatter tokens to their positions in a sequence, and fill the rest.

    out[b, ids[b, k], :] = values[b, k, :]        all other rows: fill

Shapes: values [B, K, D], ids [B, K], fill a number or [D], out [B, N, D]. ids are unique within a sample, so a small
kernel can invert them (token -> k or -1), and the large one writes every row of the result once, in order.

Cost, with s bytes per element:

    forward    reads B K D s, writes B N D s (and 8 B N for the inverse)
    backward   values: a gather, B K D s read and written;  fill: reads the B (N-K) D s of its rows, as many additions

Memory-bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from maekernels._checks import check_backend, check_float, check_ids, check_range, describe, refuse, run_op
from maekernels._eager import differentiable, direct
from maekernels._native import PYTHON_CPU
from maekernels._tokens import flat_rows, launch_inverse
from maekernels._triton import cdiv, jit, register_cuda, row_tile
from maekernels.gather_tokens import gather

if TYPE_CHECKING:
    import triton.language as tl


def scatter_tokens(
    values: Tensor, ids: Tensor, length: int, fill: float | Tensor = 0.0, *, backend: str | None = None
) -> Tensor:
    """Scatter the rows of each sample into a sequence of `length`. Differentiable in `values` and in a tensor `fill`.

    Args:
        values: float [B, K, D], any strides.
        ids: int32 or int64 [B, K], unique within a sample, in [0, length).
        fill: value of the other rows: a number, or a float tensor [D] (a mask token).
        backend: for tests and benchmarks only: 'torch', 'native' or 'triton'.

    Returns:
        [B, length, D] in the dtype of `values`.
    """
    check_float("values", values, "[B, K, D]")
    check_ids(ids, values.shape[0], values.device)
    if ids.shape[1] != values.shape[1]:
        refuse("ids", describe(ids), f"[B, K] of values={describe(values)}")
    if length < ids.shape[1]:
        refuse("length", length, f"at least the K={ids.shape[1]} of ids")
    check_backend(backend, values.device)
    row = None
    if isinstance(fill, Tensor):
        ok = fill.shape == values.shape[2:] and fill.is_floating_point() and fill.device == values.device
        if not ok:
            refuse("fill", describe(fill), f"a number or a float tensor [{values.shape[2]}] on {values.device}")
        row, fill = fill.to(values.dtype), 0.0
    op = _reference if backend == "torch" else scatter
    return run_op(op, values, ids, length, float(fill), row)


def _reference(values: Tensor, ids: Tensor, length: int, number: float, row: Tensor | None) -> Tensor:
    batch, _, dim = values.shape
    if row is None:
        out = values.new_full((batch * length, dim), number)
    else:
        out = row.expand(batch * length, dim).contiguous()
    return out.index_copy(0, flat_rows(ids, length), values.flatten(0, 1)).view(batch, length, dim)


@jit
def _scatter_kernel(
    values_ptr,
    inverse_ptr,
    row_ptr,
    out_ptr,
    rows,
    N,
    number,
    sb,
    sk,
    D: tl.constexpr,
    HAS_ROW: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """A tile of ROWS rows of the result by CHUNK of D: every element is written once."""
    CHUNKS: tl.constexpr = (D + CHUNK - 1) // CHUNK
    pid = tl.program_id(0)
    row = pid // CHUNKS * ROWS + tl.arange(0, ROWS)
    d = pid % CHUNKS * CHUNK + tl.arange(0, CHUNK)
    place = tl.load(inverse_ptr + row, mask=row < rows, other=-1)
    inside = (row < rows)[:, None] & (d < D)[None, :]
    held = inside & (place >= 0)[:, None]
    source = (row // N).to(tl.int64) * sb + place.to(tl.int64) * sk
    value = tl.load(values_ptr + source[:, None] + d[None, :], mask=held, other=0.0)
    if HAS_ROW:
        fill = tl.load(row_ptr + d, mask=d < D, other=0.0)[None, :]
    else:
        fill = tl.full([1, 1], number, out_ptr.dtype.element_ty)
    out = row.to(tl.int64)[:, None] * D + d[None, :]
    tl.store(out_ptr + out, tl.where(held, value, fill), mask=inside)


@jit
def _fill_grad_kernel(
    grad_ptr, inverse_ptr, partial_ptr, rows, N, sb, sn, D: tl.constexpr, PART, ROWS: tl.constexpr, CHUNK: tl.constexpr
):
    """Sum of the gradient over those of PART rows that hold the fill, for CHUNK of D."""
    d = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    total = tl.zeros([ROWS, CHUNK], partial_ptr.dtype.element_ty)
    for first in range(0, PART, ROWS):
        row = tl.program_id(0) * PART + first + tl.arange(0, ROWS)
        place = tl.load(inverse_ptr + row, mask=row < rows, other=0)
        held = (place < 0)[:, None] & (d < D)[None, :]
        source = (row // N).to(tl.int64) * sb + (row % N).to(tl.int64) * sn
        total += tl.load(grad_ptr + source[:, None] + d[None, :], mask=held, other=0.0).to(total.dtype)
    tl.store(partial_ptr + tl.program_id(0) * D + d, tl.sum(total, axis=0), mask=d < D)


def _launch_scatter(values: Tensor, ids: Tensor, length: int, number: float, row: Tensor | None) -> Tensor:
    batch, _, dim = values.shape
    values = values if values.stride(2) == 1 else values.contiguous()
    out = values.new_empty((batch, length, dim))
    tile = row_tile(dim, 8192 // out.element_size())
    if row is None and values.dtype == torch.float64:
        row = values.new_full((dim,), number)  # Triton passes Python numbers as float32
    if out.numel():
        inverse, (sb, sk, _) = launch_inverse(ids, length), values.stride()
        fill = values if row is None else row.contiguous()
        _scatter_kernel[(tile.programs(batch * length, dim),)](
            values, inverse, fill, out, batch * length, length, number, sb, sk,
            D=dim, HAS_ROW=row is not None, **tile.meta,
        )  # fmt: skip
    return out


def _launch_fill_grad(grad: Tensor, ids: Tensor) -> Tensor:
    batch, length, dim = grad.shape
    grad = grad if grad.stride(2) == 1 else grad.contiguous()
    tile = row_tile(dim, 8192 // grad.element_size())
    # Enough parts to fill a GPU, each long enough that summing the parts is cheap.
    part = tile.rows * max(1, cdiv(batch * length, tile.rows * 512))
    parts = cdiv(batch * length, part)
    partial = grad.new_empty((parts, dim), dtype=torch.promote_types(grad.dtype, torch.float32))
    if partial.numel():
        inverse, (sb, sn, _) = launch_inverse(ids, length), grad.stride()
        _fill_grad_kernel[(parts, cdiv(dim, tile.chunk))](
            grad, inverse, partial, batch * length, length, sb, sn, D=dim, PART=part, **tile.meta
        )
    return partial.sum(0).to(grad.dtype)


@torch.library.custom_op("maekernels::scatter_tokens", mutates_args=(), device_types=PYTHON_CPU)
def _scatter_tokens(values: Tensor, ids: Tensor, length: int, number: float, row: Tensor | None) -> Tensor:
    check_range(ids, length)
    return _reference(values, ids, length, number, row)


@_scatter_tokens.register_fake
def _(values, ids, length, number, row):
    return values.new_empty((values.shape[0], length, values.shape[2]))


@torch.library.custom_op("maekernels::scatter_tokens_fill_grad", mutates_args=(), device_types=PYTHON_CPU)
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
    grad_values = gather(grad, ids) if ctx.needs_input_grad[0] else None
    grad_row = fill_grad(grad, ids) if ctx.needs_input_grad[4] else None
    return grad_values, None, None, None, grad_row


fill_grad = direct(_fill_grad)
scatter = differentiable(_scatter_tokens, _backward, _setup_context)
register_cuda(_scatter_tokens, _launch_scatter)
register_cuda(_fill_grad, _launch_fill_grad)
