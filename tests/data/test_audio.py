"""Log-mel against torchaudio's Kaldi fbank."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import Tensor

from diffmavil.config import AudioConfig
from diffmavil.data.audio import LogMel, frames_in, log_mel

SAMPLES = AudioConfig(frames=96, mels=64).samples
CONFIG = AudioConfig(frames=96, mels=64, mean=-5.0, std=4.0)


def kaldi() -> ModuleType:
    """`torchaudio.compliance.kaldi`, the oracle.

    Its compiled part does not load beside every torch and is not needed: a stand-in takes its place.
    """
    if importlib.util.find_spec("torchaudio") is None:
        pytest.skip("torchaudio is not installed")
    name = "torchaudio._extension"
    if name not in sys.modules:
        stand_in = ModuleType(name)
        stand_in.__dict__.update(
            _IS_TORCHAUDIO_EXT_AVAILABLE=False, _IS_ALIGN_AVAILABLE=False, fail_if_no_align=lambda function: function
        )
        sys.modules[name] = stand_in
    return importlib.import_module("torchaudio.compliance.kaldi")


def waves() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(SAMPLES, generator=generator)
    time = torch.arange(SAMPLES) / 16_000
    return {
        "noise": 0.1 * noise,
        "quiet-noise": 1e-4 * noise,
        "loud-noise": noise.clamp(-1, 1),
        "silence": torch.zeros(SAMPLES),
        "constant": torch.full((SAMPLES,), 0.5),
        "tone": 0.5 * torch.sin(2 * torch.pi * 440 * time),
        "chirp": 0.5 * torch.sin(2 * torch.pi * 4000 * time**2),
        "half-silent": torch.where(time < time[-1] / 2, 0.1 * noise, 0),
    }


@pytest.mark.parametrize("mels", [64, 80, 128])
def test_equals_torchaudio(mels: int) -> None:
    oracle = kaldi()
    names, batch = list(waves()), torch.stack(list(waves().values()))
    ours = log_mel(batch, mels)
    for name, wave, spec in zip(names, batch, ours, strict=True):
        reference = oracle.fbank(
            wave[None], htk_compat=True, sample_frequency=16_000, use_energy=False, window_type="hanning",
            num_mel_bins=mels, dither=0.0, frame_shift=10,
        )  # fmt: skip
        assert spec.shape == reference.shape == (96, mels)
        assert (spec - reference).abs().max() <= 1e-4, name


def test_bits_do_not_depend_on_the_batch() -> None:
    batch = torch.stack(list(waves().values()))
    whole = log_mel(batch, 128)
    for size in (1, 2, 3, 5):
        parts = torch.cat([log_mel(part, 128) for part in batch.split(size)])
        assert torch.equal(parts, whole)


@pytest.mark.parametrize("samples", [0, 1, 399, 400, 559, 560, 561, SAMPLES])
def test_frames_in_counts_whole_windows(samples: int) -> None:
    expected = len(range(0, samples - 399, 160))
    assert int(frames_in(torch.tensor(samples), 16_000)) == expected


def test_normalises_and_zeroes_what_is_past_the_sound() -> None:
    batch = torch.stack(list(waves().values()))[:4]
    valid = torch.tensor([SAMPLES, 8000, 400, 0])
    spec = LogMel(CONFIG)(batch, valid)
    assert spec.shape == (4, 96, 64)
    raw = (log_mel(batch, 64) + 5.0) / 8.0
    for row, frames in enumerate([96, 48, 1, 0]):
        assert torch.equal(spec[row, :frames], raw[row, :frames])
        assert not spec[row, frames:].any()


def test_padding_does_not_reach_the_valid_frames() -> None:
    noise = waves()["noise"]
    padded = torch.where(torch.arange(SAMPLES) < 8000, noise, 0)
    valid = torch.tensor([8000])
    layer = LogMel(CONFIG)
    assert torch.equal(layer(padded[None], valid), layer(noise[None], valid))


def test_float32_under_autocast() -> None:
    batch = torch.stack(list(waves().values()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(log_mel(batch, 64), log_mel(batch, 64).float())
        inside = log_mel(batch, 64)
    assert torch.equal(inside, log_mel(batch, 64))


@pytest.mark.parametrize("shape", [(16_000,), (2, 399), (1, 2, 16_000)])
def test_bad_waves(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="wave="):
        log_mel(torch.zeros(shape), 64)


def test_layer_wants_the_configured_length_and_statistics() -> None:
    with pytest.raises(ValueError, match=f"{SAMPLES}"):
        LogMel(CONFIG)(torch.zeros(1, SAMPLES + 1), torch.tensor([SAMPLES]))
    with pytest.raises(ValueError, match=r"audio\.mean"):
        LogMel(AudioConfig(frames=96, mels=64))


def test_padding_with_a_log_mel_of_zero_is_normalised_like_the_rest() -> None:
    config = replace(CONFIG, mean=-4.2677393, std=4.5689974, padding="zero")
    valid = torch.tensor([SAMPLES, SAMPLES // 2])
    wave = torch.randn(2, SAMPLES, generator=torch.Generator().manual_seed(0))
    spec, zero = LogMel(config)(wave, valid), LogMel(replace(config, padding="mean"))(wave, valid)
    padded = torch.arange(96) >= frames_in(valid, 16_000)[:, None]
    assert spec[padded].unique().item() == pytest.approx(0.467, abs=1e-3)  # as MAViL's released code pads
    assert not zero[padded].any()
    assert torch.equal(spec[~padded], zero[~padded])
