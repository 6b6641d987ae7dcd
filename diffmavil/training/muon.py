# pyright: reportPrivateImportUsage=false
"""Muon (Jordan et al. 2024): momentum whose update of a matrix is made orthogonal, so that its directions grow alike.

The arithmetic of `torch.optim.Muon`, but matrices of one shape are computed together: a model of twelve blocks has some
150 in eight shapes, and each takes fifteen launches. It computes in float32 where bfloat16 would be slower, and skips
a step on the device, as torch's fused optimisers do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from diffmavil.training.precision import has_bf16_units

_A, _B, _C = 3.4445, -4.7750, 2.0315
"""Of the quintic x -> a x + b x^3 + c x^5, whose slope at zero is as steep as it can be (Jordan et al. 2024)."""
_EPS = 1e-7
_ADAMW = 0.2
"""The size of an update of AdamW's, root mean square, as of the learning rate (Liu et al. 2025, section 2.2)."""


class Muon(torch.optim.Optimizer):
    """For matrices `[M, N]` alone.

    Updates have the size of AdamW's, so that one learning rate serves both: 0.2 sqrt(max(M, N)) of an orthogonal one
    (Liu et al. 2025, equation 4). With the attribute `found_inf`, a scalar on the device, other than 0 a step changes
    nothing.

    Args:
        params: parameters, or groups of them with `weight_decay`.
        lr: learning rate.
        weight_decay: decoupled, as of AdamW.
        momentum: Nesterov's; what of the average stays at each step.
        ns_steps: Newton-Schulz iterations.

    Raises:
        ValueError: a parameter that is no matrix.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        ns_steps: int = 5,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "ns_steps": ns_steps})
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2:
                    raise ValueError(f"params: must be matrices, got one of shape {list(p.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            if not self.state[p]:  # also of a step that is skipped, or a checkpoint before the first would lack them
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None and _read_by_host(found_inf):
            if found_inf:
                return loss
            found_inf = None
        for group in self.param_groups:
            alike: dict[Any, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.shape, p.device, p.dtype].append(p)
            for params in alike.values():
                self._update(params, group, found_inf)
        return loss

    def _update(self, params: list[Tensor], group: dict[str, Any], found_inf: Tensor | None) -> None:
        """Of parameters of one shape."""
        kept = [self.state[p]["momentum_buffer"] for p in params]
        grads = [p.grad for p in params if p.grad is not None]
        momentum, decay, size = group["momentum"], group["lr"] * group["weight_decay"], group["lr"] * _ADAMW
        fresh, scale, size = 1 - momentum, 1 - decay, -size * max(params[0].shape) ** 0.5
        if found_inf is not None:
            taken = 1 - found_inf
            grads = [torch.where(found_inf > 0, 0, grad) for grad in grads]  # nothing times infinity is no number
            fresh, scale, size = fresh * taken, 1 - decay * taken, size * taken
        change = torch._foreach_sub(grads, kept)
        torch._foreach_mul_(change, fresh)
        torch._foreach_add_(kept, change)
        ahead = torch._foreach_lerp(grads, kept, momentum)
        update = orthogonal(torch.stack(ahead), group["ns_steps"]).to(params[0].dtype) * size
        torch._foreach_mul_(params, scale)
        torch._foreach_add_(params, list(update))


def orthogonal_flops(rows: int, columns: int, steps: int) -> int:
    """Of `orthogonal` for one matrix: in each step its product with its transpose, that squared, that times it."""
    short, long = min(rows, columns), max(rows, columns)
    return steps * (4 * short**2 * long + 2 * short**3)


def _read_by_host(flag: Tensor) -> bool:
    """Whether nothing waits where the host looks at it."""
    return flag.device.type == "cpu"


def orthogonal(x: Tensor, steps: int) -> Tensor:
    """The nearest (semi-)orthogonal matrices to `[..., M, N]`, roughly: singular values between 0.7 and 1.2.

    Small ones, as part of the root of the sum of all squares, are reached by enough steps alone: each makes them 3.4
    times as large. In bfloat16 where the device computes in it, else in the type of `x`.
    """
    wide = x.shape[-2] <= x.shape[-1]
    if has_bf16_units(x.device):
        x = x.bfloat16()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=_EPS)
    shape = x.shape
    x = (x if wide else x.mT).reshape(-1, min(shape[-2:]), max(shape[-2:]))
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return (x if wide else x.mT).reshape(shape)
