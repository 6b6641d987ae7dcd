"""The ops' environment: versions, device, backends and why one is missing. Imports torch, and triton if installed."""

from __future__ import annotations

import importlib
import platform
from importlib import metadata, util
from typing import NamedTuple

import torch

from maekernels import _native
from maekernels._native_cuda import native_ops, unfit

TRITON = ((3, 6), (3, 10))
"""The first version of Triton that the kernels support, and the first that they do not."""
GPU_TORCH = "with a GPU: a CUDA build of torch, see https://pytorch.org/get-started/locally"
NO_GPU = "there is no CUDA device here"


class Backend(NamedTuple):
    """One way to compute the ops."""

    name: str
    serves: str
    problem: str
    """Why it does not run here; empty if it does."""
    remedy: str = ""
    """What to install or set, if that helps."""


def versions() -> list[tuple[str, str]]:
    """(name, version) of everything that results depend on."""
    return [
        ("maekernels", _installed("maekernels") or "from source, not installed"),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("torch", torch.__version__),
        ("triton", _triton()[0] or "not installed"),
        ("GPU", _gpu()),
    ]


def backends() -> list[Backend]:
    """Every backend of the ops, with the default for each kind of device first."""
    return [_cpu(), _triton_kernels(), _cuda(), _flash(), _xformers()]


def _installed(package: str) -> str:
    """The version of an installed package, without importing it; "" if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _gpu() -> str:
    if not torch.cuda.is_available():
        built = f"with CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        return f"none that torch can use (it was built {built})"
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return ", ".join(f"{gpu.name} (sm_{gpu.major}{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB)" for gpu in found)


def _cpu() -> Backend:
    remedy = ""
    if "MAEKERNELS_NATIVE" in _native.ABSENT:
        remedy = "unset MAEKERNELS_NATIVE"
    elif _native.ABSENT:
        remedy = "a C++20 compiler, and maekernels installed anew from source; pip -v shows what fails"
    return Backend("native CPU", "all ops but info_nce and attention on a CPU; else torch", _native.ABSENT, remedy)


def _triton() -> tuple[str, str]:
    """Its version, and the error if it cannot be imported; each "" if there is none."""
    if util.find_spec("triton") is None:
        return "", ""
    try:
        return importlib.import_module("triton").__version__, ""
    except Exception as error:  # e.g. a missing driver or compiler that it looks for at import
        return _installed("triton") or "unknown", f"it cannot be imported: {type(error).__name__}: {error}"


def _triton_kernels() -> Backend:
    version, problem = _triton()
    lowest, above = (".".join(map(str, bound)) for bound in TRITON)
    remedy = f"pip install 'triton>={lowest},<{above}'"
    serves = "all ops but attention on CUDA"
    if not version:
        return Backend("triton", serves, "it is not installed", remedy)
    if not problem and not TRITON[0] <= _numbers(version) < TRITON[1]:
        problem = f"{version} is outside {lowest} to {above}, which the kernels were tested with"
    if not problem and not torch.cuda.is_available():
        return Backend("triton", serves, NO_GPU, "" if torch.version.cuda else GPU_TORCH)
    return Backend("triton", serves, problem, remedy if problem else "")


def _numbers(version: str) -> tuple[int, ...]:
    """Major and minor of "3.7.1+git"; () if there are none."""
    parts = version.split(".")[:2]
    return tuple(int(part) for part in parts) if all(part.isdecimal() for part in parts) else ()


def _cuda() -> Backend:
    serves = "random_mask on CUDA, up to 8192 tokens; else triton"
    problem, remedy = "", ""
    try:
        if native_ops() is None:
            off = "MAEKERNELS_NATIVE" in _native.ABSENT
            problem = _native.ABSENT if off else "it was not built with this package: there was no nvcc, or it failed"
            remedy = (
                ""
                if off or not torch.cuda.is_available()
                else "optional: nvcc, and install maekernels from source (pip install -v shows what it said)"
            )
    except (ImportError, OSError) as error:
        problem, remedy = f"it does not load: {error}", "MAEKERNELS_NATIVE=0 leaves it out"
    if not problem and not torch.cuda.is_available():
        problem = NO_GPU
    elif not problem:
        problem = unfit(torch.device("cuda", torch.cuda.current_device()))
    return Backend("native CUDA", serves, problem, remedy)


def _flash() -> Backend:
    serves = "attention on CUDA in half precision, torch's own"
    if not torch.cuda.is_available():
        return Backend("flash", serves, NO_GPU)
    old = torch.cuda.get_device_capability() < (8, 0)
    return Backend("flash", serves, "it needs compute capability 8.0" if old else "")


def _xformers() -> Backend:
    version = _installed("xformers")
    serves = f"attention on CUDA, where it has a kernel{f' ({version}, tried at the first call)' if version else ''}"
    if not version:
        remedy = "optional, not needed: pip install xformers==0.0.35" if torch.cuda.is_available() else ""
        return Backend("xformers", serves, "it is not installed", remedy)
    return Backend("xformers", serves, "" if torch.cuda.is_available() else NO_GPU)
