"""Exact bfloat16 for Triton's interpreter.

The interpreter keeps bf16 as uint16 and computes on those integers: sums and products of bf16 are wrong without a
word, and casts from fp32 do not round to the nearest even. Here every cast rounds as the hardware does, and arithmetic
is done in fp32 and rounded once, which for +, -, *, / of two bf16 numbers is the correctly rounded result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import triton.language as tl
import triton.runtime.interpreter as interpreter
from triton.runtime.interpreter import InterpreterBuilder, ReduceOps, TensorHandle


def widen(bits: np.ndarray) -> np.ndarray:
    """The fp32 values of bf16 numbers kept as uint16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def round_to_bf16(values: np.ndarray) -> np.ndarray:
    """Round to the nearest bf16, ties to even; uint16. Overflow gives infinity, NaN stays NaN."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def install(patch: pytest.MonkeyPatch) -> None:
    """Replace what the interpreter gets wrong, until `patch` is undone."""
    for name, replacement in _REPLACEMENTS.items():
        patch.setattr(InterpreterBuilder, name, replacement(getattr(InterpreterBuilder, name)))
    patch.setattr(InterpreterBuilder, "get_bf16", _constant, raising=False)
    patch.setattr(ReduceOps, "sum", _sum(ReduceOps.sum))


def _is_bf16(handle: TensorHandle) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _widened(handle: TensorHandle) -> TensorHandle:
    return TensorHandle(widen(handle.data), tl.float32) if _is_bf16(handle) else handle


def _constant(builder: InterpreterBuilder, value: float) -> TensorHandle:
    """The interpreter has no bf16 constants, so `x * 2.0` fails on a bf16 x."""
    return TensorHandle(round_to_bf16(np.array([value])), tl.bfloat16)


def _cast(original: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    """Only bf16 <-> fp32 is converted, rounding towards zero; any other cast takes the bits for an integer."""

    def cast(builder: InterpreterBuilder, source: TensorHandle, to: tl.dtype) -> TensorHandle:
        if _is_bf16(source) == (to.scalar == tl.bfloat16):
            return original(builder, source, to)
        if _is_bf16(source):
            return TensorHandle(widen(source.data).astype(interpreter._get_np_dtype(to)), to.scalar)
        return TensorHandle(round_to_bf16(source.data), tl.bfloat16)

    return cast


def _cast_with_rounding(original: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    """`fp_downcast_rounding="rtne"` adds the cut-off bit without a carry into the exponent, and ignores ties."""

    def cast(builder: InterpreterBuilder, source: TensorHandle, to: tl.dtype, rounding: Any) -> TensorHandle:
        nearest = rounding is None or rounding == interpreter._ir.ROUNDING_MODE.RTNE
        if nearest and to.scalar == tl.bfloat16:
            return TensorHandle(round_to_bf16(source.data), tl.bfloat16)
        return original(builder, source, to, rounding)

    return cast


def _binary(original: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    """+, -, *, / and comparisons act on the uint16 patterns."""

    def binary_op(builder: InterpreterBuilder, lhs: TensorHandle, rhs: TensorHandle, op: Any) -> TensorHandle:
        if not _is_bf16(lhs):
            return original(builder, lhs, rhs, op)
        result = op(widen(lhs.data), widen(rhs.data))
        return TensorHandle(result if result.dtype == bool else round_to_bf16(result), tl.bfloat16)

    return binary_op


def _unary(original: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    """`-x` is an operation of its own from triton 3.8 on, and acts on the uint16 patterns too."""

    def unary_op(builder: InterpreterBuilder, arg: TensorHandle, op: Any) -> TensorHandle:
        if not _is_bf16(arg):
            return original(builder, arg, op)
        return TensorHandle(round_to_bf16(op(widen(arg.data))), tl.bfloat16)

    return unary_op


def _fma(original: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    """a * b + c rounded once: fp64 holds the product of two bf16 exactly."""

    def fma(builder: InterpreterBuilder, a: TensorHandle, b: TensorHandle, c: TensorHandle) -> TensorHandle:
        if not _is_bf16(c):
            return original(builder, a, b, c)
        product = widen(a.data).astype(np.float64) * widen(b.data)
        return TensorHandle(round_to_bf16(product + widen(c.data)), tl.bfloat16)

    return fma


def _dot(original: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    """The matrix product multiplies the uint16 patterns; tensor cores multiply exactly and accumulate in fp32."""

    def dot(builder: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *rest: Any, **kwargs: Any) -> TensorHandle:
        return original(builder, _widened(a), _widened(b), *rest, **kwargs)

    return dot


def _sum(original: Callable[..., Any]) -> Callable[..., Any]:
    """`tl.sum` of bf16 accumulates in bf16 on a GPU: no kernel should want that, so it is an error here."""

    def reduce_sum(reduction: ReduceOps, operand: Any) -> Any:
        if operand.dtype == tl.bfloat16:
            raise TypeError("tl.sum of bf16 accumulates in bf16; convert the operand to fp32 first")
        return original(reduction, operand)

    return reduce_sum


_REPLACEMENTS: dict[str, Callable[[Callable[..., TensorHandle]], Callable[..., TensorHandle]]] = {
    "cast_impl": _cast,
    "create_fp_to_fp": _cast_with_rounding,
    "binary_op": _binary,
    "unary_op": _unary,
    "create_fma": _fma,
    "create_dot": _dot,
}
