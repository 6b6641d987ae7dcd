"""Starting from an image MAE: what the encoders compute then, where every weight comes from, and what is said of it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from safetensors.torch import save_file
from torch import Tensor

from diffmavil.config import EncoderConfig, ModelConfig, VideoConfig
from diffmavil.config.model import IMAGENET_MEAN, IMAGENET_STD
from diffmavil.model import DiffMAViL
from diffmavil.model.embed import all_ids
from diffmavil.model.exchange import check_image_mae, initialise_from_image_mae
from diffmavil.model.exchange.image_mae import patch_weight, resize_kernel
from tests.model import image_mae_files as mae

Build = Callable[[ModelConfig], DiffMAViL]
HEADS = 3


@pytest.fixture
def small(variants: dict[str, ModelConfig]) -> ModelConfig:
    return variants["mavil"]


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    def save(state: object, name: str = "mae.pth") -> Path:
        torch.save(state, tmp_path / name)
        return tmp_path / name

    return save


def still(frames: int) -> tuple[Tensor, Tensor]:
    """A picture as a clip uint8 `[2, frames, 32, 32, 3]`, and normalised `[2, 3, 32, 32]`."""
    pixels = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    normal = (pixels / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    return repeat(pixels, "b h w c -> b t h w c", t=frames).contiguous(), rearrange(normal, "b h w c -> b c h w")


def test_a_still_clip_is_encoded_as_its_picture(build: Build, small: ModelConfig, saved: Callable[..., Path]) -> None:
    state = mae.random_state()
    model = build(replace(small, video=replace(small.video, frames=2)))
    initialise_from_image_mae(model, saved(state))
    table = mae.positions((4, 4), 48)
    model.video.encoder.embed.positions.copy_(table)
    clip, picture = still(frames=2)
    ours = model.video.encode(clip, all_ids(2, 1, 16, clip.device))
    torch.testing.assert_close(ours, mae.encode(state, picture, table, HEADS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_every_tubelet_of_a_still_clip_embeds_as_its_picture(
    build: Build, small: ModelConfig, saved: Callable[..., Path], frames: int
) -> None:
    state = mae.random_state()
    model = build(replace(small, video=replace(small.video, patch=(frames, 8, 8))))
    initialise_from_image_mae(model, saved(state))
    clip, picture = still(frames=4)
    patches = model.video.patches(clip, all_ids(2, 1, model.video.tokens, clip.device))
    tokens = rearrange(model.video.encoder.embed.proj(patches), "b (t n) d -> b t n d", n=16)
    expected = mae.embed(state, picture)
    for tubelet in tokens.unbind(dim=1):
        torch.testing.assert_close(tubelet, expected, rtol=1e-4, atol=1e-5)


def test_sound_is_encoded_as_its_grey_picture(build: Build, small: ModelConfig, saved: Callable[..., Path]) -> None:
    """Positions too: time runs along the picture's width."""
    state = mae.random_state()
    model = build(small)
    initialise_from_image_mae(model, saved(state))
    spec = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(2))
    picture = repeat(spec, "b time mel -> b c mel time", c=3)
    theirs = mae.encode(state, picture, mae.positions((4, 8), 48), HEADS)
    theirs = torch.cat([theirs[:, :1], rearrange(theirs[:, 1:], "b (mel time) d -> b (time mel) d", mel=4)], dim=1)
    ours = model.audio.encode(spec, all_ids(2, 1, 32, spec.device))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_every_naming_and_kind_of_file_gives_the_same_model(
    build: Build, small: ModelConfig, saved: Callable[..., Path], tmp_path: Path
) -> None:
    state = mae.random_state()
    old, new = (mae.renamed(state, names) for names in (mae.TRANSFORMERS_4, mae.TRANSFORMERS_5))
    assert "vit.encoder.layer.1.attention.attention.query.weight" in old
    assert "vit.layers.1.attention.q_proj.weight" in new
    save_file(old, tmp_path / "old.safetensors")
    files = [
        saved(state),
        saved({"model": state, "epoch": 800}, "nested.pth"),
        saved(old, "old.bin"),
        saved(new, "new.bin"),
        saved(mae.renamed(state, mae.TRANSFORMERS_4, prefix=""), "model-old.bin"),
        saved(mae.renamed(state, mae.TRANSFORMERS_5, prefix=""), "model-new.bin"),
        tmp_path / "old.safetensors",
    ]
    states = []
    for file in files:
        model = build(small)
        initialise_from_image_mae(model, file)
        states.append(model.state_dict())
    for other in states[1:]:
        assert all(torch.equal(value, other[name]) for name, value in states[0].items())


def test_where_every_weight_comes_from(build: Build, small: ModelConfig, saved: Callable[..., Path]) -> None:
    state = mae.random_state(depth=3)
    before, model = build(replace(small, fusion_depth=2)).state_dict(), build(replace(small, fusion_depth=2))
    initialise_from_image_mae(model, saved(state))
    after = model.state_dict()
    blocks = {f"{name}.encoder.blocks.{i}": i for name in ("video", "audio") for i in (0, 1)}
    blocks |= {"fusion.blocks.0": 1, "fusion.blocks.1": 1}
    parts = {"norm1": "norm1", "attn.qkv": "attn.qkv", "attn.proj": "attn.proj", "norm2": "norm2"}
    parts |= {"mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2"}
    expected = {
        f"{block}.{ours}.{end}": state[f"blocks.{i}.{theirs}.{end}"]
        for block, i in blocks.items()
        for ours, theirs in parts.items()
        for end in ("weight", "bias")
    }
    for encoder in ("video.encoder", "audio.encoder"):
        expected[f"{encoder}.embed.cls"] = state["cls_token"]
        expected[f"{encoder}.embed.proj.bias"] = state["patch_embed.proj.bias"]
        expected |= {f"{encoder}.norm.{end}": state[f"norm.{end}"] for end in ("weight", "bias")}
    expected |= {f"fusion.norm.{end}": state[f"norm.{end}"] for end in ("weight", "bias")}
    for name, value in expected.items():
        assert torch.equal(after[name], value), name
    kernels = {"video.encoder.embed.proj.weight", "audio.encoder.embed.proj.weight"}
    untouched = after.keys() - expected.keys() - kernels
    assert all(torch.equal(after[name], before[name]) for name in untouched)
    assert {".".join(name.split(".")[:2]) for name in untouched} == {
        "audio.decoder",
        "video.decoder",
        "fusion.audio_type",
        "fusion.video_type",
    }


def test_what_the_settings_leave_out_is_told(build: Build, small: ModelConfig, saved: Callable[..., Path]) -> None:
    encoder = replace(small.encoder, cls=False, final_norm=False)
    model = build(replace(small, modalities="video", encoder=encoder))
    said = initialise_from_image_mae(model, saved(mae.random_state())).mapped[-1]
    names = "video.encoder.embed.cls, video.encoder.norm.weight, video.encoder.norm.bias"
    assert said == f"not taken, since the model's settings leave them out: {names}"


def test_half_precision_becomes_float32(build: Build, small: ModelConfig, saved: Callable[..., Path]) -> None:
    model = build(small)
    initialise_from_image_mae(model, saved({name: value.bfloat16() for name, value in mae.random_state().items()}))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("missing", [("audio", "fusion"), ("video", "fusion"), ("fusion",)], ids="-".join)
def test_parts_that_a_model_has_not_are_left_out(
    build: Build, small: ModelConfig, saved: Callable[..., Path], missing: tuple[str, ...]
) -> None:
    model = build(small)
    for name in missing:
        delattr(model, name)
    said = "\n".join(initialise_from_image_mae(model, saved(mae.random_state())).lines())
    assert not any(f"{name}.encoder" in said or f"{name}:" in said for name in missing)


def test_fusion_of_no_blocks(build: Build, small: ModelConfig, saved: Callable[..., Path]) -> None:
    report = initialise_from_image_mae(build(replace(small, fusion_depth=0)), saved(mae.random_state()))
    assert not any("fusion" in line for line in report.lines()[1:])  # the first has the file's name


def test_larger_patches_give_the_same_tokens_exactly() -> None:
    kernel = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    patches = torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    larger = F.interpolate(patches, size=(16, 12), mode="bicubic", antialias=True)
    resized = resize_kernel(kernel, (16, 12))
    tokens = torch.einsum("nchw,dchw->nd", patches, kernel)
    torch.testing.assert_close(torch.einsum("nchw,dchw->nd", larger, resized), tokens, rtol=1e-4, atol=1e-4)


def test_smaller_patches_give_the_same_tokens_of_a_smooth_picture() -> None:
    kernel = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    coarse = torch.randn(64, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    patches = F.interpolate(coarse, size=(16, 16), mode="bicubic", antialias=True)
    smaller = F.interpolate(patches, size=(8, 8), mode="bicubic", antialias=True)
    resized = resize_kernel(kernel, (8, 8))
    tokens = torch.einsum("nchw,dchw->nd", patches, kernel)
    error = torch.einsum("nchw,dchw->nd", smaller, resized) - tokens
    assert error.std() < 0.15 * tokens.std()  # of kernels that are noise: those of a model are smoother


def test_the_same_patch_size_is_not_resized() -> None:
    kernel = torch.randn(4, 3, 8, 6)
    assert torch.equal(patch_weight(kernel, (1, 8, 6)), rearrange(kernel, "d c h w -> d (h w c)"))
    assert torch.equal(patch_weight(kernel, (6, 8)), rearrange(kernel.sum(dim=1), "d mel time -> d (time mel)"))


def test_a_resized_kernel_of_sound_is_told_as_a_picture(
    build: Build, small: ModelConfig, saved: Callable[..., Path]
) -> None:
    config = replace(small, audio=replace(small.audio, patch=(8, 4)))
    report = initialise_from_image_mae(build(config), saved(mae.random_state()))
    assert "resized (bicubic) from 8x8 to 4x8, summed over its 3 channels, time along its width" in report.mapped[1]


def test_the_report_is_short_and_says_it_all(build: Build, small: ModelConfig, saved: Callable[..., Path]) -> None:
    config = replace(small, video=replace(small.video, patch=(2, 16, 16)))
    path = saved(mae.random_state(depth=3))
    assert initialise_from_image_mae(build(config), path).lines() == [
        f"init: {path}, an image MAE (MAE's own names): depth 3, width 48, heads not told (taken to be ours), "
        "patches of 8x8",
        "  video.encoder.embed.proj <- patch_embed.proj: resized (bicubic) from 8x8 to 16x16, repeated over 2 frames "
        "and divided by 2",
        "  audio.encoder.embed.proj <- patch_embed.proj: summed over its 3 channels, time along its width",
        "  each encoder: cls <- cls_token; blocks <- blocks.0 to 1; norm <- norm",
        "  fusion: each block <- blocks.1; norm <- norm",
        "  left over: pos_embed (our positions are fixed), blocks.2, mask_token, decoder_embed, decoder_blocks",
        "  new: audio.decoder, video.decoder, fusion.audio_type, fusion.video_type",
    ]


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        (EncoderConfig(depth=2, width=24, heads=3, mlp_ratio=2.0), r"a width of 48 \(model.encoder.width=24\)"),
        (EncoderConfig(depth=2, width=48, heads=3), r"MLPs of 96 \(model.encoder.mlp_ratio=4.0 makes 192\)"),
        (EncoderConfig(depth=4, width=48, heads=3, mlp_ratio=2.0), r"2 blocks \(model.encoder.depth=4\)"),
        (EncoderConfig(depth=2, width=48, heads=4, mlp_ratio=2.0), r"3 heads \(model.encoder.heads=4\)"),
    ],
    ids=["width", "mlp", "depth", "heads"],
)
def test_another_size_is_refused(
    small: ModelConfig, saved: Callable[..., Path], encoder: EncoderConfig, said: str
) -> None:
    path = saved(mae.renamed(mae.random_state(), mae.TRANSFORMERS_4))
    path.with_name("config.json").write_text(json.dumps({"num_attention_heads": HEADS}))
    with pytest.raises(ValueError, match=rf"init='.*mae.pth': has {said}; width, heads and MLPs must be those of"):
        check_image_mae(replace(small, encoder=encoder), path)
    check_image_mae(small, path)


def test_a_config_beside_the_file_must_tell_heads(small: ModelConfig, saved: Callable[..., Path]) -> None:
    path = saved(mae.renamed(mae.random_state(), mae.TRANSFORMERS_5))
    path.with_name("config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json beside it tells no num_attention_heads"):
        check_image_mae(small, path)


def _without(state: mae.State, key: str) -> mae.State:
    return {name: value for name, value in state.items() if name != key}


_STATE = mae.random_state()


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"conv1.weight": torch.zeros(8, 3, 7, 7)}, r"is no image MAE; found: conv1.weight \[8, 3, 7, 7\]; must have"),
        (
            _without(_STATE, "blocks.1.mlp.fc2.bias"),
            r"lacks blocks.1.mlp.fc2.bias; found: cls_token \[1, 1, 48\].*more",
        ),
        (_without(_STATE, "norm.weight"), "lacks norm.weight"),
        (
            _STATE | {"blocks.1.attn.qkv.weight": torch.zeros(48, 48)},
            r"blocks.1.attn.qkv.weight is \[48, 48\]; must be \[144, 48\]",
        ),
        (
            _STATE | {"patch_embed.proj.weight": torch.zeros(48, 3, 2, 8, 8)},
            r"not for pictures: patch_embed.proj.weight is \[48, 3, 2, 8, 8\]",
        ),
        (_STATE | {"patch_embed.proj.weight": torch.zeros(48, 1, 8, 8)}, r"not for pictures: .*\[48, 1, 8, 8\]"),
        (_STATE | {"norm.bias": torch.full((48,), torch.nan)}, "norm.bias is not finite"),
        (_STATE | {"norm.bias": torch.ones(48, dtype=torch.int8)}, "norm.bias is of int8; must be of float16"),
        (_without(mae.random_state(depth=3), "blocks.1.attn.proj.weight"), r"has blocks\.1, but lacks blocks\.1\.attn"),
        (_STATE | {"norm_pre.weight": torch.ones(48)}, "has norm_pre.weight; must be a plain vision transformer"),
    ],
    ids=[
        "another",
        "part missing",
        "norm missing",
        "shape",
        "video",
        "sound",
        "nan",
        "int8",
        "a block between",
        "norm before",
    ],
)
def test_what_is_no_image_mae_is_refused(
    small: ModelConfig, saved: Callable[..., Path], state: mae.State, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        check_image_mae(small, saved(state))


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_transformers_vit_mae_is_what_we_make_of_it(build: Build, small: ModelConfig, tmp_path: Path) -> None:
    """Its state dict (its names of today) and its own file (names of all generations)."""
    transformers = pytest.importorskip("transformers")
    encoder = EncoderConfig(depth=2, width=48, heads=3)
    config = transformers.ViTMAEConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=192,
        image_size=32,
        patch_size=8,
        layer_norm_eps=mae.EPS,
        mask_ratio=0.0,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=64,
    )
    torch.manual_seed(0)
    theirs = transformers.ViTMAEForPreTraining(config).eval()
    for parameter in theirs.vit.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
    theirs.save_pretrained(tmp_path)
    torch.save(theirs.state_dict(), tmp_path / "state.bin")
    clip, picture = still(frames=2)
    with torch.no_grad():
        out = theirs.vit(picture, noise=repeat(torch.arange(16.0), "n -> b n", b=2)).last_hidden_state
    for name in ("model.safetensors", "state.bin"):
        model = build(replace(small, encoder=encoder, video=VideoConfig(frames=2, size=32, patch=(2, 8, 8))))
        initialise_from_image_mae(model, tmp_path / name)
        model.video.encoder.embed.positions.copy_(theirs.vit.embeddings.position_embeddings[0, 1:])
        ours = model.video.encode(clip, all_ids(2, 1, 16, clip.device))
        torch.testing.assert_close(ours, out, rtol=1e-4, atol=1e-4)
