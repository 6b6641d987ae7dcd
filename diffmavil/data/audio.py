"""Log-mel filterbanks as Kaldi computes them, batched in torch.

Equal to `torchaudio.compliance.kaldi.fbank(htk_compat=True, window_type="hanning", dither=0, use_energy=False)` with
its other defaults: 25 ms windows every 10 ms without padding, mean removed and pre-emphasis 0.97 per window, power
spectrum of 512 points, triangular mel filters from 20 Hz to half the sampling rate, natural logarithm.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor, nn

from diffmavil.config import AudioConfig, ModelConfig, require

_PRE_EMPHASIS = 0.97
_LOWEST = 20.0
_FLOOR = torch.finfo(torch.float32).eps


@lru_cache(maxsize=8)
def mel_bank(mels: int, sample_rate: int, device: torch.device | None = None) -> Tensor:
    """Triangular filters, equally spaced and half overlapping on the mel scale: float32 `[fft // 2 + 1, mels]`.

    Made once on the host for each `device` (None: the host): a copy in each step would wait for the step before it.
    In float32 and in Kaldi's order of operations: the filters are narrow, and the rounding of their corners shows in
    the fourth digit of a quiet bin.
    """
    fft = fft_size(sample_rate)
    low, high = (1127.0 * math.log(1.0 + hertz / 700.0) for hertz in (_LOWEST, sample_rate / 2))
    step = (high - low) / (mels + 1)
    index = torch.arange(mels)
    left, centre, right = (low + (index + k) * step for k in range(3))
    hertz = rearrange(sample_rate / fft * torch.arange(fft // 2), "k -> k 1")
    mel = 1127.0 * (1.0 + hertz / 700.0).log()
    bank = torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clamp_min(0.0)
    # The bin at half the sampling rate has no weight.
    return nn.functional.pad(bank, (0, 0, 0, 1)).to(device)


def fft_size(sample_rate: int) -> int:
    """The window of 25 ms rounded up to a power of two."""
    return 1 << (sample_rate // 40 - 1).bit_length()


def frames_in(samples: Tensor, sample_rate: int) -> Tensor:
    """How many whole 25 ms windows, one every 10 ms, `samples` (int64) hold."""
    window, hop = sample_rate // 40, sample_rate // 100
    return torch.where(samples >= window, 1 + (samples - window) // hop, 0)


def log_mel(wave: Tensor, mels: int, sample_rate: int = 16_000) -> Tensor:
    """Log-mel energies, not normalised.

    Args:
        wave: float32 `[B, S]`, S at least 25 ms.
        mels: filters, M.

    Returns:
        float32 `[B, F, M]`, F = 1 + (S - 25 ms) // 10 ms. Each row depends on its own wave alone, bit for bit.
    """
    window = sample_rate // 40
    require(wave.ndim == 2 and wave.shape[-1] >= window, "wave", tuple(wave.shape), f"[B, S] with S >= {window}")
    with torch.no_grad(), torch.autocast(wave.device.type, enabled=False):
        # On a CPU clip by clip: the frames of one, of which every sample stands in two or three, stay in the cache.
        parts = wave.float().split(1 if wave.device.type == "cpu" else len(wave))
        energy = [_filter(_power(part, sample_rate), mel_bank(mels, sample_rate, part.device)) for part in parts]
        return torch.cat(energy).clamp_min_(_FLOOR).log_()


def _power(wave: Tensor, sample_rate: int) -> Tensor:
    """Power spectra of the windows of a wave: `[B, S] -> [B, F, fft // 2 + 1]`."""
    window, hop = sample_rate // 40, sample_rate // 100
    frames = wave.unfold(-1, window, hop)
    frames = frames - frames.mean(-1, keepdim=True)
    before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    shape = torch.hann_window(window, periodic=False, device=wave.device)
    return torch.fft.rfft((frames - _PRE_EMPHASIS * before) * shape, n=fft_size(sample_rate)).abs().square()


def moments(spec: Tensor) -> tuple[int, float, float]:
    """How many values of a log-mel `[..., F, M]` count, their sum, and the sum of their squares, as float64.

    Frames of digital silence, at the floor in every filter, do not: one silent file would move the mean of a hundred.
    """
    sounding = spec[(spec > math.log(_FLOOR) + 1e-4).any(-1)].double()
    return sounding.numel(), float(sounding.sum()), float(sounding.square().sum())


def _filter(power: Tensor, bank: Tensor) -> Tensor:
    """`[B, F, K]` times `[K, M]`, each row's bits independent of the others: on a CPU B is 1."""
    if power.is_cuda:
        # TF32, where a trainer allows it, keeps three digits: too few for a logarithm near silence.
        return (power.double() @ bank.double()).float()
    return power @ bank


def make_log_mel(model: ModelConfig) -> LogMel | NoLogMel:
    """What makes the audio encoder's input from waveforms; of a model without one an empty tensor."""
    return LogMel(model.audio) if model.hears else NoLogMel()


class NoLogMel(nn.Module):
    """Stands for `LogMel` where nothing hears."""

    def forward(self, wave: Tensor, valid: Tensor) -> Tensor:
        """`wave` `[B, 0]` -> `[B, 0, 0]`."""
        return rearrange(wave, "b s -> b s 1")[..., :0]


class LogMel(nn.Module):
    """Waveforms to the audio encoder's input: `(log_mel - mean) / (2 std)`.

    Past the end of the sound it is 0, the mean of the dataset; with `padding="zero"` it is what a log-mel of 0 becomes.
    """

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        known = config.mean is not None and config.std is not None
        require(known, "audio.mean, audio.std", (config.mean, config.std), "numbers (see resolve_audio_stats)")
        self.config = config

    def forward(self, wave: Tensor, valid: Tensor) -> Tensor:
        """`wave` float32 `[B, S]`, `valid` int64 `[B]` real samples of each -> float32 `[B, F, M]`."""
        c = self.config
        assert c.mean is not None
        assert c.std is not None
        require(wave.shape[-1] == c.samples, "wave", tuple(wave.shape), f"[B, {c.samples}]")
        spec = (log_mel(wave, c.mels, c.sample_rate) - c.mean) / (2 * c.std)
        frame = torch.arange(c.frames, device=wave.device)
        real = frame < rearrange(frames_in(valid, c.sample_rate), "b -> b 1")
        padding = 0.0 if c.padding == "mean" else -c.mean / (2 * c.std)
        return spec.masked_fill(~rearrange(real, "b f -> b f 1"), padding)
