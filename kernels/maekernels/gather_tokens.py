"""Gather tokens of a sequence: out[b, k, :] = x[b, ids[b, k], :].

Shapes: x [B, N, D], ids [B, K], out [B, K, D]. ids are unique within a sample, so the gradient is a plain scatter: each
of its rows is written once, without atomics (`scatter_tokens` with a fill of 0).

Cost, with s bytes per element: forward reads and writes B K D s each, backward reads B K D s and writes B N D s; ids
add 4 B K bytes, and their inverse 8 B N in the backward pass. No FLOPs. Memory-bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from maekernels._checks import check_backend, check_float, check_ids, check_range, run_op
from maekernels._eager import differentiable, direct
from maekernels._native import PYTHON_CPU
from maekernels._tokens import flat_rows
from maekernels._triton import jit, register_cuda, row_tile

if TYPE_CHECKING:
    import triton.language as tl


def gather_tokens(x: Tensor, ids: Tensor, *, backend: str | None = None) -> Tensor:
    """Gather rows of each sample. Differentiable in `x`.

    Args:
        x: float [B, N, D], any strides.
        ids: int32 or int64 [B, K] in [0, N); unique within a sample if `x` needs its gradient.
        backend: for tests and benchmarks only: 'torch', 'native' or 'triton'.

    Returns:
        [B, K, D] in the dtype of `x`.
    """
    check_float("x", x, "[B, N, D]")
    check_ids(ids, x.shape[0], x.device)
    check_backend(backend, x.device)
    return run_op(_reference if backend == "torch" else gather, x, ids)


def _reference(x: Tensor, ids: Tensor) -> Tensor:
    return x.flatten(0, 1).index_select(0, flat_rows(ids, x.shape[1])).view(*ids.shape, x.shape[2])


@jit
def _gather_kernel(
    x_ptr, ids_ptr, out_ptr, rows, N, K, sb, sn, D: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr
):
    """A tile of ROWS selected tokens by CHUNK of D; NaN for an out-of-range id, which the CPU path refuses."""
    CHUNKS: tl.constexpr = (D + CHUNK - 1) // CHUNK
    pid = tl.program_id(0)
    row = pid // CHUNKS * ROWS + tl.arange(0, ROWS)
    d = pid % CHUNKS * CHUNK + tl.arange(0, CHUNK)
    token = tl.load(ids_ptr + row, mask=row < rows, other=0)
    inside = (row < rows)[:, None] & (d < D)[None, :]
    known = ((token >= 0) & (token < N))[:, None]
    source = (row // K).to(tl.int64) * sb + token.to(tl.int64) * sn
    value = tl.load(x_ptr + source[:, None] + d[None, :], mask=inside & known, other=float("nan"))
    tl.store(out_ptr + row.to(tl.int64)[:, None] * D + d[None, :], value, mask=inside)


def _launch_gather(x: Tensor, ids: Tensor) -> Tensor:
    dim = x.shape[2]
    x = x if x.stride(2) == 1 else x.contiguous()
    ids = ids.contiguous()
    out = x.new_empty((*ids.shape, dim))
    tile = row_tile(dim, 8192 // x.element_size())
    if out.numel():
        sb, sn, _ = x.stride()
        grid = (tile.programs(ids.numel(), dim),)
        _gather_kernel[grid](x, ids, out, ids.numel(), x.shape[1], ids.shape[1], sb, sn, D=dim, **tile.meta)
    return out


@torch.library.custom_op("maekernels::gather_tokens", mutates_args=(), device_types=PYTHON_CPU)
def _gather_tokens(x: Tensor, ids: Tensor) -> Tensor:
    check_range(ids, x.shape[1])
    return _reference(x, ids)


@_gather_tokens.register_fake
def _(x, ids):
    return x.new_empty((*ids.shape, x.shape[2]))


def _setup_context(ctx, inputs, output):
    x, ids = inputs
    ctx.length = x.shape[1]
    ctx.save_for_backward(ids)


def _backward(ctx, grad):
    # Each op is the other's gradient: called by its registered name, since their files cannot import each other.
    scatter = direct(torch.ops.maekernels.scatter_tokens.default)
    return scatter(grad, ctx.saved_tensors[0], ctx.length, 0.0, None), None


gather = differentiable(_gather_tokens, _backward, _setup_context)
register_cuda(_gather_tokens, _launch_gather)
