"""Linear probe: l2-regularised logistic regression on standardised, frozen features.

One class to a clip: multinomial, loss = mean cross-entropy + l2/2 |W|^2. Several classes to a clip: one logistic
regression for each class, loss = mean over clips of the summed binary cross-entropies + l2/2 |W|^2. Biases are not
regularised. Convex; solved in float64 with full-batch L-BFGS from zero, so the result has no random part.

l2 is chosen from `L2_GRID` by the score (of equals, by the log-loss) on a fifth of the *training* clips, the same clips
for every feature and model; then the probe is fitted again on all of them. Held-out clips take part in neither.
Choosing by the log-loss alone would sell weak features short: an untrained model's probe then often stays at chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from diffmavil.config import require
from diffmavil.evaluation.labels import score
from diffmavil.evaluation.result import Score

L2_GRID = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4)
_VALIDATION_SHARE = 0.2
_DEFAULT_L2 = 1e-2
_MAX_ITERATIONS = 300
_COARSE = 1e-4
"""Largest gradient at which a fit that only chooses l2 ends: its scores no longer change, in a quarter of the steps."""


class Standardise(NamedTuple):
    """x -> (x - mean) / std, measured on the clips that the probe is fitted on."""

    mean: Tensor
    std: Tensor

    @classmethod
    def measure(cls, x: Tensor) -> Standardise:
        # A feature that varies by no more than float32 rounding is constant; dividing by it would make it noise.
        floor = 1e-6 * x.abs().max().clamp(min=1e-30)
        std = x.std(dim=0, correction=0)
        return cls(x.mean(dim=0), torch.where(std > floor, std, torch.inf))

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe."""

    standardise: Standardise
    weight: Tensor
    """`[D, C]` float64."""
    bias: Tensor
    """`[C]` float64."""
    l2: float
    kind: Score

    def __call__(self, x: Tensor) -> Tensor:
        """Probabilities `[M, C]` float64 of features `[M, D]`."""
        return _probabilities(self.standardise(x.double()) @ self.weight + self.bias, self.kind)


def fit_probe(x: Tensor, target: Tensor, kind: Score, *, seed: int = 0) -> LinearProbe:
    """Choose l2 and fit.

    Args:
        x: `[N, D]` features of the training clips.
        target: `[N, C]` bool; each row carries a class, exactly one when kind is "accuracy".
        seed: which clips validate l2. When no class has two clips, none do, and l2 is 1e-2.
    """
    require(x.dim() == 2, "x.shape", tuple(x.shape), "[N, D]")
    require(bool(target.any(dim=1).all()), "target", "a row without a class", "at least one class in each row")
    x = x.double()
    validation = stratified_split(target, seed)
    l2 = _choose_l2(x, target, kind, validation) if validation.any() else _DEFAULT_L2
    standardise = Standardise.measure(x)
    weight, bias = _solve(standardise(x), target, kind, l2)
    return LinearProbe(standardise, weight, bias, l2, kind)


def stratified_split(target: Tensor, seed: int) -> Tensor:
    """`[N]` bool on the CPU: a fifth of each class's clips, at least one where there are two, never all.

    A clip with several classes counts for its rarest; of another one of them all clips may so be taken.
    """
    counts = target.sum(dim=0).cpu()
    rarest = torch.where(target.cpu(), counts, counts.max() + 1).argmin(dim=1)
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(seed))
    chosen = torch.zeros(len(target), dtype=torch.bool)
    for index in range(target.shape[1]):
        members = order[rarest[order] == index]
        if len(members) >= 2:
            chosen[members[: max(1, round(_VALIDATION_SHARE * len(members)))]] = True
    return chosen


def _choose_l2(x: Tensor, target: Tensor, kind: Score, validation: Tensor) -> float:
    validation = validation.to(x.device)
    standardise = Standardise.measure(x[~validation])
    fit_x, check_x = standardise(x[~validation]), standardise(x[validation])
    fit_target, check_target = target[~validation], target[validation]

    def worth(l2: float) -> tuple[float, float]:
        weight, bias = _solve(fit_x, fit_target, kind, l2, _COARSE)
        logits = check_x @ weight + bias
        return score(_probabilities(logits, kind), check_target, kind), -_log_loss(logits, check_target, kind).item()

    return max(L2_GRID, key=worth)


def _solve(x: Tensor, target: Tensor, kind: Score, l2: float, tolerance: float = 1e-7) -> tuple[Tensor, Tensor]:
    """Weight `[D, C]` and bias `[C]` that minimise the regularised loss.

    Features of a network are far from independent, and L-BFGS then needs thousands of steps. So it works on W = A V,
    where A turns to the principal axes of x and scales each by the loss's curvature along it: some tens of steps.
    """
    variance, axes = torch.linalg.eigh(x.T @ x / len(x))
    scale = (variance.clamp(min=0) / target.shape[1] + l2).rsqrt()
    turned = x @ (axes * scale)
    v = x.new_zeros(x.shape[1], target.shape[1], requires_grad=True)
    bias = x.new_zeros(target.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [v, bias],
        max_iter=_MAX_ITERATIONS,
        history_size=10,
        tolerance_grad=tolerance,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )
    penalty = l2 / 2 * rearrange(scale.square(), "d -> d 1")  # the axes are orthonormal: |W| = |scale V|

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = _log_loss(turned @ v + bias, target, kind) + (penalty * v.square()).sum()
        value.backward()
        return value

    optimizer.step(loss)
    return (axes * scale) @ v.detach(), bias.detach()


def _probabilities(logits: Tensor, kind: Score) -> Tensor:
    return logits.softmax(dim=1) if kind == "accuracy" else logits.sigmoid()


def _log_loss(logits: Tensor, target: Tensor, kind: Score) -> Tensor:
    target = target.to(logits.dtype)
    if kind == "accuracy":
        return F.cross_entropy(logits, target)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(logits)
