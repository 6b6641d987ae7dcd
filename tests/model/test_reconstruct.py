"""Pictures: what they show, and that a trained model paints better ones."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from diffmavil.config import ModelConfig
from diffmavil.model import DiffMAViL, Pictures
from diffmavil.model.decoder import DiffusedPatch

Build = Callable[[ModelConfig], DiffMAViL]
MakeClips = Callable[[int], tuple[torch.Tensor, torch.Tensor]]
KEEP: dict[str, Any] = {"keep_video": 12, "keep_audio": 12}


def _masked(model: DiffMAViL, modality: str, pictures: Pictures, batch: int) -> torch.Tensor:
    """True where the pixels of view 0's masked patches are; shape of the pictures."""
    branch = model.video if modality == "video" else model.audio
    ids = branch.mask_view(batch, 12, 0, 1, 0, torch.device("cpu")).ids_mask
    mask = (
        torch.zeros(batch, branch.tokens, dtype=torch.bool).scatter_(1, ids.long(), True).reshape(batch, *branch.grid)
    )
    for axis, size in enumerate(branch.patch):
        mask = mask.repeat_interleave(size, dim=axis + 1)
    return (mask[..., None] if modality == "video" else mask).expand_as(pictures.original)


@pytest.mark.parametrize("norm_pix", [True, False], ids=["norm-pix", "raw-pixels"])
def test_pictures_keep_what_is_visible_and_replace_what_is_masked(
    variant: ModelConfig, norm_pix: bool, build: Build, clips: MakeClips
) -> None:
    model, (video, spec) = build(replace(variant, norm_pix=norm_pix)), clips(2)
    result = model.reconstruct(video, spec, seed=1, offset=0, **KEEP, sample_steps=3)
    torch.testing.assert_close(result.video.original, video / 255)
    torch.testing.assert_close(result.audio.original, spec)
    for modality, grey in (("video", 0.5), ("audio", 0.0)):
        pictures: Pictures = getattr(result, modality)
        masked = _masked(model, modality, pictures, 2)
        assert (pictures.noised is None) == (variant.diffusion.corruption == "mask_token")
        for picture in pictures:
            if picture is None:
                continue
            assert picture.shape == pictures.original.shape
            assert picture.dtype == torch.float32
            assert torch.isfinite(picture).all()
            torch.testing.assert_close(picture[~masked], pictures.original[~masked])
        torch.testing.assert_close(pictures.visible[masked], torch.full_like(pictures.visible[masked], grey))
        changed = (pictures.reconstruction != pictures.original)[masked]
        assert changed.float().mean() > 0.9  # all masked patches are decoded, whatever decode_fraction is


def test_pictures_are_deterministic_and_belong_to_the_position(
    variants: dict[str, ModelConfig], build: Build, clips: MakeClips
) -> None:
    model, (video, spec) = build(variants["diffmavil"]), clips(3)
    whole = model.reconstruct(video, spec, seed=1, offset=5, **KEEP, sample_steps=3)
    alone = model.reconstruct(video[1:], spec[1:], seed=1, offset=6, **KEEP, sample_steps=3)
    torch.testing.assert_close(whole.video.reconstruction[1:], alone.video.reconstruction, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole.audio.reconstruction[1:], alone.audio.reconstruction, rtol=1e-4, atol=1e-4)
    assert not whole.video.reconstruction.requires_grad


def test_noised_patches_hold_as_much_signal_as_noise(
    variants: dict[str, ModelConfig], build: Build, clips: MakeClips
) -> None:
    model, (video, spec) = build(variants["diffmavil"]), clips(8)
    audio = model.reconstruct(video, spec, seed=1, offset=0, **KEEP, sample_steps=1).audio
    assert audio.noised is not None
    masked = _masked(model, "audio", audio, 8)
    branch = model.audio
    size = branch.patch[0]
    patches = [
        picture.unfold(1, size, size)
        .unfold(2, size, size)
        .reshape(8, -1, size * size)[masked[:, ::size, ::size].reshape(8, -1)]
        for picture in (audio.original, audio.noised)
    ]
    clean, noised = ((p - patches[0].mean(1, keepdim=True)) / patches[0].std(1, keepdim=True) for p in patches)
    signal = (clean * noised).mean()
    assert signal == pytest.approx(0.5**0.5, abs=0.05)
    assert (noised - signal * clean).std() == pytest.approx(0.5**0.5, abs=0.05)


@pytest.mark.parametrize("name", ["mavil", "diffmavil", "fast"])
def test_a_model_that_knows_the_clips_paints_them(
    name: str, variants: dict[str, ModelConfig], build: Build, textures: MakeClips
) -> None:
    model, batch = build(variants[name]), textures(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(50):
        optimizer.zero_grad()
        model(*batch, seed=1, offset=2 * step, **KEEP).total.backward()
        optimizer.step()
    for pictures in model.reconstruct(*batch, seed=2, offset=0, **KEEP, sample_steps=5):
        blank, painted = (
            ((picture - pictures.original) ** 2).mean() for picture in (pictures.visible, pictures.reconstruction)
        )
        assert painted < 0.05 * blank


def test_training_and_sampling_keep_to_the_noisy_end(
    variants: dict[str, ModelConfig], build: Build, clips: MakeClips, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = variants["fast"]
    config = replace(config, diffusion=replace(config.diffusion, first_step=700))
    model, batch = build(config), clips(8)
    drawn = model.draw(*batch, seed=1, offset=0, **KEEP)
    for modality in (*drawn.video, *drawn.audio):
        times = modality.diffused[1]
        assert times.min() >= 700
        assert times.max() <= 1000
        assert len(times.unique()) > 4

    asked: list[int] = []
    masked = model.video.decoder.masked
    assert isinstance(masked, DiffusedPatch)
    embed = masked.forward

    def record(positions: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        asked.append(int(t[0]))
        return embed(positions, x_t, t)

    monkeypatch.setattr(masked, "forward", record)
    model.reconstruct(*batch, seed=1, offset=0, **KEEP, sample_steps=4)
    assert asked == [1000, 900, 800, 700]


def test_impossible_sampling_steps_are_named(variants: dict[str, ModelConfig], build: Build, clips: MakeClips) -> None:
    with pytest.raises(ValueError, match="sample_steps=0"):
        build(variants["diffmavil"]).reconstruct(*clips(1), seed=1, offset=0, **KEEP, sample_steps=0)


def test_a_prediction_from_one_timestep(variants: dict[str, ModelConfig], build: Build, clips: MakeClips) -> None:
    """At the first timestep x_t is nearly the clip, at the last it is noise; what is visible stays."""
    model, (video, spec) = build(variants["diffmavil"]), clips(2)
    config = variants["diffmavil"].diffusion
    off = []
    for timestep in (1, config.steps // 2, config.steps):
        result = model.reconstruct(video, spec, seed=1, offset=0, **KEEP, timestep=timestep)
        masked = _masked(model, "video", result.video, 2)
        assert result.video.noised is not None
        off.append((result.video.noised - result.video.original)[masked].abs().mean().item())
        torch.testing.assert_close(result.video.reconstruction[~masked], result.video.original[~masked])
    assert off == sorted(off)
    assert off[0] < 0.1 * off[-1]
    for impossible in (0, config.steps + 1):
        with pytest.raises(ValueError, match=rf"timestep={impossible}: must be in 1..{config.steps}"):
            model.reconstruct(video, spec, seed=1, offset=0, **KEEP, timestep=impossible)


def test_mask_tokens_have_no_timesteps(variants: dict[str, ModelConfig], build: Build, clips: MakeClips) -> None:
    model, (video, spec) = build(variants["mavil"]), clips(1)
    with pytest.raises(ValueError, match="timestep=3: must be None: the model has mask tokens"):
        model.reconstruct(video, spec, seed=1, offset=0, **KEEP, timestep=3)


def test_patches_as_they_are_predicted(variants: dict[str, ModelConfig], build: Build, clips: MakeClips) -> None:
    """Un-normalising is a mean and a deviation for each patch of the spectrogram, and nothing else."""
    model, (video, spec) = build(variants["mavil"]), clips(1)
    plain, raw = (
        model.reconstruct(video, spec, seed=1, offset=0, **KEEP, as_predicted=as_is).audio for as_is in (False, True)
    )
    ids = model.audio.mask_view(1, 12, 0, 1, 0, torch.device("cpu")).ids_mask[0]
    time, mel = model.audio.patch
    for patch in ids.tolist():
        row, column = divmod(patch, model.audio.grid[1])
        where = (0, slice(row * time, (row + 1) * time), slice(column * mel, (column + 1) * mel))
        true = plain.original[where]
        torch.testing.assert_close(
            plain.reconstruction[where], raw.reconstruction[where] * (true.var() + 1e-6).sqrt() + true.mean()
        )
