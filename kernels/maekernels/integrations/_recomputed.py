"""Attention in half precision on a CPU by matrix products; its weights are recomputed in the backward pass.

    forward    W = softmax(q k^T / sqrt(D)), out = W v                  saves q, k, v
    backward   W again;  dv = W^T dout,  dS = softmax'(W, dout v^T),  dq = dS k / sqrt(D),  dk = dS^T q / sqrt(D)

torch's fused backward pass takes several times as long there (see `attention`), and `attention` saves W, N M H elements
for each sample and layer: in a model with many layers, that is more memory than the rest of the patch saves.
The scores are rounded to half precision before the softmax, where the fused forward keeps float32: with large scores,
the result is less accurate (docs/integrations.md has numbers).
Shapes: q [B, H, N, D], k and v [B, H, M, D]. FLOPs: 4 N M H D forward, 10 N M H D backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maekernels._eager import recorded
from maekernels.attention import _HALF, _SMALL_WEIGHTS

FEW_WEIGHTS = 2**12
"""Weights of the whole batch below which one fused call costs less than five products (one core, AVX512-BF16)."""


def wins(q: Tensor, k: Tensor) -> bool:
    """Whether this is the cheaper path, by device, dtype and shape."""
    if q.device.type != "cpu" or q.dtype not in _HALF:
        return False
    weights = q.shape[1] * q.shape[2] * k.shape[2]
    return weights <= _SMALL_WEIGHTS and len(q) * weights >= FEW_WEIGHTS


def recomputed_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, [B, H, N, D]."""
    if recorded():  # a compiler decides itself what to save; tracing and transforms do not support this function
        return _product(q, k, v)
    return _Recomputed.apply(q, k, v)


def _weights(q: Tensor, k: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT, dim=-1).to(q.dtype)


def _product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _weights(q * q.shape[-1] ** -0.5, k) @ v


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _product(q, k, v)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor]:
        (grad,) = grads
        q, k, v = ctx.saved_tensors
        grad = grad.to(q.dtype)  # under autocast it may have another dtype
        scale = q.shape[-1] ** -0.5
        q = q * scale
        weights = _weights(q, k)
        grad_v = weights.mT @ grad
        grad_scores = torch.ops.aten._softmax_backward_data(grad @ v.mT, weights, -1, weights.dtype)
        return (grad_scores @ k) * scale, grad_scores.mT @ q, grad_v
