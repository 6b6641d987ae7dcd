"""Symmetric InfoNCE between paired rows (van den Oord et al. 2018; CLIP), over all processes.

    s_ij = <a_i / |a_i|, b_j / |b_j|> / temperature
    loss = 0.5 mean_i (logsumexp_j s_ij - s_ii) + 0.5 mean_i (logsumexp_j s_ji - s_ii)

Shapes: a, b [B, D]. When torch.distributed runs with more than one rank, i counts the local rows and j the rows of
all ranks: the mean of the losses over ranks is the loss of the whole batch, and gradients averaged over ranks equal
those of one process.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from maekernels._checks import check, check_backend, check_float, describe


def info_nce(a: Tensor, b: Tensor, temperature: float, *, backend: str | None = None) -> Tensor:
    """Contrast the rows of `a` and `b`, pair i against all others. Differentiable in both.

    Args:
        a, b: float [B, D], any norm; with several ranks the same B on each.
        temperature: positive.
        backend: for tests and benchmarks only: 'torch' or 'triton'.

    Returns:
        float32 scalar (float64 for float64 rows).
    """
    check_float("a", a, "[B, D]")
    check_float("b", b, "[B, D]")
    check(a.shape == b.shape and a.device == b.device, "b", describe(b), f"in the shape and device of a={describe(a)}")
    check(len(a) > 0, "a", describe(a), "at least one row")
    check(temperature > 0, "temperature", temperature, "positive")
    check_backend(backend, a.device)
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    with torch.autocast(a.device.type, enabled=False):
        a, b = F.normalize(a.to(dtype), dim=1), F.normalize(b.to(dtype), dim=1)
        all_a, all_b, first = a, b, 0
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            all_a, all_b, first = _AllRows.apply(a), _AllRows.apply(b), dist.get_rank() * len(a)
        return _reference(a, b, all_a, all_b, first, temperature)


def _reference(a: Tensor, b: Tensor, all_a: Tensor, all_b: Tensor, first: int, temperature: float) -> Tensor:
    """The loss from unit rows: local a, b [B, D] and those of all ranks [W * B, D], of which `first` is local."""
    target = torch.arange(first, first + len(a), device=a.device)
    a_to_b, b_to_a = a @ all_b.T / temperature, b @ all_a.T / temperature
    return 0.5 * (F.cross_entropy(a_to_b, target) + F.cross_entropy(b_to_a, target))


class _AllRows(torch.autograd.Function):
    """The rows of every rank, in rank order; a rank's gradient is the sum over all ranks' losses."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        out = x.new_empty((dist.get_world_size() * len(x), *x.shape[1:]))
        dist.all_gather_into_tensor(out, x.contiguous())
        ctx.rows = len(x)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        first = dist.get_rank() * ctx.rows
        return grad[first : first + ctx.rows]
