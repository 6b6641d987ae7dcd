"""Noise schedules against their papers, timesteps, and DDIM against cases with a known answer."""

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch

from diffmavil.config import DiffusionConfig
from diffmavil.model.diffusion import (
    TimestepEmbedding,
    alpha_bars,
    ddim_sample,
    ddim_timesteps,
    reached_by,
    sample_timesteps,
)

Schedule = Literal["linear", "cosine"]
ALL = range(1, 1001)
SCHEDULES: tuple[Schedule, ...] = ("linear", "cosine")
CPU = torch.device("cpu")


def test_linear_schedule_is_that_of_ddpm() -> None:
    expected = [1.0]
    for t in range(1000):
        beta = 1e-4 + (0.02 - 1e-4) * t / 999
        expected.append(expected[-1] * (1 - beta))
    torch.testing.assert_close(alpha_bars(DiffusionConfig(schedule="linear")), torch.tensor(expected).double())


def test_cosine_schedule_is_that_of_improved_ddpm() -> None:
    def f(t: float) -> float:
        return math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    bars = alpha_bars(DiffusionConfig(schedule="cosine"))
    for t in (0, 1, 250, 500, 900, 999):
        assert bars[t].item() == pytest.approx(f(t) / f(0), rel=1e-9)
    assert (bars[1000] / bars[999]).item() == pytest.approx(1 - 0.999)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [2, 10, 100, 4000])
def test_every_schedule_falls_from_clean_to_noise(schedule: Schedule, steps: int) -> None:
    bars = alpha_bars(DiffusionConfig(schedule=schedule, steps=steps))
    assert len(bars) == steps + 1
    assert bars[0] == 1
    assert (bars[1:] < bars[:-1]).all()
    assert 0 < bars[-1] < 1e-3


@pytest.mark.parametrize("times", [range(1, 11), range(5, 15)], ids=["all", "the noisier"])
def test_timesteps_are_uniform_from_the_first_to_the_last(times: range) -> None:
    t = sample_timesteps(20_000, times, seed=3, offset=0, device=CPU)
    counts = t.bincount(minlength=times.stop)
    assert len(counts) == times.stop
    assert not counts[: times.start].any()
    chi_square = ((counts[times.start :] - 2000.0) ** 2 / 2000).sum()
    assert chi_square < 27.9  # 99.9 % point for 9 degrees of freedom


@pytest.mark.parametrize("first", [1, 4])
def test_timesteps_are_drawn_as_min_snr_weighs_their_losses(first: int) -> None:
    """Hang et al. 2023 weigh the error of the predicted patch by min(SNR, 5)."""
    config = DiffusionConfig(steps=10, first_step=first, draws="min_snr")
    kept = alpha_bars(config)
    weights = [min(5.0, (kept[t] / (1 - kept[t])).item()) for t in config.times]
    reached = reached_by(config)
    assert reached is not None
    t = sample_timesteps(50_000, config.times, seed=3, offset=0, device=CPU, reached=reached.float())
    found = t.bincount(minlength=11)
    assert len(found) == 11
    assert not found[:first].any()
    for share, weight in zip((found[first:] / 50_000).tolist(), weights, strict=True):
        expected = weight / sum(weights)
        assert share == pytest.approx(expected, abs=4 * (expected / 50_000) ** 0.5 + 1e-6)


def test_settings_of_diffused_patches_that_change_nothing_are_told() -> None:
    changed = DiffusionConfig("mask_token", first_step=500, draws="min_snr", token_share=0.5)
    assert changed.idle == ["draws", "token_share"]
    assert DiffusionConfig("mask_token", first_step=500).idle == []
    assert replace(changed, corruption="diffusion").idle == []


def test_an_exponent_below_one_leaves_more_of_the_patch() -> None:
    usual, raised = alpha_bars(DiffusionConfig()), alpha_bars(DiffusionConfig(exponent=0.8))
    torch.testing.assert_close(raised, usual**0.8)
    assert (raised[1:] > usual[1:]).all()


def test_timesteps_belong_to_the_sample() -> None:
    whole = sample_timesteps(8, ALL, seed=3, offset=40, device=CPU)
    assert torch.equal(whole[5:], sample_timesteps(3, ALL, seed=3, offset=45, device=CPU))
    assert not torch.equal(whole, sample_timesteps(8, ALL, seed=4, offset=40, device=CPU))


@pytest.mark.parametrize(("first", "last", "samples"), [(1, 1000, 1), (1, 1000, 8), (1, 1000, 1000), (500, 1000, 8)])
def test_ddim_timesteps_span_the_process(first: int, last: int, samples: int) -> None:
    times = ddim_timesteps(range(first, last + 1), samples)
    assert times[0] == last
    assert len(set(times)) == len(times) == samples
    assert times == sorted(times, reverse=True)
    assert times[-1] == (first if samples > 1 else last)


@pytest.mark.parametrize("samples", [0, 11])
def test_ddim_refuses_impossible_step_counts(samples: int) -> None:
    with pytest.raises(ValueError, match=rf"sample_steps={samples}: must be in 1\.\.10"):
        ddim_timesteps(range(1, 11), samples)


def test_ddim_finds_the_patch_when_the_prediction_is_right() -> None:
    truth, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    asked: list[int] = []

    def predict(x_t: torch.Tensor, t: int) -> torch.Tensor:
        asked.append(t)
        return truth

    bars = alpha_bars(DiffusionConfig()).float()
    torch.testing.assert_close(ddim_sample(predict, noise, bars, ALL, 5), truth)
    assert asked == ddim_timesteps(ALL, 5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddim_samples_a_gaussian_from_its_exact_posterior(schedule: Schedule) -> None:
    """For data N(m, s^2) the best x_0-prediction is known, and DDIM must carry N(0, 1) to N(m, s^2)."""
    mean, std = 2.0, 0.5
    bars = alpha_bars(DiffusionConfig(schedule=schedule)).float()
    noise = torch.special.ndtri((torch.arange(2000) + 0.5) / 2000)

    def predict(x_t: torch.Tensor, t: int) -> torch.Tensor:
        signal, noise_power = bars[t].sqrt(), 1 - bars[t]
        gain = signal * std**2 / (bars[t] * std**2 + noise_power)
        return mean + gain * (x_t - signal * mean)

    samples = ddim_sample(predict, noise, bars, ALL, 200)
    assert samples.mean().item() == pytest.approx(mean, abs=0.05)
    assert samples.std().item() == pytest.approx(std, abs=0.05)


def test_timestep_embedding_starts_from_sines_and_cosines() -> None:
    embedding = TimestepEmbedding(8)
    seen: list[torch.Tensor] = []
    embedding.mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    assert embedding(torch.tensor([1, 700])).shape == (2, 8)
    angles = torch.tensor([[t / 10_000 ** (i / 4) for i in range(4)] for t in (1, 700)])
    torch.testing.assert_close(seen[0], torch.cat([angles.sin(), angles.cos()], dim=1), rtol=0, atol=1e-4)
