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

from diffmavil.config import AudioConfig, require

_PRE_EMPHASIS = 0.97
_LOWEST = 20.0
_FLOOR = torch.finfo(torch.float32).eps


def _mel(hertz: float) -> float:
    return 1127.0 * math.log(1.0 + hertz / 700.0)


@lru_cache(maxsize=8)
def mel_bank(mels: int, sample_rate: int) -> Tensor:
    """Triangular filters, equally spaced and half overlapping on the mel scale: float32 `[fft // 2 + 1, mels]`."""
    fft = fft_size(sample_rate)
    low, high = _mel(_LOWEST), _mel(sample_rate / 2)
    step = (high - low) / (mels + 1)
    left = low + step * torch.arange(mels, dtype=torch.float64)
    bins = torch.tensor([_mel(sample_rate / fft * k) for k in range(fft // 2)], dtype=torch.float64)
    rise = (rearrange(bins, "k -> k 1") - left) / step
    bank = torch.minimum(rise, 2.0 - rise).clamp_min(0.0)
    # Kaldi gives the Nyquist bin no weight.
    return nn.functional.pad(bank, (0, 0, 0, 1)).float()


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
    window, hop = sample_rate // 40, sample_rate // 100
    require(wave.ndim == 2 and wave.shape[-1] >= window, "wave", tuple(wave.shape), f"[B, S] with S >= {window}")
    with torch.no_grad(), torch.autocast(wave.device.type, enabled=False):
        frames = wave.float().unfold(-1, window, hop)
        frames = frames - frames.mean(-1, keepdim=True)
        before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
        shape = torch.hann_window(window, periodic=False, device=wave.device)
        power = torch.fft.rfft((frames - _PRE_EMPHASIS * before) * shape, n=fft_size(sample_rate)).abs().square()
        # TF32, where a trainer allows it, keeps three digits: too few for a logarithm near silence.
        exact = torch.float64 if power.is_cuda else torch.float32
        bank = mel_bank(mels, sample_rate).to(power.device, exact)
        # One product for each clip, so that its bits do not depend on what else is in the batch.
        energy = torch.stack([clip.to(exact) @ bank for clip in power]).float()
        return energy.clamp_min(_FLOOR).log()


class LogMel(nn.Module):
    """Waveforms to the audio encoder's input: `(log_mel - mean) / (2 std)`, zero past the end of the sound."""

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
        return spec.masked_fill(~rearrange(real, "b f -> b f 1"), 0.0)
