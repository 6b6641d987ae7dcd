"""Argument checks shared by the ops. Every failure raises a `ValueError` that repeats the argument."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NoReturn, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from maekernels import _native

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


T = TypeVar("T")
_COMPLAINT = re.compile(r"\w+=.*: must be .*")


def run_op(op: Callable[..., T], *args: object) -> T:
    """`op(*args)`, with argument errors raised as `ValueError`.

    The C++ kernels throw std::invalid_argument, which Python sees as ValueError. From torch 2.14 on, the stable ABI
    turns it into a RuntimeError whose message contains the original one.

    Raises:
        NotImplementedError: an argument has a forward-mode tangent; torch's own ops raise the same error.
    """
    if torch.compiler.is_compiling():
        return op(*args)
    if getattr(forward_ad, "_current_level", -1) >= 0:
        _refuse_tangents(args)
    try:
        return op(*args)
    except RuntimeError as error:
        found = _COMPLAINT.search(str(error))
        if found is None:
            raise
        raise ValueError(found.group()) from error


def _refuse_tangents(args: tuple[object, ...]) -> None:
    """Custom ops have no forward-mode derivative: the tangent would be dropped silently."""
    if any(isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in args):
        raise NotImplementedError("forward-mode derivatives (torch.func.jvp, dual numbers): take reverse mode")


def check(ok: bool, name: str, given: object, allowed: str) -> None:
    """Raise `ValueError` with the argument, the given value and what is allowed, unless `ok`."""
    if not ok:
        refuse(name, given, allowed)


def refuse(name: str, given: object, allowed: str) -> NoReturn:
    """Raise the error of `check`. Called directly where building the message every time would cost more than an op."""
    raise ValueError(f"{name}={given}: must be {allowed}")


def describe(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)} on {x.device}"


def check_float(name: str, x: Tensor, dims: str) -> None:
    """Check that `x` is floating point and has the dimensions named in `dims`, e.g. "[B, N, D]"."""
    rank = dims.count(",") + 1
    if x.dim() != rank or x.dtype not in FLOATS:
        refuse(name, describe(x), f"a float tensor {dims}")


def check_ids(ids: Tensor, batch: int, device: torch.device) -> None:
    """Check that `ids` are integers [B, K] on the device of the data."""
    ok = ids.dim() == 2 and ids.shape[0] == batch and ids.dtype in (torch.int32, torch.int64) and ids.device == device
    if not ok:
        refuse("ids", describe(ids), f"int32 or int64 [B, K] with B={batch} on {device}")


def check_range(ids: Tensor, length: int) -> None:
    """Check that every id is in [0, length). Reads the values: use it only where that does not wait for a device."""
    if ids.numel():
        low, high = (int(v) for v in ids.aminmax())
        check(low >= 0 and high < length, "ids", f"values in [{low}, {high}]", f"in [0, {length})")


def check_alpha_bar(alpha_bar: Tensor, batch: int, device: torch.device) -> None:
    ok = alpha_bar.shape == (batch,) and alpha_bar.dtype == torch.float32 and alpha_bar.device == device
    check(ok, "alpha_bar", describe(alpha_bar), f"float32 [B] with B={batch} on {device}")
    learnt = alpha_bar.requires_grad and torch.is_grad_enabled()
    check(not learnt, "alpha_bar", "a tensor that requires a gradient", "detached: it would get none")


def check_alpha_bar_range(alpha_bar: Tensor) -> None:
    """Check that every value is in [0, 1]. Reads the values: use it only where that does not wait for a device."""
    if alpha_bar.numel():
        low, high = (float(v) for v in alpha_bar.aminmax())
        check(low >= 0 and high <= 1, "alpha_bar", f"values in [{low}, {high}]", "in [0, 1]")


def check_backend(backend: str | None, device: torch.device, native: bool = True) -> None:
    """An explicitly requested backend is used or refused, never replaced. `native`: the op has a kernel in `csrc`."""
    if backend is None:
        return
    here = ["torch"]
    if device.type == "cuda":
        here.append("triton")
    if native and device.type == "cpu" and not _native.ABSENT:
        here.append("native")
    if backend not in here:
        why = f" ({_native.ABSENT})" if backend == "native" and native and _native.ABSENT else ""
        check(False, "backend", repr(backend), f"None or one of {here} on {device}{why}")


def check_kernel_dtype(name: str, x: Tensor) -> None:
    """Refuse float64: the Triton kernels compute in float32."""
    check(x.dtype != torch.float64, name, describe(x), "float32, bfloat16 or float16 for the CUDA kernels")
