"""Imports Triton at the first launch, so that `import maekernels` and the CPU path need only torch.

Kernels are written at module level under `@jit` and read `tl` as a global. The first launch imports Triton, sets `tl`
and `libdevice` in the kernel's module, and replaces each `LazyKernel` there by the output of `triton.jit`; after that,
launches go straight to Triton.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

_loading = threading.RLock()


class LazyKernel:
    """A kernel or device function that Triton has not seen yet."""

    def __init__(self, fn: Callable[..., Any], do_not_specialize: tuple[str, ...]) -> None:
        self.fn = fn
        self.do_not_specialize = do_not_specialize
        self._jitted: Any = None
        self._ready = False
        """Whether all names that it uses have been replaced too; no other thread may launch it before."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        return self.load()[grid]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{self.fn.__name__} is a Triton device function: call it from a kernel")

    def load(self) -> Any:
        """The `triton.JITFunction` (the interpreted one under TRITON_INTERPRET=1)."""
        if not self._ready:
            with _loading:
                self._load()
        return self._jitted

    def _load(self) -> None:
        if self._jitted is not None:  # by another thread, or further up the stack: kernels refer to each other
            return
        try:
            import triton
            import triton.language as tl
            from triton.language.extra import libdevice
        except ImportError as error:
            raise RuntimeError("maekernels on CUDA needs triton >= 3.6: pip install 'triton>=3.6,<3.10'") from error
        jitted = triton.jit(do_not_specialize=list(self.do_not_specialize))(self.fn)
        # Contract a * b + c to an FMA, the default so far: triton 3.9 warns if a launch does not set it.
        jitted.run = partial(jitted.run, enable_fp_fusion=True)
        self._jitted = jitted
        names = self.fn.__globals__
        names["tl"], names["libdevice"] = tl, libdevice
        for name, value in list(names.items()):
            if isinstance(value, LazyKernel):
                names[name] = value.load()
        self._ready = True


@overload
def jit(fn: Callable[..., Any]) -> LazyKernel: ...
@overload
def jit(*, do_not_specialize: tuple[str, ...]) -> Callable[[Callable[..., Any]], LazyKernel]: ...
def jit(fn: Any = None, *, do_not_specialize: tuple[str, ...] = ()) -> Any:
    """`triton.jit`, deferred. `do_not_specialize`: integers that change from call to call."""
    if fn is not None:
        return LazyKernel(fn, do_not_specialize)
    return lambda fn: LazyKernel(fn, do_not_specialize)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, which has no libdevice."""
    from triton import knobs

    return knobs.runtime.interpret


def register_cuda(op: Any, launch: Callable[..., Any]) -> None:
    """Register `launch` as the CUDA implementation of the custom op, run on the device of its first tensor."""

    def on_device(*args: Any, **kwargs: Any) -> Any:
        tensors = (v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        with torch.cuda.device_of(next(tensors)):
            return launch(*args, **kwargs)

    op.register_kernel("cuda")(on_device)


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


class Tile(NamedTuple):
    """The work of one program: `rows` rows by `chunk` elements of each, with `warps` warps."""

    rows: int
    chunk: int
    warps: int = 4

    def programs(self, rows: int, dim: int) -> int:
        """The number of programs that cover `rows` rows of `dim` elements."""
        return cdiv(rows, self.rows) * cdiv(dim, self.chunk)

    @property
    def meta(self) -> dict[str, int]:
        """The kernel arguments for this tile."""
        return {"ROWS": self.rows, "CHUNK": self.chunk, "num_warps": self.warps}


def row_tile(dim: int, elements: int) -> Tile:
    """A tile of `elements` elements over rows of `dim`.

    `chunk` is the largest power of two up to 1024 that divides `dim`, so that no lane idles; if that is below 64, it is
    `dim` rounded up to a power of two, up to 1024, with the tail masked.
    """
    chunk = min(dim & -dim, 1024)
    if chunk < 64:
        chunk = min(next_power_of_2(dim), 1024)
    return Tile(max(1, elements // chunk), chunk)
