"""Other people's weights in models of ours compute what they do in theirs, as `foreign` writes it down."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from einops import rearrange
from torch import Tensor

from diffmavil.model.embed import all_ids
from diffmavil.model.exchange.asked import Asked
from diffmavil.model.exchange.locate import locate
from diffmavil.model.exchange.sources import Imported, import_weights
from tests.model import foreign
from tests.model import image_mae_files as mae
from tests.model.foreign import close

SMALL = Asked(heads=3, trained_size=32, mels=32)
_MEAN, _STD = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
Import = Callable[..., Imported]


@pytest.fixture
def imported(tmp_path: Path) -> Import:
    def run(state: object, asked: Asked = SMALL) -> Imported:
        torch.save(state, tmp_path / "theirs.pth")
        return import_weights(locate(tmp_path / "theirs.pth"), asked)

    return run


def clip(frames: int) -> tuple[Tensor, Tensor]:
    """Pixels in 0..1 `[2, T, 32, 32, 3]`, and as the sources take them `[2, 3, T, 32, 32]`."""
    pixels = torch.rand(2, frames, 32, 32, 3, generator=torch.Generator().manual_seed(1))
    return pixels, rearrange((pixels - _MEAN) / _STD, "b t h w c -> b c t h w").contiguous()


def spectrogram() -> Tensor:
    return torch.randn(2, 48, 32, generator=torch.Generator().manual_seed(2))


def encoded(found: Imported, name: str, x: Tensor) -> Tensor:
    branch = found.model.branches[name]
    with torch.no_grad():
        return branch.encode(x, all_ids(len(x), 1, branch.tokens, x.device))


def no_sound() -> Tensor:
    return torch.empty(2, 0, 0)


def test_mae(imported: Import) -> None:
    state = mae.random_state()
    found = imported({"model": state, "epoch": 800})
    pixels, normal = clip(1)
    expected = mae.encode(state, normal[:, :, 0], mae.positions((4, 4), 48), foreign.HEADS)
    close(encoded(found, "video", pixels), expected)
    features = found.model.features(pixels, no_sound())
    close(features.video, expected[:, 1:].mean(dim=1))
    assert found.config.model.video.grid == (1, 4, 4)
    assert found.report.source.endswith("an image MAE (MAE's own names)")


def test_cross_mae_has_no_last_norm_where_its_decoder_reads_every_layer(imported: Import) -> None:
    state = {name: value for name, value in mae.random_state().items() if not name.startswith("norm.")}
    state |= {"decoder_blocks.0.cross_attn.q.weight": torch.zeros(32, 32), "wfm.linear.weight": torch.zeros(1, 2)}
    found = imported(state)
    assert found.report.source.endswith("CrossMAE (its own names)")
    assert not found.config.model.encoder.final_norm
    assert any(line.startswith("wfm.linear: of a decoder of another kind") for line in found.report.left)
    identity = {"norm.weight": torch.ones(48), "norm.bias": torch.zeros(48)}
    pixels, normal = clip(1)
    expected = mae.encode(state | identity, normal[:, :, 0], mae.positions((4, 4), 48), foreign.HEADS)
    ours = torch.nn.functional.layer_norm(encoded(found, "video", pixels), (48,), eps=mae.EPS)
    close(ours, expected)


def test_audio_mae_and_its_decoder(imported: Import) -> None:
    state, spec = foreign.audio_mae(), spectrogram()
    found = imported(state)
    latent = foreign.audio_mae_encode(state, spec)
    close(encoded(found, "audio", spec), latent)
    audio = found.config.model.audio
    assert (audio.frames, audio.padding, audio.mean, audio.std) == (48, "zero", -4.2677393, 4.5689974)
    assert found.report.left == ["--trained-size: not needed for this file"]
    assert found.report.new == []
    keep = torch.arange(0, 24, 3)
    hidden = torch.tensor([i for i in range(24) if i % 3])
    ids, asked = (x.int().expand(2, -1).contiguous() for x in (keep, hidden))
    with torch.no_grad():
        ours = found.model.audio.decoder(latent[:, [0, *(1 + keep)]], ids, asked)
    theirs = foreign.audio_mae_decode(state, latent[:, [0, *(1 + keep)]], keep)
    close(ours, theirs[:, hidden])


def test_whether_a_decoder_was_trained_on_normalised_patches_is_taken_to_be_so_unless_said(imported: Import) -> None:
    """MAE's files tell it as little as their names do, and those for pictures to look at were not."""
    found = imported(foreign.audio_mae())
    assert found.config.model.norm_pix
    assert "a decoder of normalised patches (else --norm-pix False)" in found.report.assumed
    plain = imported(foreign.audio_mae(), replace(SMALL, norm_pix=False))
    assert not plain.config.model.norm_pix
    assert not any("normalised patches" in line for line in plain.report.assumed)


def test_audio_mae_with_a_decoder_of_local_attention_is_taken_without_it(imported: Import) -> None:
    more = {"decoder_blocks.0.attn.logit_scale": torch.ones(3)}
    found = imported(foreign.audio_mae() | more)
    assert any("another kind" in line for line in found.report.left)
    assert "audio.decoder.blocks (12)" in found.report.new


@pytest.mark.parametrize(("prefix", "norm"), [("encoder.", "norm"), ("", "fc_norm")], ids=["pretrained", "fine-tuned"])
def test_video_mae(imported: Import, prefix: str, norm: str) -> None:
    state = foreign.video_mae(prefix, norm)
    found = imported(state, Asked(heads=3, trained_size=32, trained_frames=4))
    pixels, normal = clip(4)
    last = norm if norm == "norm" else None
    expected = foreign.video_mae_encode(state, normal, prefix, last)
    close(encoded(found, "video", pixels), expected)
    assert found.config.model.encoder.positions == "sequence"
    assert found.config.model.encoder.final_norm == (norm == "norm")
    assert found.report.left == ([] if norm == "norm" else ["fc_norm (2)"])
    features = found.model.features(pixels, no_sound())
    assert features.video_tokens.shape == (2, 32, 48)  # no CLS to leave out
    close(features.video, expected.mean(dim=1))


@pytest.mark.parametrize("fusion", [2, 3], ids=["pretrained", "fine-tuned"])
def test_mavil(imported: Import, fusion: int) -> None:
    state, spec = foreign.mavil(fusion), spectrogram()
    found = imported({"model": state})
    pixels, normal = clip(4)
    expected = foreign.mavil_encode(state, spec, normal, fusion)
    features = found.model.features(pixels, spec)
    close(features.audio_tokens, expected["audio"][:, 1:])
    close(features.video_tokens, expected["video"][:, 1:])
    audio, video = expected["both"].split([25, 33], dim=1)
    both = torch.cat([audio[:, 1:].mean(dim=1), video[:, 1:].mean(dim=1)], dim=1)
    close(features.fused, both)
    config = found.config.model
    assert (config.fusion_depth, config.fusion_types, config.fusion_norm) == (fusion, False, False)
    assert config.audio.padding == "zero"
    assert not config.encoder.final_norm
    assert found.report.left == (
        [f"{x}: of a classifier on top" for x in ("fc_norm_av (2)", "head_av (2)")] * (fusion == 3)
    )


def test_cav_mae_with_its_joint_blocks_as_fusion(imported: Import) -> None:
    state, spec = foreign.cav_mae(), spectrogram()
    found = imported({f"module.{name}": value for name, value in state.items()})
    pixels, normal = clip(1)
    expected = foreign.cav_mae_encode(state, spec, normal[:, :, 0])
    features = found.model.features(pixels, spec)
    audio, video = expected["both"].split([24, 16], dim=1)
    both = torch.cat([audio.mean(dim=1), video.mean(dim=1)], dim=1)
    close(features.fused, both)
    assert found.config.model.encoder.norm_eps == 1e-5
    assert 2 * (found.config.model.audio.std or 0) == 4.4849  # CAV-MAE divides by one deviation
    assert any(line.startswith("blocks_u") and "--modalities" in line for line in found.report.left)


@pytest.mark.parametrize("modality", ["audio", "video"])
def test_cav_mae_alone_as_it_contrasts(imported: Import, modality: str) -> None:
    state, spec = foreign.cav_mae(), spectrogram()
    pixels, normal = clip(1)
    asked = Asked(heads=3, mels=32, modalities=modality)  # type: ignore[arg-type]  # one of the literals
    found = imported(state, asked)
    expected = foreign.cav_mae_encode(state, spec, normal[:, :, 0])[modality[0]]
    if modality == "audio":
        expected = rearrange(expected, "b (mel time) d -> b (time mel) d", mel=4)
    ours = encoded(found, modality, spec if modality == "audio" else pixels)
    close(ours, expected)
    assert found.config.model.encoder.depth == 3  # two of its own, and the joint one


def test_positions_are_interpolated_where_another_size_is_asked_for(imported: Import) -> None:
    found = imported(mae.random_state(), Asked(heads=3, size=48))
    table = found.model.video.encoder.embed.positions
    assert table.shape == (36, 48)
    assert any("interpolated from (1, 4, 4) to (1, 6, 6)" in row.how for row in found.report.rows)
    trained = rearrange(mae.positions((4, 4), 48), "(h w) d -> 1 d h w", h=4)
    expected = torch.nn.functional.interpolate(trained, (6, 6), mode="bicubic", align_corners=False)
    torch.testing.assert_close(table, rearrange(expected, "1 d h w -> (h w) d"))


def test_more_frames_are_interpolated_in_time(imported: Import) -> None:
    found = imported(foreign.mavil(), Asked(heads=3, trained_size=32, mels=32, frames=8))
    assert found.config.model.video.grid == (4, 4, 4)
    assert found.config.model.video.seconds == 4.0  # two a second, as they were
    table = rearrange(found.model.video.encoder.embed.positions, "(t n) d -> t n d", t=4)
    trained = rearrange(foreign.mavil_table((2, 4, 4), 48), "(t n) d -> t n d", t=2)
    torch.testing.assert_close(table[0], trained[0])
    torch.testing.assert_close(table[1], 0.75 * trained[0] + 0.25 * trained[1])


def without_block(state: foreign.State, start: str) -> foreign.State:
    return {name: value for name, value in state.items() if not name.startswith(start)}


@pytest.mark.parametrize(
    ("state", "asked", "said"),
    [
        ({"conv1.weight": torch.zeros(8, 3, 7, 7)}, SMALL, r"is none of MAE, .* and ours; found: conv1.weight \[8"),
        (
            mae.random_state() | {"pos_embed": torch.zeros(1, 16, 48)},
            SMALL,
            "pos_embed has 15 positions, which do not fill a square of patches",
        ),
        (foreign.audio_mae(3), SMALL, "pos_embed has 18 positions, which do not fill 4 bands of patches"),
        (
            mae.random_state() | {"blocks.1.ls1.gamma": torch.ones(48)},
            SMALL,
            r"has blocks\.1\.ls1\.gamma; blocks of a plain vision transformer are needed",
        ),
        (
            without_block(mae.random_state(depth=3), "blocks.1."),
            SMALL,
            r"has blocks\.2, but lacks blocks\.1\.attn\.proj\.weight; must have all of its blocks",
        ),
        (
            without_block(foreign.video_mae(), "encoder.blocks.1.attn.proj."),
            SMALL,
            r"has encoder\.blocks\.1, but lacks",
        ),
        (without_block(foreign.mavil(3), "blocks_av.0."), SMALL, r"has blocks_av\.1, but lacks blocks_av\.0\."),
        (mae.random_state(), Asked(heads=5), "5 do not divide its width 48: --heads"),
        (mae.random_state(), Asked(modalities="audio"), "--modalities=audio: an image MAE .* has video alone"),
        (mae.random_state(), Asked(size=30), "video.size=30: must be a multiple"),
        (foreign.mavil(), Asked(heads=3, trained_size=64, mels=32), "pos_embed_v has 32 positions, which do not fill"),
        (
            {name: value for name, value in foreign.mavil().items() if name != "pos_embed_v"},
            SMALL,
            "lacks pos_embed_v; found: ",
        ),
    ],
    ids=[
        "another",
        "no square",
        "no grid",
        "layer scale",
        "block missing",
        "last block in part",
        "fusion block missing",
        "heads",
        "modality",
        "size",
        "frames",
        "no positions",
    ],
)
def test_what_does_not_fit_is_told(imported: Import, state: foreign.State, asked: Asked, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        imported(state, asked)


@pytest.mark.parametrize(
    "name",
    [
        "norm_pre.weight",
        "reg_token",
        "embeddings.register_tokens",
        "storage_tokens",
        "dist_token",
        "rel_pos_bias.relative_position_bias_table",
        "rope.freqs",
        "patch_embed.norm.bias",
    ],
)
@pytest.mark.parametrize(
    "source", [mae.random_state, foreign.audio_mae, foreign.mavil], ids=["MAE", "AudioMAE", "MAViL"]
)
def test_a_part_outside_of_the_blocks_that_changes_features_is_refused(
    imported: Import, source: Callable[[], foreign.State], name: str
) -> None:
    with pytest.raises(ValueError, match=f"has {re.escape(name)}; must be a plain vision transformer"):
        imported(source() | {name: torch.ones(48)})


@pytest.mark.parametrize("name", ["fc_norm.weight", "head.weight", "decoder.reg_token"])
def test_a_part_on_top_of_the_encoder_is_left_over(imported: Import, name: str) -> None:
    found = imported(mae.random_state() | {name: torch.ones(48)})
    assert any(line.startswith(name.removesuffix(".weight")) for line in found.report.left)


def test_whole_numbers_that_are_no_weights_are_left_over(imported: Import) -> None:
    more = {"num_batches_tracked": torch.tensor(3), "embeddings.position_ids": torch.arange(16)}
    left = imported(mae.random_state() | more).report.left
    assert more.keys() <= set(left)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_floats_become_float32(imported: Import, dtype: torch.dtype) -> None:
    state = {name: value.to(dtype) for name, value in mae.random_state().items()}
    ours = imported(state).model.state_dict()["video.encoder.blocks.1.mlp.0.weight"]
    assert torch.equal(ours, state["blocks.1.mlp.fc1.weight"].float())


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("name", ["blocks.1.attn.qkv.weight", "decoder_pos_embed"])
def test_weights_of_another_type_are_refused(imported: Import, name: str, dtype: torch.dtype) -> None:
    state = foreign.audio_mae()
    state[name] = state[name].to(dtype)
    told = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=f"{re.escape(name)} is of {told}; must be of float16, bfloat16, float32, flo"):
        imported(state)
