"""Settings that other people's weights need: what they change, that training works with them, and old configs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffmavil.config import Config, DecoderConfig, EncoderConfig, HeadConfig, ModelConfig
from diffmavil.config.files import config_from_yaml, config_to_yaml
from diffmavil.model import DiffMAViL
from diffmavil.model.classifier import Classifier
from diffmavil.model.embed import sequence_positions, sincos_positions
from diffmavil.model.flops import forward_flops
from tests.model.conftest import Clips

Build = Callable[[ModelConfig], DiffMAViL]
NEW = {
    "model.encoder": ("cls", "positions", "final_norm", "norm_eps"),
    "model.video_decoder": ("positions", "norm_eps"),
    "model.audio_decoder": ("positions", "norm_eps"),
    "model.audio": ("padding",),
    "model": ("fusion_types", "fusion_norm"),
}


def bare(config: ModelConfig, positions: str = "sequence") -> ModelConfig:
    encoder = replace(config.encoder, cls=False, positions=positions, final_norm=False, norm_eps=1e-5)
    return replace(config, encoder=encoder, fusion_types=False, fusion_norm=False)


def test_a_config_written_before_these_settings_is_the_same() -> None:
    config = Config()
    data = yaml.safe_load(config_to_yaml(config))
    for path, names in NEW.items():
        section = data
        for part in path.split("."):
            section = section[part]
        for name in names:
            del section[name]
    assert config_from_yaml(yaml.safe_dump(data)) == config


def test_defaults_have_the_parameters_they_had(build: Build, variant: ModelConfig) -> None:
    names = build(variant).state_dict().keys()
    assert not any(name.endswith("positions") for name in names)
    assert {"audio.encoder.embed.cls", "audio.encoder.norm.weight"} <= names
    assert ("fusion.audio_type" in names) == ("fusion.norm.weight" in names) == (variant.fusion_depth > 0)


def test_what_is_turned_off_has_no_parameters(build: Build, variant: ModelConfig) -> None:
    names = build(bare(variant)).state_dict().keys()
    assert not any(name.endswith(("embed.cls", "encoder.norm.weight", "_type", "fusion.norm.weight")) for name in names)


def test_training_without_cls_reaches_every_parameter(
    build: Build, variant: ModelConfig, clips: Callable[[int], Clips]
) -> None:
    model = build(bare(variant))
    video, spec = clips(2)
    losses = model(video, spec, seed=0, offset=0, keep_video=8, keep_audio=8)
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_features_without_cls_pool_every_token(
    build: Build, variant: ModelConfig, clips: Callable[[int], Clips]
) -> None:
    video, spec = clips(2)
    features = build(bare(variant)).features(video, spec)
    torch.testing.assert_close(features.video, features.video_tokens.mean(dim=1))
    assert features.video_tokens.shape[1] == variant.video.tokens
    heard = torch.tensor([16, 64])  # two columns of patches, and all
    some = build(bare(variant)).features(video, spec, heard)
    torch.testing.assert_close(some.audio[0], features.audio_tokens[0, :8].mean(dim=0))


def test_a_classifier_without_cls(variants: dict[str, ModelConfig], clips: Callable[[int], Clips]) -> None:
    torch.manual_seed(0)
    model = Classifier(bare(variants["mavil"]), HeadConfig(classes=("a", "b"), labels="one")).eval()
    video, spec = clips(2)
    assert model.scores(video, spec, torch.tensor([64, 64])).shape == (2, 2)
    assert not hasattr(model.fusion, "audio_type")


def test_flops_without_cls(build: Build, variants: dict[str, ModelConfig], clips: Callable[[int], Clips]) -> None:
    """As torch counts them."""
    model = build(replace(bare(variants["diffmavil"]), views=1))
    video, spec = clips(1)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(video, spec, seed=0, offset=0, keep_video=8, keep_audio=8)
    flops = forward_flops(model, 8, 8).total
    assert counter.get_total_flops() == pytest.approx(flops, rel=0.01)


def test_stored_positions_lie_in_the_weights_and_are_read_back(build: Build, variants: dict[str, ModelConfig]) -> None:
    decoder = replace(variants["mavil"].video_decoder, positions="stored")
    config = replace(bare(variants["mavil"], "stored"), video_decoder=decoder)
    model, other = build(config), build(config)
    embed = model.video.encoder.embed
    assert torch.equal(embed.positions, sincos_positions(config.video.grid, config.encoder.width))
    embed.positions.normal_()
    model.video.decoder.positions.normal_()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.video.encoder.embed.positions, embed.positions)
    assert torch.equal(other.video.decoder.positions, model.video.decoder.positions)


def test_positions_of_a_sequence() -> None:
    table = sequence_positions((2, 3), 8)
    assert table.shape == (6, 8)
    angle = torch.tensor(5.0, dtype=torch.float64) / 10_000 ** (2 / 8)
    torch.testing.assert_close(table[5, 2:4], torch.stack([angle.sin(), angle.cos()]).float())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: EncoderConfig(positions="learnt"), "encoder.positions='learnt': must be one of"),  # type: ignore[arg-type]
        (lambda: EncoderConfig(norm_eps=0.0), r"encoder.norm_eps=0.0: must be positive"),
        (lambda: DecoderConfig(positions="sequence"), "decoder.positions='sequence': must be"),  # type: ignore[arg-type]
        (lambda: replace(ModelConfig().audio, padding="noise"), "audio.padding='noise': must be 'mean' or 'zero'"),
    ],
    ids=["positions", "eps", "decoder", "padding"],
)
def test_impossible_values_are_told(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
