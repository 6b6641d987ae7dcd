"""Chosen tokens of a sequence: out[b, k, :] = x[b, ids[b, k], :].

Shapes: x [B, N, D], ids [B, K], out [B, K, D]. ids are unique within a sample, so the gradient is a plain scatter:
every row of it is written once, without atomics.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maekernels._checks import check_backend, check_float, check_ids, check_range


def gather_tokens(x: Tensor, ids: Tensor, *, backend: str | None = None) -> Tensor:
    """Gather rows of each sample. Differentiable in `x`.

    Args:
        x: float [B, N, D], any strides.
        ids: int32 or int64 [B, K], unique within a sample, in [0, N).
        backend: for tests and benchmarks only: 'torch' or 'triton'.

    Returns:
        [B, K, D] in the dtype of `x`.
    """
    check_float("x", x, "[B, N, D]")
    check_ids(ids, x.shape[0], x.device)
    check_backend(backend, x.device)
    return (_reference if backend == "torch" else _gather_tokens)(x, ids)


def flat_rows(ids: Tensor, length: int) -> Tensor:
    """Row numbers in [B * N, D], int64 [B * K]."""
    return (torch.arange(ids.shape[0], device=ids.device)[:, None] * length + ids).flatten()


def _reference(x: Tensor, ids: Tensor) -> Tensor:
    return x.flatten(0, 1).index_select(0, flat_rows(ids, x.shape[1])).view(*ids.shape, x.shape[2])


@torch.library.custom_op("maekernels::gather_tokens", mutates_args=(), device_types="cpu")
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
    from maekernels.scatter_tokens import _scatter_tokens

    return _scatter_tokens(grad, ctx.saved_tensors[0], ctx.length, 0.0, None), None


_gather_tokens.register_autograd(_backward, setup_context=_setup_context)
