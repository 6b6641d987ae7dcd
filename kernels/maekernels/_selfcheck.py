"""Self-check for `python -m maekernels`: each op, small, on every available backend against its float64 reference.

It detects a broken installation or driver; the tests of the repository check whether the ops are correct. If torch is
the only backend, the reference is compared with itself in float64, which shows rounding and little else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from maekernels import _native
from maekernels._native_cuda import native_ops, runs_native
from maekernels._pixels import NormPix
from maekernels.add_noise import add_noise
from maekernels.attention import Segments, attention
from maekernels.diffuse_patches import diffuse_patches
from maekernels.gather_tokens import gather_tokens
from maekernels.info_nce import info_nce
from maekernels.masked_mse import masked_mse
from maekernels.patchify import patchify
from maekernels.random_mask import random_mask
from maekernels.scatter_tokens import scatter_tokens

TOLERANCE = 2e-5
"""For float32 against float64, relative to the largest value: about two hundred roundings. Bugs are far larger."""

Case = Callable[..., tuple[Tensor, list[Tensor]]]
"""(device, dtype, backend) -> the op's output, and the leaves that have a gradient."""

PATCH, MEAN, STD = (2, 4, 4), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
NORMS: tuple[NormPix, ...] = (False, True, "channel")
BATCH, TOKENS, VISIBLE, WIDTH = 3, 64, 13, 48
SEED, OFFSET = 2**40 + 5, 7


class Result(NamedTuple):
    """The result of an op on one backend."""

    op: str
    backend: str
    difference: float
    """The largest over values and gradients, relative to the largest expected value; infinite after an error."""
    error: str = ""

    @property
    def right(self) -> bool:
        return self.difference <= TOLERANCE


def run(device: torch.device) -> Iterator[Result]:
    """Run every op on every backend that the device has."""
    for op, case in CASES.items():
        expected = _values(case, torch.device("cpu"), torch.float64, "math" if op == "attention" else "torch")
        for backend in backends(op, device):
            try:
                found = _values(case, device, torch.float32, backend)
            except Exception as error:  # of any kind: the other ops must still be reported
                yield Result(op, backend, float("inf"), f"{type(error).__name__}: {error}")
            else:
                pairs = zip(found, expected, strict=True)
                yield Result(op, backend, max(_difference(got, want) for got, want in pairs))


def backends(op: str, device: torch.device) -> list[str]:
    """The names of the backends that can compute an op on the device in float32."""
    if op == "attention":
        return ["sdpa", "math"]
    if device.type == "cuda":
        current = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        native = op == "random_mask" and _cuda_built(current)
        return ["triton", *(["cuda"] if native else [])]
    return ["torch"] if _native.ABSENT or op == "info_nce" else ["native", "torch"]


def _cuda_built(device: torch.device) -> bool:
    """Whether csrc's CUDA library is present for the GPU, even if it does not load: its op then reports why."""
    try:
        return native_ops() is not None and runs_native(device)
    except (ImportError, OSError):
        return True


def _values(case: Case, device: torch.device, dtype: torch.dtype, backend: str) -> list[Tensor]:
    """Output and gradients, in float64 on the CPU."""
    out, leaves = case(device, dtype, backend)
    grads: list[Tensor] = []
    if leaves:
        weights = _uniform(out.shape, 99).to(out)
        grads = list(torch.autograd.grad((out * weights).sum(), leaves))
    return [x.detach().double().cpu() for x in (out, *grads)]


def _difference(got: Tensor, want: Tensor) -> float:
    if got.shape != want.shape or not got.isfinite().all():
        return float("inf")
    return float((got - want).abs().max() / want.abs().max().clamp_min(1e-30))


def _uniform(shape: tuple[int, ...], seed: int) -> Tensor:
    """float32 in [-1, 1), identical on every device."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _leaf(shape: tuple[int, ...], seed: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return _uniform(shape, seed).to(device, dtype).requires_grad_()


def _pixels(device: torch.device) -> Tensor:
    """uint8 video [B, T, H, W, C] with TOKENS patches."""
    return ((_uniform((BATCH, 8, 16, 16, 3), 1) + 1) * 127.5).to(device, torch.uint8)


def _ids(device: torch.device) -> Tensor:
    """int32 [B, VISIBLE], from torch alone, so that no op is judged by another."""
    order = _uniform((BATCH, TOKENS), 2).argsort(1)[:, :VISIBLE]
    return order.sort(1).values.to(device, torch.int32)


def _alpha_bar(device: torch.device) -> Tensor:
    return torch.tensor([0.02, 0.4, 1.0], device=device)


def _random_mask(device: torch.device, dtype: torch.dtype, backend: str) -> tuple[Tensor, list[Tensor]]:
    groups = (torch.arange(TOKENS, device=device) % 16)[None]
    options = {"seed": SEED, "offset": OFFSET, "device": device, "backend": backend}
    plain = random_mask(BATCH, TOKENS, VISIBLE, **options)
    tubes = random_mask(BATCH, TOKENS, VISIBLE, groups=groups, **options)
    # A single wrong id must not go unnoticed: every difference is at least 1 / TOKENS.
    return torch.cat([*plain, *tubes], 1), []


def _patchify(device: torch.device, dtype: torch.dtype, backend: str) -> tuple[Tensor, list[Tensor]]:
    floats = ((_pixels(device).float() / 255).to(dtype)).requires_grad_()
    read = patchify(_pixels(device), _ids(device), PATCH, MEAN, STD, dtype, backend=backend)
    return torch.stack([read, patchify(floats, _ids(device), PATCH, MEAN, STD, dtype, backend=backend)]), [floats]


def _gather(device: torch.device, dtype: torch.dtype, backend: str) -> tuple[Tensor, list[Tensor]]:
    x = _leaf((BATCH, TOKENS, WIDTH), 3, device, dtype)
    return gather_tokens(x, _ids(device), backend=backend), [x]


def _scatter(device: torch.device, dtype: torch.dtype, backend: str) -> tuple[Tensor, list[Tensor]]:
    few, fill = _leaf((BATCH, VISIBLE, WIDTH), 4, device, dtype), _leaf((WIDTH,), 5, device, dtype)
    return scatter_tokens(few, _ids(device), TOKENS, fill, backend=backend), [few, fill]


def _add_noise(device: torch.device, dtype: torch.dtype, backend: str) -> tuple[Tensor, list[Tensor]]:
    x = _leaf((BATCH, TOKENS, WIDTH), 6, device, dtype)
    return add_noise(x, _alpha_bar(device), SEED, OFFSET, backend=backend), [x]


def _diffuse(device: torch.device, dtype: torch.dtype, backend: str) -> tuple[Tensor, list[Tensor]]:
    args = (_pixels(device), _ids(device), PATCH, MEAN, STD, _alpha_bar(device), SEED, OFFSET)
    return torch.stack([diffuse_patches(*args, norm, dtype, backend=backend) for norm in NORMS]), []


def _masked_mse(device: torch.device, dtype: torch.dtype, backend: str) -> tuple[Tensor, list[Tensor]]:
    pred = _leaf((BATCH, VISIBLE, 96), 7, device, dtype)
    args = (pred, _pixels(device), _ids(device), PATCH, MEAN, STD)
    return torch.stack([masked_mse(*args, norm, backend=backend) for norm in NORMS]), [pred]


def _info_nce(device: torch.device, dtype: torch.dtype, backend: str) -> tuple[Tensor, list[Tensor]]:
    a, b = (_leaf((TOKENS, WIDTH), seed, device, dtype) for seed in (8, 9))
    return info_nce(a, b, 0.1, backend=backend), [a, b]


def _attention(device: torch.device, dtype: torch.dtype, backend: str) -> tuple[Tensor, list[Tensor]]:
    q, k, v = (_leaf((BATCH * VISIBLE, 4, 16), seed, device, dtype) for seed in (10, 11, 12))
    segments = Segments.of([VISIBLE - 5, VISIBLE + 5, VISIBLE], device)
    return attention(q, k, v, segments, backend=backend), [q, k, v]  # type: ignore[arg-type]


CASES: dict[str, Case] = {
    "random_mask": _random_mask,
    "patchify": _patchify,
    "gather_tokens": _gather,
    "scatter_tokens": _scatter,
    "add_noise": _add_noise,
    "diffuse_patches": _diffuse,
    "masked_mse": _masked_mse,
    "info_nce": _info_nce,
    "attention": _attention,
}
