"""The C++ kernels of `csrc/cpu`, when they were built with the package.

The extension registers its kernels for the CPU key of the ops' own schemas. An op's Python implementation for the CPU
is registered only where the extension is absent or switched off: `device_types=PYTHON_CPU`. MAEKERNELS_NATIVE=0
switches it off for the process; MAEKERNELS_CPU_ISA=baseline, avx2 or avx512 chooses among its instruction sets.
"""

from __future__ import annotations

import importlib
import os
import warnings


def _load() -> str:
    """Load the extension; "" when that worked, or why there is none."""
    if os.environ.get("MAEKERNELS_NATIVE", "1") == "0":
        return "MAEKERNELS_NATIVE=0 switches the native kernels off"
    try:
        importlib.import_module(f"{__package__}._C")
    except ModuleNotFoundError:
        return "the native kernels were not built with this package"
    except ImportError as error:
        warnings.warn(f"maekernels runs on torch: its native kernels do not load: {error}", stacklevel=2)
        return f"the native kernels do not load: {error}"
    return ""


ABSENT = _load()
"""Why there are no native CPU kernels; empty where there are."""

PYTHON_CPU: tuple[str, ...] = ("cpu",) if ABSENT else ()
"""Devices that the Python implementations of the ops with a native kernel are registered for."""
