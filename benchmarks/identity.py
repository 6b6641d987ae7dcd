"""What was measured, on what, when: without these a number means nothing."""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.util
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from maekernels import _native

ROOT = Path(__file__).resolve().parent.parent
UNKNOWN, DIRTY = "unknown", "-dirty"
"""A commit that nobody told; the end of one from which the code that is measured differs."""
_MEASURED = ("kernels", "csrc", "diffmavil", "benchmarks/*.py", "benchmarks/*.cpp", "recipes/*/*.yaml")


def identity(device: torch.device, threads: int | None = None) -> dict[str, Any]:
    """The keys `device`, `commit`, `versions`, `date` and `native` of a line of results.

    Args:
        threads: of what was measured on a CPU; None: of this process.
    """
    return {
        "device": device_name(device, threads),
        "commit": commit(),
        "versions": versions(device),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "native": native(),
    }


def device_name(device: torch.device, threads: int | None = None) -> str:
    """E.g. "cuda: NVIDIA H200" or "cpu: AMD EPYC, 1 thread"."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    threads = threads or torch.get_num_threads()
    return f"cpu: {_processor()}, {threads} thread{'s' if threads > 1 else ''}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@functools.cache
def native() -> str:
    """Which compiled code of maekernels is used: the first digits of the SHA-256 of `_C`, or "none", and of `_C_cuda`
    where that is. A commit does not tell: a library can be missing, or older than its sources."""
    off = os.environ.get("MAEKERNELS_NATIVE") == "0"
    cpu, cuda = "" if _native.ABSENT else _digest("_C"), "" if off else _digest("_C_cuda")
    return f"{cpu or 'none'}{f', cuda {cuda}' if cuda else ''}"


def _digest(library: str) -> str:
    """Of a library of maekernels; nothing: it was not built."""
    spec = importlib.util.find_spec(f"maekernels.{library}")
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()[:12] if spec and spec.origin else ""


def commit() -> str:
    """The commit, "-dirty" when code that is measured differs from it; BENCHMARK_COMMIT where the copy has no git."""
    if os.environ.get("BENCHMARK_COMMIT"):
        return os.environ["BENCHMARK_COMMIT"]
    try:
        changed = _git("status", "--porcelain", "--", *_MEASURED)
        return _git("rev-parse", "--short=10", "HEAD") + (DIRTY if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def versions(device: torch.device) -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    try:
        import triton

        found["triton"] = triton.__version__
    except ImportError:
        pass
    if device.type == "cuda" and torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found
