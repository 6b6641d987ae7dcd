"""The C++ kernels of `csrc/cpu`, if they were built with the package.

The extension registers its kernels under the CPU key of the ops' own schemas. An op's Python implementation for the CPU
is registered only if the extension is absent or disabled: `device_types=PYTHON_CPU`. MAEKERNELS_NATIVE=0 disables it
for the process; MAEKERNELS_CPU_ISA=baseline, avx2 or avx512 selects its instruction set.
"""

from __future__ import annotations

import importlib
import os
import warnings


def _load() -> str:
    """Load the extension; returns "" on success, otherwise why there is none."""
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
"""Why there are no native CPU kernels; empty if there are."""

PYTHON_CPU: tuple[str, ...] = ("cpu",) if ABSENT else ()
"""Devices for which ops with a native kernel register their Python implementation."""
