"""How many Philox blocks this machine's cores make in a second when they do nothing else: philox_cpu.cpp."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

BLOCKS = 2**20
"""For each thread and call."""

_FLAGS = ("-std=c++20", "-O3", "-march=native", "-fopenmp-simd", "-shared", "-fPIC", "-pthread")


@functools.cache
def _library() -> ctypes.CDLL | None:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "philox_cpu.so")
        source = Path(__file__).with_suffix(".cpp")
        subprocess.run([compiler, *_FLAGS, str(source), "-o", str(target)], check=True)
        return ctypes.CDLL(str(target))


def spin(threads: int) -> Callable[[], int] | None:
    """A call that makes BLOCKS blocks on each of the threads and returns the xor of their words; None: no compiler."""
    library = _library()
    if library is None:
        return None
    library.philox_blocks.restype = ctypes.c_uint32
    return lambda: library.philox_blocks(ctypes.c_uint64(BLOCKS), ctypes.c_int(threads))
