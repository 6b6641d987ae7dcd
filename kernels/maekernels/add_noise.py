"""The DDPM forward process q(x_t | x_0) (Ho et al. 2020), with noise generated on the fly.

    out[b] = sqrt(alpha_bar[b]) x0[b] + sqrt(1 - alpha_bar[b]) eps[b],     eps ~ N(0, 1) by Philox

Shapes: x0 [B, ...], alpha_bar [B]. eps is keyed by (seed, sample offset + b, element within the sample): it is never
stored and can be regenerated.

Cost for E elements of s bytes: forward reads and writes E s bytes each, with E / 4 Philox blocks of 40 integer
instructions (20 wide multiplications, 20 three-input xors) and about 8 FLOPs per element for Box-Muller and the mix;
backward reads and writes E s bytes each, with E FLOPs. Forward is bound by memory or by Philox's integer arithmetic,
backward by memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from maekernels import philox
from maekernels._checks import (
    FLOATS,
    check,
    check_alpha_bar,
    check_alpha_bar_range,
    check_backend,
    check_kernel_dtype,
    describe,
    run_op,
)
from maekernels._native import PYTHON_CPU
from maekernels._pixels import sample_chunks
from maekernels._triton import cdiv, interpreted, jit, register_cuda
from maekernels.philox import philox_normals8

if TYPE_CHECKING:
    import triton.language as tl


def add_noise(
    x0: Tensor, alpha_bar: Tensor, seed: int | Tensor, offset: int = 0, *, backend: str | None = None
) -> Tensor:
    """Diffuse `x0`. Differentiable in `x0`.

    Args:
        x0: float [B, ...].
        alpha_bar: float32 [B] in [0, 1], the remaining fraction of the signal's variance.
        seed: int in [0, 2^63) or a 0-d int64 tensor on the device.
        offset: index of the first sample.
        backend: for tests and benchmarks only: 'torch', 'native' or 'triton'.

    Returns:
        x_t with the shape and dtype of `x0`.
    """
    check(x0.dim() >= 1 and x0.dtype in FLOATS, "x0", describe(x0), "a float tensor [B, ...]")
    check(x0.numel() < 2**30 * max(1, len(x0)), "x0", describe(x0), "of fewer than 2^30 elements for each sample")
    check_alpha_bar(alpha_bar, x0.shape[0], x0.device)
    check(offset >= 0, "offset", offset, "not negative")
    check_backend(backend, x0.device)
    op = _reference if backend == "torch" else _add_noise
    return run_op(op, x0, alpha_bar, philox.as_seed(seed, x0.device), offset)


def _reference(x0: Tensor, alpha_bar: Tensor, seed: Tensor, offset: int) -> Tensor:
    x = x0.flatten(1) if x0.dim() > 1 else x0[:, None]
    samples = torch.arange(offset, offset + x.shape[0], device=x.device)
    noise = philox.normal(seed, x.shape[1], samples=samples)
    signal, sigma = alpha_bar[:, None].sqrt(), (1 - alpha_bar[:, None]).sqrt()
    return (signal * x + sigma * noise).to(x0.dtype).view(x0.shape)


_BLOCK = 2048


@jit(do_not_specialize=("offset",))
def _add_noise_kernel(
    x0_ptr, alpha_bar_ptr, seed_ptr, out_ptr, offset, E, BLOCKS, FAST: tl.constexpr, BLOCK: tl.constexpr
):
    """BLOCK of the E elements of one sample."""
    pid = tl.program_id(0)
    batch = (pid // BLOCKS).to(tl.int64)
    block = pid % BLOCKS
    row = tl.arange(0, 1)[:, None]
    pair = block * (BLOCK // 8) + row + tl.arange(0, BLOCK // 8)[None, :]
    noise = philox_normals8(tl.load(seed_ptr), offset + batch, pair, FAST)
    element = block * BLOCK + row + tl.arange(0, BLOCK)[None, :]
    place = batch * E + element
    alpha_bar = tl.load(alpha_bar_ptr + batch)
    x0 = tl.load(x0_ptr + place, mask=element < E, other=0.0).to(tl.float32)
    value = tl.sqrt(alpha_bar) * x0 + tl.sqrt(1.0 - alpha_bar) * noise
    tl.store(out_ptr + place, value.to(out_ptr.dtype.element_ty), mask=element < E)


@jit
def _add_noise_backward_kernel(grad_ptr, alpha_bar_ptr, out_ptr, E, BLOCKS, BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    batch = (pid // BLOCKS).to(tl.int64)
    element = pid % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    place = batch * E + element
    grad = tl.load(grad_ptr + place, mask=element < E, other=0.0).to(tl.float32)
    value = tl.sqrt(tl.load(alpha_bar_ptr + batch)) * grad
    tl.store(out_ptr + place, value.to(out_ptr.dtype.element_ty), mask=element < E)


def _launch_add_noise(x0: Tensor, alpha_bar: Tensor, seed: Tensor, offset: int) -> Tensor:
    check_kernel_dtype("x0", x0)
    x0, alpha_bar = x0.contiguous(), alpha_bar.contiguous()
    out = torch.empty_like(x0)
    if out.numel():
        elements = x0.numel() // len(x0)
        blocks = cdiv(elements, _BLOCK)
        fast = out.element_size() == 2 and not interpreted()
        _add_noise_kernel[(len(x0) * blocks,)](
            x0, alpha_bar, seed, out, offset, elements, blocks, FAST=fast, BLOCK=_BLOCK
        )
    return out


def _launch_add_noise_backward(grad: Tensor, alpha_bar: Tensor) -> Tensor:
    grad, alpha_bar = grad.contiguous(), alpha_bar.contiguous()
    out = torch.empty_like(grad)
    if out.numel():
        elements = grad.numel() // len(grad)
        blocks = cdiv(elements, 2 * _BLOCK)
        _add_noise_backward_kernel[(len(grad) * blocks,)](grad, alpha_bar, out, elements, blocks, BLOCK=2 * _BLOCK)
    return out


@torch.library.custom_op("maekernels::add_noise", mutates_args=(), device_types=PYTHON_CPU)
def _add_noise(x0: Tensor, alpha_bar: Tensor, seed: Tensor, offset: int) -> Tensor:
    check_alpha_bar_range(alpha_bar)
    out = torch.empty_like(x0, memory_format=torch.contiguous_format)
    for part in sample_chunks(len(x0), x0[:1].numel()):
        out[part] = _reference(x0[part], alpha_bar[part], seed, offset + part.start)
    return out


@_add_noise.register_fake
def _(x0, alpha_bar, seed, offset):
    return torch.empty_like(x0, memory_format=torch.contiguous_format)


def _reference_backward(grad: Tensor, alpha_bar: Tensor) -> Tensor:
    """d loss / d x0 = sqrt(alpha_bar[b]) * grad."""
    signal = alpha_bar.sqrt().view(-1, *(1,) * (grad.dim() - 1))
    return (signal * grad).to(grad.dtype).contiguous()


@torch.library.custom_op("maekernels::add_noise_backward", mutates_args=(), device_types="cpu")
def _add_noise_backward(grad: Tensor, alpha_bar: Tensor) -> Tensor:
    return _reference_backward(grad, alpha_bar)


@_add_noise_backward.register_fake
def _(grad, alpha_bar):
    return torch.empty_like(grad, memory_format=torch.contiguous_format)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])


def _backward(ctx, grad):
    # A single multiplication: on a CPU, plain torch does it, without a custom op.
    run = _reference_backward if grad.device.type == "cpu" else _add_noise_backward
    return run(grad, ctx.saved_tensors[0]), None, None, None


_add_noise.register_autograd(_backward, setup_context=_setup_context)
register_cuda(_add_noise, _launch_add_noise)
register_cuda(_add_noise_backward, _launch_add_noise_backward)
