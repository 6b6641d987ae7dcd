"""Triton, imported at the first launch, so that `import maekernels` and the CPU path need only torch.

Kernels are written at module level under `@jit` and read `tl` as a global. The first launch imports Triton, gives the
kernel's module its `tl` and `libdevice`, and replaces each `LazyKernel` there by what `triton.jit` makes of it; from
then on a launch is Triton's own.
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
    """A kernel, or a device function of one, not yet seen by Triton."""

    def __init__(self, fn: Callable[..., Any], do_not_specialize: tuple[str, ...]) -> None:
        self.fn = fn
        self.do_not_specialize = do_not_specialize
        self._jitted: Any = None
        self._ready = False
        """Whether all names that it uses are replaced too; another thread must not launch it before."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        return self.load()[grid]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{self.fn.__name__} is a Triton device function: call it from a kernel")

    def load(self) -> Any:
        """The `triton.JITFunction` (under TRITON_INTERPRET=1 the interpreted one)."""
        if not self._ready:
            with _loading:
                self._load()
        return self._jitted

    def _load(self) -> None:
        if self._jitted is not None:  # by another thread, or further up: kernels of a module know one another
            return
        try:
            import triton
            import triton.language as tl
            from triton.language.extra import libdevice
        except ImportError as error:
            raise RuntimeError("maekernels on CUDA needs triton >= 3.6: pip install 'triton>=3.6,<3.10'") from error
        jitted = triton.jit(do_not_specialize=list(self.do_not_specialize))(self.fn)
        # a * b + c rounded once, as up to now by default: triton 3.9 warns where a launch leaves that open.
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
    """Make `launch` the CUDA implementation of the custom op, run on the device of its first tensor."""

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
    """What one program works on: `rows` by `chunk` of the elements of a row, with `warps` warps."""

    rows: int
    chunk: int
    warps: int = 4

    def programs(self, rows: int, dim: int) -> int:
        """How many cover `rows` rows of `dim` elements."""
        return cdiv(rows, self.rows) * cdiv(dim, self.chunk)

    @property
    def meta(self) -> dict[str, int]:
        """The kernel's arguments for it."""
        return {"ROWS": self.rows, "CHUNK": self.chunk, "num_warps": self.warps}


def row_tile(dim: int, elements: int) -> Tile:
    """A tile of `elements` elements over rows of `dim`.

    `chunk` is the largest power of two up to 1024 that divides `dim`, so that no lane idles; where that is below 64, as
    many elements as there are, masked at the end.
    """
    chunk = min(dim & -dim, 1024)
    if chunk < 64:
        chunk = min(next_power_of_2(dim), 1024)
    return Tile(max(1, elements // chunk), chunk)
