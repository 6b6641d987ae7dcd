"""DDPM noise schedules, timestep embedding, and deterministic DDIM sampling.

The forward process is x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps (Ho et al. 2020), with t in 1..T and
alpha_bar_0 = 1. The network predicts x_0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn

from diffmavil.config import DiffusionConfig, require
from maekernels import add_noise

_MAX_BETA = 0.999  # as Nichol and Dhariwal 2021: no step destroys everything
_MIN_SNR_GAMMA = 5.0  # as Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy"


def alpha_bars(config: DiffusionConfig) -> Tensor:
    """Share of signal power left after t steps, alpha_bar_0..alpha_bar_T: `[T + 1]` float64.

    linear: betas from 1e-4 to 0.02 at T = 1000; for other T both ends are multiplied by 1000 / T, so that the end of
    the process is as noisy. cosine: alpha_bar_t = f(t) / f(0), f(t) = cos^2((t/T + s) / (1 + s) * pi/2), s = 0.008.
    Single betas are limited to 0.999 in both. The result is raised to `config.exponent`.
    """
    steps = config.steps
    if config.schedule == "linear":
        scale = 1000 / steps
        betas = torch.linspace(1e-4 * scale, 0.02 * scale, steps, dtype=torch.float64)
    else:
        t = torch.arange(steps + 1, dtype=torch.float64) / steps
        f = ((t + 0.008) / 1.008 * math.pi / 2).cos() ** 2
        betas = 1 - f[1:] / f[:-1]
    kept = torch.cumprod(1 - betas.clamp(max=_MAX_BETA), dim=0)
    # transformers 5, once imported, gives torch.linspace real memory where models are made without any.
    return (torch.cat([kept.new_ones(1), kept]) ** config.exponent).to(torch.get_default_device())


def reached_by(config: DiffusionConfig) -> Tensor | None:
    """Share of draws at each timestep of `config.times` or an earlier one: `[len(times)]` float64; None: even ones."""
    if config.draws == "even":
        return None
    kept = alpha_bars(config)[config.times.start :]
    weights = (kept / (1 - kept)).clamp(max=_MIN_SNR_GAMMA)
    return weights.cumsum(0) / weights.sum()


def sample_uniform(batch: int, *, seed: int, offset: int, device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1] for samples offset..offset + batch - 1: `[batch]` float32."""
    zeros = torch.zeros(batch, 1, device=device)
    return torch.special.ndtr(add_noise(zeros, zeros[:, 0], seed, offset)[:, 0])


def sample_timesteps(
    batch: int, times: range, *, seed: int, offset: int, device: torch.device, reached: Tensor | None = None
) -> Tensor:
    """t of `times` for samples offset..offset + batch - 1: `[batch]` int64, a function of (seed, sample).

    reached: float32 `[len(times)]`, as of `reached_by`; None: all are drawn as often.
    """
    uniform = sample_uniform(batch, seed=seed, offset=offset, device=device)
    drawn = (uniform * len(times)).long() if reached is None else torch.searchsorted(reached, uniform, right=True)
    return times.start + drawn.clamp(max=len(times) - 1)


def ddim_timesteps(times: range, sample_steps: int) -> list[int]:
    """`sample_steps` distinct timesteps from the last of `times` down to the first, evenly spread; one is the last."""
    require(1 <= sample_steps <= len(times), "sample_steps", sample_steps, f"in 1..{len(times)}")
    if sample_steps == 1:
        return [times[-1]]
    return [round(times[-1] - (len(times) - 1) * i / (sample_steps - 1)) for i in range(sample_steps)]


def ddim_sample(
    predict: Callable[[Tensor, int], Tensor], noise: Tensor, alpha_bar: Tensor, times: range, sample_steps: int
) -> Tensor:
    """Denoise from pure noise with the deterministic sampler of Song et al. 2021 (eta = 0).

    Args:
        predict: (x_t, t) -> predicted x_0, same shape.
        noise: x_T, standard normal, any shape.
        alpha_bar: `[T + 1]`, as `alpha_bars` gives it.
        times: the timesteps that `predict` was trained for, up to T.
        sample_steps: calls of `predict`, at most as many as there are `times`.

    Returns:
        The last predicted x_0, float32.
    """
    chosen = ddim_timesteps(times, sample_steps)
    x_t = noise.float()
    for now, following in zip(chosen, [*chosen[1:], 0], strict=True):
        x_0 = predict(x_t, now).float()
        eps = (x_t - alpha_bar[now].sqrt() * x_0) / (1 - alpha_bar[now]).sqrt()
        x_t = alpha_bar[following].sqrt() * x_0 + (1 - alpha_bar[following]).sqrt() * eps
    return x_t


def timestep_frequencies(width: int) -> Tensor:
    """Of the sines and cosines that tell t: `[width / 2]` float32."""
    half = width // 2
    return torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32) / half)


class TimestepEmbedding(nn.Module):
    """t `[B]` -> `[B, D]`: sines and cosines of t at D/2 frequencies, then Linear, SiLU, Linear."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", timestep_frequencies(width), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        angles = rearrange(t.float(), "b -> b 1") * self.frequencies
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=1))
