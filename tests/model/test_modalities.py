"""A model with one branch: what it has, what it computes, and that it is the same branch as in the whole model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffmavil.config import ModelConfig
from diffmavil.config.presets import preset
from diffmavil.model import DiffMAViL
from diffmavil.model.flops import forward_flops

CLIPS = 4


def config(modalities: str, name: str = "diffmavil-tiny", **changes) -> ModelConfig:
    return replace(preset(name).model, modalities=modalities, **changes)


def clips(model: ModelConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Video and spectrogram; of an absent modality without elements."""
    generator = torch.Generator().manual_seed(1)
    v, a = model.video, model.audio
    frames = (v.frames, v.size, v.size) if model.sees else (0, 0, 0)
    video = torch.randint(256, (CLIPS, *frames, 3), dtype=torch.uint8, generator=generator)
    return video, torch.randn(CLIPS, *((a.frames, a.mels) if model.hears else (0, 0)), generator=generator)


def step(model: DiffMAViL, **changes):
    arguments = {"seed": 3, "offset": 0, "keep_video": 50, "keep_audio": 20} | changes
    return model(*clips(model.config), **arguments)


@pytest.mark.parametrize("name", ["mavil-tiny", "diffmavil-tiny", "diffmavil-tiny-fast"])
@pytest.mark.parametrize("modalities", ["audio", "video"])
def test_one_branch_learns_alone(modalities: str, name: str) -> None:
    model = DiffMAViL(config(modalities, name))
    assert {key.partition(".")[0] for key in model.state_dict()} == {modalities}
    losses = step(model)
    losses.total.backward()
    assert losses.total == getattr(losses, modalities) > 0
    other = "video" if modalities == "audio" else "audio"
    assert getattr(losses, other) == losses.inter == losses.intra == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("modalities", ["audio", "video"])
def test_two_views_of_one_modality_are_contrasted(modalities: str) -> None:
    torch.manual_seed(0)
    model = DiffMAViL(config(modalities, views=2))
    losses = step(model)
    assert losses.intra > 0
    assert losses.inter == 0


@pytest.mark.parametrize("modalities", ["audio", "video"])
def test_contrast_of_several_passes_is_that_of_one(modalities: str) -> None:
    torch.manual_seed(0)
    model = DiffMAViL(config(modalities, views=2))
    video, spec = clips(model.config)
    whole = model(video, spec, seed=3, offset=0, keep_video=50, keep_audio=20).intra
    pooled = [
        model.pooled(video[h], spec[h], seed=3, offset=h.start, keep_video=50, keep_audio=20)
        for h in (slice(0, 2), slice(2, 4))
    ]
    for coupled in model.couple(pooled):
        torch.testing.assert_close(coupled.intra, whole)


@pytest.mark.parametrize("modalities", ["audio", "video"])
def test_encoder_is_that_of_the_whole_model(modalities: str) -> None:
    torch.manual_seed(0)
    whole, alone = DiffMAViL(config("av")).eval(), DiffMAViL(config(modalities)).eval()
    branch = {name: value for name, value in whole.state_dict().items() if name.startswith(f"{modalities}.")}
    alone.load_state_dict(branch)
    video, spec = clips(whole.config)
    found = alone.features(
        *(x if keep else x[:, :0] for x, keep in ((video, alone.config.sees), (spec, alone.config.hears)))
    )
    expected = whole.features(video, spec)
    torch.testing.assert_close(getattr(found, modalities), getattr(expected, modalities), rtol=0, atol=0)
    other = "video" if modalities == "audio" else "audio"
    assert list(found.kinds) == [modalities]
    assert getattr(found, other).shape == found.fused.shape == (CLIPS, 0)
    assert getattr(found, f"{other}_tokens").shape[1] == 0


@pytest.mark.parametrize("modalities", ["audio", "video"])
def test_reconstruction_and_cost_are_of_the_branch_alone(modalities: str) -> None:
    model = DiffMAViL(config(modalities)).eval()
    video, spec = clips(model.config)
    found = model.reconstruct(video, spec, seed=0, offset=0, keep_video=50, keep_audio=20, sample_steps=2)
    other = "video" if modalities == "audio" else "audio"
    assert getattr(found, other).reconstruction.numel() == 0
    assert getattr(found, modalities).reconstruction.isfinite().all()
    alone, whole = (forward_flops(m, 50, 20)._asdict() for m in (model, DiffMAViL(config("av"))))
    assert alone == {name: value if name.startswith(modalities) else 0 for name, value in whole.items()}


def test_tokens_of_padding_are_not_pooled() -> None:
    torch.manual_seed(0)
    model = DiffMAViL(config("audio")).eval()
    video, spec = clips(model.config)
    heard = torch.tensor([0, 16, 17, model.config.audio.frames])
    features = model.features(video, spec, heard)
    per_column = model.config.audio.grid[1]
    tokens = features.audio_tokens
    for row, columns in enumerate((1, 1, 2, model.config.audio.grid[0])):
        expected = tokens[row, : columns * per_column].mean(dim=0)
        torch.testing.assert_close(features.audio[row], expected)


def test_shapes_of_the_present_modality_are_checked() -> None:
    model = DiffMAViL(config("audio"))
    video, spec = clips(model.config)
    with pytest.raises(ValueError, match=r"spec\.shape"):
        model.features(video, spec[:, :-1])
    with pytest.raises(ValueError, match="as many clips"):
        model.features(video[:2], spec)
    with pytest.raises(ValueError, match="keep_audio"):
        step(model, keep_audio=0)
    step(model, keep_video=0)
