"""Checks the result of every provider before it is timed; a wrong one is not timed at all.

The ground truth is float64: eager code run in float64 if the result is deterministic, the torch reference on float64
inputs if the noise stream is defined by us. Eager code that draws its own masks and noise is checked for their
distribution. Outputs and gradients are compared by |found - expected| / |expected|; a nan never passes. The tolerance
is a constant of the dtype, or for ops that are one call of torch a multiple of that call's own error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.problems import AddNoise, DiffusePatches, Output, Problem, RandomMask

Provider = Callable[[Problem], Output]

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}
"""Largest relative error by dtype of the activations: a few roundings of inputs that are themselves rounded."""

MARGIN = 4
"""Multiple of the error of torch's own call: other kernels sum in another order, and round once or twice more."""

LOSS_SCALE = 2.0**14
"""Gradient that flows into a loss, as in float16 training: gradients of a mean over a batch underflow in float16."""


@dataclass(frozen=True)
class Expected:
    """The correct outputs, the gradient that flows into them, and the correct gradients of `Problem.leaves`.

    allowed: the largest relative error that is accepted.
    """

    outputs: tuple[Tensor, ...]
    grad_output: Tensor | None
    grads: tuple[Tensor, ...]
    allowed: float


def outputs_of(output: Output) -> tuple[Tensor, ...]:
    return (output,) if isinstance(output, Tensor) else tuple(output)


def leaves_of(problem: Problem) -> list[Tensor]:
    return [getattr(problem, name) for name in problem.leaves]


def expected(problem: Problem) -> Expected:
    """The correct result of `problem`, computed in float64."""
    twin = problem.in_float64()
    outputs = outputs_of(twin.ours("torch") if problem.random else twin.eager())
    allowed = TOLERANCE[problem.dtype]
    if problem.rounds_as_torch:
        own = max(map(relative_error, outputs_of(problem.eager()), outputs))
        allowed = min(allowed, max(MARGIN * own, torch.finfo(problem.dtype).eps))
    if not problem.leaves:
        return Expected(outputs, None, (), allowed)
    out = outputs[0]
    grad_output = torch.full_like(out, LOSS_SCALE) if out.dim() == 0 else problem.normal(*out.shape).double()
    grads = torch.autograd.grad(out, leaves_of(twin), grad_output)
    return Expected((out.detach(),), grad_output, grads, allowed)


def relative_error(found: Tensor, right: Tensor) -> float:
    """|found - right| / |right|, over all elements together."""
    return float((found.double() - right).norm() / right.norm().clamp(min=1e-30))


def complaint(problem: Problem, provider: Provider, right: Expected, draws_its_own: bool = False) -> str | None:
    """What is wrong with the provider's result, as text; None if it is correct.

    Args:
        draws_its_own: masks and noise come from the provider's own stream: only their distribution is checked.
    """
    for tensor in (*right.outputs, *right.grads):
        poison(tensor)
    found = outputs_of(provider(problem))
    values = tuple(tensor.detach() for tensor in found)
    if draws_its_own and problem.random:
        said = distribution_complaint(problem, values, outputs_of(provider(problem)))
    else:
        said = _compare("output", values, right.outputs, right.allowed, problem.dtype)
    if said or right.grad_output is None:
        return said
    grad_output = right.grad_output.to(found[0].dtype)
    for _ in range(2):  # twice, as the clock does: a backward must not corrupt its saved tensors
        grads = torch.autograd.grad(found[0], leaves_of(problem), grad_output, retain_graph=True)
        said = said or _compare("gradient", grads, right.grads, right.allowed, problem.dtype)
    return said


def poison(like: Tensor) -> None:
    """Leave nan (or -1) in freed memory of this size, so that an element that is never written is likely to show."""
    value = float("nan") if like.is_floating_point() else -1
    for dtype in {like.dtype, torch.float32, torch.bfloat16} if like.is_floating_point() else {like.dtype}:
        torch.full(like.shape, value, dtype=dtype, device=like.device)


def _compare(
    what: str, found: tuple[Tensor, ...], right: tuple[Tensor, ...], allowed: float, dtype: torch.dtype
) -> str | None:
    for i, (f, r) in enumerate(zip(found, right, strict=True)):
        if f.shape != r.shape:
            return f"{what} {i} is {list(f.shape)}, not {list(r.shape)}"
        if not r.is_floating_point():
            if not torch.equal(f.long(), r.long()):
                return f"{what} {i} has {int((f.long() != r.long()).sum())} wrong integers"
            continue
        error = relative_error(f, r)
        if not error <= allowed:
            return f"{what} {i} has a relative error of {error:.1e}, allowed are {allowed:.0e} in {dtype}"
    return None


def distribution_complaint(problem: Problem, found: tuple[Tensor, ...], again: tuple[Tensor, ...]) -> str | None:
    """Checks that masks are splits of the right size, that noise is standard normal, and that a second draw differs."""
    if torch.equal(found[0], again[0]):
        return "two draws are the same"
    if isinstance(problem, RandomMask):
        return _mask_complaint(problem, *found)
    assert isinstance(problem, AddNoise | DiffusePatches)
    alpha_bar = problem.alpha_bar.double()[:, None, None]
    noise = found[0].double() - alpha_bar.sqrt() * problem.signal().detach().double()
    residual = noise / (1 - alpha_bar).sqrt()
    count, mean, var = residual.numel(), float(residual.mean()), float(residual.var())
    if not abs(mean) < 5 / count**0.5 + 1e-3:
        return f"the noise has mean {mean:.2e}"
    if not abs(var - 1) < 5 * (2 / count) ** 0.5 + 1e-3:
        return f"the noise has variance {var:.4f}"
    return None


def _mask_complaint(problem: RandomMask, ids_keep: Tensor, mask: Tensor) -> str | None:
    """Checks that ids_keep `[B, K]` are the positions where mask `[B, N]` is 0, each once."""
    kept = (mask == 0).nonzero()[:, 1].view(problem.batch, -1) if problem.batch else ids_keep
    if kept.shape != (problem.batch, problem.case.kept) or not torch.equal(kept, ids_keep.sort(dim=1).values):
        return "the ids kept are not the positions left unmasked"
    return None
