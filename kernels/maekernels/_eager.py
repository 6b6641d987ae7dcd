"""Calls ops without the Python autograd layer that torch.library.custom_op puts in front of each of them.

On a CPU, that layer takes longer than a native kernel does for a small model. If no gradient is needed, the kernel is
called below autograd; otherwise a torch.autograd.Function with the op's own formula calls it. Everything else goes
through the registered op: compilation, export and tracing, torch.func, tensor subclasses, other devices, and CPUs
without the native kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maekernels._native import ABSENT

# Private functions that torch.library itself uses to call kernels. If torch lacks them, the registered op is called.
_BelowAutograd: Any = getattr(torch._C, "_AutoDispatchBelowAutograd", None)
_transforms_active: Any = getattr(torch._C, "_are_functorch_transforms_active", None)
_ABLE = not ABSENT and _BelowAutograd is not None


def direct(op: Any) -> Callable[..., Any]:
    """Return a function that calls `op`, a custom op or its overload, below autograd if no gradient is needed."""

    def call(*args: Any) -> Any:
        if not _eager(args) or _needs_gradient(args):
            return op(*args)
        return _below_autograd(op, args)

    return call


def differentiable(op: Any, backward: Callable[..., Any], setup_context: Callable[..., None]) -> Callable[..., Any]:
    """Register the gradient of `op` and return a function that calls it by the shortest path, arguments positional."""
    op.register_autograd(backward, setup_context=setup_context)

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            output = _below_autograd(op, args)
            setup_context(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return backward(ctx, *grads)

    def call(*args: Any) -> Any:
        if not _eager(args):
            return op(*args)
        return Direct.apply(*args) if _needs_gradient(args) else _below_autograd(op, args)

    return call


def recorded() -> bool:
    """Whether the current call is compiled, traced or transformed rather than only executed."""
    if torch.compiler.is_compiling():  # separate and first: the compiler traces no further
        return True
    return torch._C._get_tracing_state() is not None or _transforms_active is None or transformed()


def transformed() -> bool:
    """Whether a transform of torch.func is at work, as far as torch tells. Not for code that is compiled."""
    return _transforms_active is not None and _transforms_active()


def _eager(args: tuple[Any, ...]) -> bool:
    """Whether these are plain CPU tensors in eager mode."""
    if recorded() or not _ABLE:
        return False
    tensors = [x for x in args if isinstance(x, Tensor)]
    return all(type(x) in (Tensor, torch.nn.Parameter) and x.device.type == "cpu" for x in tensors)


def _needs_gradient(args: tuple[Any, ...]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args)


def _below_autograd(op: Any, args: tuple[Any, ...]) -> Any:
    with _BelowAutograd():
        return getattr(op, "_opoverload", op)(*args)
