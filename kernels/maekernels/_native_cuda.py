"""The CUDA ops of csrc/cuda, used instead of Triton's where `maekernels._C_cuda` was built.

Importing that library registers `torch.ops.maekernels_cuda`. They are ops of their own, without gradients and fakes:
what users and torch.compile see is the op of `maekernels`, whose CUDA implementation asks `native_ops` at each call
and launches Triton when it answers None. Results are the same bit for bit, so nothing says which of the two ran.

MAEKERNELS_NATIVE=0 in the environment turns native code off.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from functools import cache
from typing import Any

import torch


def native_ops() -> Any | None:
    """`torch.ops.maekernels_cuda`, or None where it is not built or turned off."""
    return _load() if os.environ.get("MAEKERNELS_NATIVE") != "0" else None


@cache
def _load() -> Any | None:
    """A library that is there but does not load is an error: silence would hide a broken install."""
    if importlib.util.find_spec(f"{__package__}._C_cuda") is None:
        return None
    importlib.import_module(f"{__package__}._C_cuda")
    return torch.ops.maekernels_cuda


def runs_native(device: torch.device) -> bool:
    """Whether the library, which is there, runs on this GPU."""
    return not unfit(device)


@cache
def unfit(device: torch.device) -> str:
    """Why the library, which is there, does not run on this GPU; "" where it does.

    setup.py names what is compiled, from compute capability 8.0 on. The CUDA runtime is linked statically, so it may be
    newer than the driver allows: within a major version they fit.
    """
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs compute capability 8.0"
    toolkit: int = importlib.import_module(f"{__package__}._C_cuda").TOOLKIT
    driver: int = torch._C._cuda_getDriverVersion()  # pyright: ignore[reportAttributeAccessIssue]
    if driver // 1000 < toolkit // 1000:
        return f"it was compiled with CUDA {_dotted(toolkit)}, and the driver has {_dotted(driver)}"
    return ""


def _dotted(version: int) -> str:
    """13000 -> "13.0"."""
    return f"{version // 1000}.{version % 1000 // 10}"


def current_stream(device: torch.device) -> int:
    """The address of the stream that work on the device goes to: the last argument of every native op."""
    return torch.cuda.current_stream(device).cuda_stream
