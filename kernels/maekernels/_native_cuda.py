"""The CUDA ops of csrc/cuda, used instead of the Triton kernels if `maekernels._C_cuda` was built.

Importing that library registers `torch.ops.maekernels_cuda`. These are separate ops, without gradients or fake
implementations: users and torch.compile see the op of `maekernels`, whose CUDA implementation calls `native_ops` each
time and launches Triton if that returns None. Results are identical bit for bit, so nothing reports which of the two
ran.

MAEKERNELS_NATIVE=0 in the environment disables native code.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from functools import cache
from typing import Any

import torch


def native_ops() -> Any | None:
    """`torch.ops.maekernels_cuda`, or None if it is not built or is disabled."""
    return _load() if os.environ.get("MAEKERNELS_NATIVE") != "0" else None


@cache
def _load() -> Any | None:
    """Load the library, if built. One that does not load is an error: silence would hide a broken installation."""
    if importlib.util.find_spec(f"{__package__}._C_cuda") is None:
        return None
    importlib.import_module(f"{__package__}._C_cuda")
    return torch.ops.maekernels_cuda


def runs_native(device: torch.device) -> bool:
    """Whether the library, if built, runs on this GPU."""
    return not unfit(device)


@cache
def unfit(device: torch.device) -> str:
    """Why the library, if built, does not run on this GPU; "" if it does.

    setup.py lists the compiled architectures, from compute capability 8.0 on. The CUDA runtime is linked statically, so
    it may be newer than the driver supports: within a major version they are compatible.
    """
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs compute capability 8.0"
    toolkit: int = getattr(importlib.import_module(f"{__package__}._C_cuda"), "TOOLKIT", 0)
    driver: int = torch._C._cuda_getDriverVersion()  # pyright: ignore[reportAttributeAccessIssue]
    if driver // 1000 < toolkit // 1000:
        return f"it was compiled with CUDA {_dotted(toolkit)}, and the driver has {_dotted(driver)}"
    return ""


def _dotted(version: int) -> str:
    """13000 -> "13.0"."""
    return f"{version // 1000}.{version % 1000 // 10}"


def current_stream(device: torch.device) -> int:
    """The address of the device's current stream: the last argument of every native op."""
    return torch.cuda.current_stream(device).cuda_stream
