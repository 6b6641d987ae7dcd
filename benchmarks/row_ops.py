"""Row ops that torch and other packages have kernels for: what share of the copy bandwidth do good kernels reach?

Bandwidth references for our ops that are bound by bytes. They do other work than ours and are no competitors: a row is
read once, reduced, and written once. Their sizes are those of our ops: the norms take the rows that `gather_tokens`
writes, `softmax` and `cross_entropy` rows as `add_noise` has them. Forward passes alone.

    liger-kernel     softmax, rms_norm, layer_norm, in Triton. Not its cross_entropy, which waits for the device in
                     every call: launches cannot be queued behind one another, and the clock would measure the host
    quack-kernels    softmax, rms_norm, cross_entropy, in CuTe DSL, for H100 and newer

A package that is not installed, or whose kernel does not run here, is named with the reason and left out.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.problems import Problem

EPS = 1e-6


class RowProblem(Problem):
    """x `[R, W]`, with what else the ops want.

    Of a case with B samples: R = B * Q rows of a masked patch's P elements, or R = B * K rows of a kept token's D.
    """

    native = False
    rounds_as_torch = True
    tokens: ClassVar[bool] = False
    """Rows are kept tokens; else masked patches."""

    def draw(self) -> None:
        case = self.case
        rows, self.width = (case.kept, case.width) if self.tokens else (case.masked, case.patch_dim)
        self.x = self.normal(self.batch * rows, self.width)


class Softmax(RowProblem):
    def eager(self) -> Tensor:
        return F.softmax(self.x, dim=-1)


class RmsNorm(RowProblem):
    tokens = True

    def draw(self) -> None:
        super().draw()
        self.weight = self.normal(self.width)

    def eager(self) -> Tensor:
        return F.rms_norm(self.x, (self.width,), self.weight, EPS)


class LayerNorm(RmsNorm):
    def draw(self) -> None:
        super().draw()
        self.bias = self.normal(self.width)

    def eager(self) -> Tensor:
        return F.layer_norm(self.x, (self.width,), self.weight, self.bias, EPS)


class CrossEntropy(RowProblem):
    """Of W classes: a loss for each row."""

    def draw(self) -> None:
        super().draw()
        self.target = torch.randint(self.width, (len(self.x),), device=self.device, generator=self.generator)

    def eager(self) -> Tensor:
        return F.cross_entropy(self.x, self.target, reduction="none")


ROW_OPS: dict[str, type[RowProblem]] = {
    "softmax": Softmax,
    "rms_norm": RmsNorm,
    "layer_norm": LayerNorm,
    "cross_entropy": CrossEntropy,
}

Kernel = Callable[[Any], Tensor]
"""Takes a `RowProblem` of its op."""


def _liger(module: Any) -> dict[str, Kernel]:
    return {
        "softmax": lambda p: module.liger_softmax(p.x),
        "rms_norm": lambda p: module.liger_rms_norm(p.x, p.weight, EPS, in_place=False),
        "layer_norm": lambda p: module.liger_layer_norm(p.x, p.weight, p.bias, EPS),
    }


def _quack(module: Any) -> dict[str, Kernel]:
    return {
        "softmax": lambda p: module.softmax(p.x),
        "rms_norm": lambda p: module.rmsnorm(p.x, p.weight, eps=EPS),
        "cross_entropy": lambda p: module.cross_entropy(p.x, p.target, reduction="none"),
    }


PACKAGES: dict[str, tuple[str, str, Callable[[Any], dict[str, Kernel]]]] = {
    "liger": ("liger-kernel", "liger_kernel.transformers.functional", _liger),
    "quack": ("quack-kernels", "quack", _quack),
}
"""Provider -> name of the distribution, module, and its kernels by op."""


@dataclass(frozen=True)
class Package:
    """Another package, as it is found here.

    Args:
        title: name and version.
        kernels: op -> kernel, of those that run here.
        missing: what does not, and why, in one line each.
    """

    provider: str
    title: str
    kernels: Mapping[str, Kernel]
    missing: tuple[str, ...] = ()


def find_packages(device: torch.device, dtype: torch.dtype) -> Iterator[Package]:
    """Each of `PACKAGES`, asked for a few rows of every op: whether a kernel runs here only running it tells."""
    for provider, (name, module_name, kernels_of) in PACKAGES.items():
        try:
            kernels = kernels_of(importlib.import_module(module_name))
        except Exception as error:  # a package for GPUs may fail in any way where there is none
            yield Package(provider, name, {}, (f"{name}: not measured: {_in_a_line(error)}",))
            continue
        title = f"{name} {_version(name)}"
        why = {op: _refusal(kernel, ROW_OPS[op], device, dtype) for op, kernel in kernels.items()}
        missing = tuple(f"{title}: {op} not measured: {said}" for op, said in why.items() if said)
        yield Package(provider, title, {op: kernel for op, kernel in kernels.items() if not why[op]}, missing)


_SMALL = Case("small", "image", (32, 32), (16, 16), 256, 256, 0.5, cpu_batch=1, cuda_batch=1)


def _refusal(kernel: Kernel, kind: type[RowProblem], device: torch.device, dtype: torch.dtype) -> str | None:
    try:
        with torch.no_grad():
            float(kernel(kind(_SMALL, 1, device, dtype)).sum())
    except Exception as error:
        return _in_a_line(error)
    return None


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
