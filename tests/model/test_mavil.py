"""The whole model: losses, gradients, randomness, features, and that it learns."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from diffmavil.config import ModelConfig
from diffmavil.config.model import ContrastConfig
from diffmavil.config.presets import PRESETS
from diffmavil.model import DiffMAViL, Losses
from diffmavil.model.contrast import inter_modal, intra_modal

Clips = tuple[torch.Tensor, torch.Tensor]
Build = Callable[[ModelConfig], DiffMAViL]
MakeClips = Callable[[int], Clips]
KEEP = {"keep_video": 7, "keep_audio": 6}


def test_every_part_of_the_loss_is_a_finite_scalar(variant: ModelConfig, build: Build, clips: MakeClips) -> None:
    losses = build(variant)(*clips(3), seed=1, offset=0, **KEEP)
    for loss in losses:
        assert loss.shape == ()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
    c = variant.contrast
    weighted = losses.video + losses.audio + c.inter_weight * losses.inter + c.intra_weight * losses.intra
    torch.testing.assert_close(losses.total, weighted)
    assert (losses.intra > 0) == (variant.views == 2)
    assert losses.inter > 0


def test_every_parameter_gets_a_gradient(variant: ModelConfig, build: Build, clips: MakeClips) -> None:
    model = build(variant)
    model(*clips(3), seed=1, offset=0, **KEEP).total.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_diffused_patches_start_as_mask_tokens(variants: dict[str, ModelConfig], clips: MakeClips) -> None:
    torch.manual_seed(0)
    model = DiffMAViL(variants["fast"])
    video, spec = clips(3)
    drawn = model.draw(video, spec, seed=1, offset=0, **KEEP)
    noisier = drawn._replace(
        video=[d._replace(diffused=(2 * d.diffused[0], d.diffused[1] // 2)) for d in drawn.video],
        audio=[d._replace(diffused=(2 * d.diffused[0], d.diffused[1] // 2)) for d in drawn.audio],
    )

    def losses() -> list[Losses]:
        return [model(video, spec, seed=1, offset=0, **KEEP, draws=draws) for draws in (drawn, noisier)]

    before = losses()
    assert before[0] == before[1]
    before[0].total.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    after = losses()
    assert after[0].video != after[1].video
    assert after[0].audio != after[1].audio


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_can_be_built(name: str) -> None:
    with torch.device("meta"):
        model = DiffMAViL(PRESETS[name].model)
    config = PRESETS[name].model
    assert model.video.encoder.embed.proj.in_features == config.video.patch_dim
    assert model.video.encoder.embed.positions.shape == (config.video.tokens, config.encoder.width)
    assert model.audio.encoder.embed.positions.shape == (config.audio.tokens, config.encoder.width)
    assert len(model.video.encoder.blocks) == len(model.audio.encoder.blocks) == config.encoder.depth


def test_loss_weights_scale_their_parts(variants: dict[str, ModelConfig], build: Build, clips: MakeClips) -> None:
    config = variants["diffmavil"]
    contrast = replace(config.contrast, inter_weight=0.0, intra_weight=0.0)
    model = build(replace(config, contrast=contrast, video_weight=3.0, audio_weight=0.5))
    losses = model(*clips(3), seed=1, offset=0, **KEEP)
    torch.testing.assert_close(losses.total, 3 * losses.video + 0.5 * losses.audio)
    assert losses.inter == losses.intra == 0


# Randomness


def test_losses_are_a_function_of_seed_and_position(variant: ModelConfig, build: Build, clips: MakeClips) -> None:
    model, batch = build(variant), clips(3)

    def losses(seed: int, offset: int) -> Losses:
        return model(*batch, seed=seed, offset=offset, **KEEP)

    first = losses(1, 5)
    torch.rand(13)  # the global generator moves on, the masks do not
    state = torch.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(first, losses(1, 5), strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert losses(2, 5).video != first.video
    assert losses(1, 6).video != first.video


def test_cutting_a_batch_changes_no_reconstruction(variant: ModelConfig, build: Build, clips: MakeClips) -> None:
    model, (video, spec) = build(variant), clips(4)
    whole = model(video, spec, seed=1, offset=10, **KEEP)
    halves = [model(video[i : i + 2], spec[i : i + 2], seed=1, offset=10 + i, **KEEP) for i in (0, 2)]
    torch.testing.assert_close(whole.video, (halves[0].video + halves[1].video) / 2)
    torch.testing.assert_close(whole.audio, (halves[0].audio + halves[1].audio) / 2)


def test_views_and_modalities_have_masks_of_their_own(variants: dict[str, ModelConfig], build: Build) -> None:
    model = build(variants["mavil"])
    device = torch.device("cpu")
    video = model.video.draw_masks(50, 8, seed=1, offset=0, device=device)
    audio = model.audio.draw_masks(50, 8, seed=1, offset=0, device=device)
    assert video.keep.shape == (50, 2, 8)
    assert model.video.tokens == model.audio.tokens  # so that equal masks could happen
    for one, other in [(video.keep[:, 0], video.keep[:, 1]), (video.keep[:, 0], audio.keep[:, 0])]:
        both = torch.zeros(50, model.video.tokens).scatter_add_(1, one.long(), torch.ones(one.shape))
        shared = both.gather(1, other.long()).mean()
        assert abs(shared - 8 / model.video.tokens) < 0.06  # chance, not 1


def test_diffused_views_have_noise_and_times_of_their_own(
    variants: dict[str, ModelConfig], build: Build, clips: MakeClips
) -> None:
    video = build(variants["diffmavil"]).video
    ids = torch.arange(video.tokens, dtype=torch.int32).expand(3, 2, -1)
    x_t, t = video.diffuse(clips(3)[0], ids, seed=1, offset=0)
    assert x_t.shape == (6, video.tokens, 384)
    assert len(set(t.tolist())) == 6
    alone, alone_t = video.diffuse(clips(3)[0][1:2], ids[1:2, :, 4:9].contiguous(), seed=1, offset=1)
    assert torch.equal(alone_t, t[2:4])
    torch.testing.assert_close(alone, x_t[2:4, 4:9])


def test_of_a_share_of_the_samples_no_patch_is_left(
    variants: dict[str, ModelConfig], build: Build, clips: MakeClips
) -> None:
    """A mask token at every position of theirs; the other samples are as without them."""
    config = variants["diffmavil"]
    mixed = replace(config, diffusion=replace(config.diffusion, token_share=0.4))
    ids = torch.arange(16, dtype=torch.int32).expand(200, 2, -1)
    video = clips(1)[0].expand(200, -1, -1, -1, -1).contiguous()
    x_t, t = build(mixed).video.diffuse(video, ids, seed=1, offset=0)
    usual, times = build(config).video.diffuse(video, ids, seed=1, offset=0)
    hidden = t == config.diffusion.steps + 1
    assert 0.33 < hidden.float().mean() < 0.47
    assert (hidden[0::2] != hidden[1::2]).any()  # the two views of a sample
    assert not x_t[hidden].any()
    assert torch.equal(x_t[~hidden], usual[~hidden])
    assert torch.equal(t[~hidden], times[~hidden])
    tokens = build(mixed).video.decoder.masked(torch.zeros(len(t), 16, 1), x_t, t)[hidden]
    torch.testing.assert_close(tokens, tokens[:1, :1].expand_as(tokens))


def test_a_view_that_is_not_decoded_serves_the_contrast_alone(
    variants: dict[str, ModelConfig], build: Build, clips: MakeClips
) -> None:
    both, batch = variants["diffmavil"], clips(4)
    losses = {}
    for name, config in (
        ("both", both),
        ("one decoded", replace(both, decoded_views=1)),
        ("one", replace(both, views=1)),
    ):
        losses[name] = build(config)(*batch, seed=1, offset=3, **KEEP)
    for part in ("video", "audio"):
        torch.testing.assert_close(getattr(losses["one decoded"], part), getattr(losses["one"], part))
        assert getattr(losses["both"], part) != getattr(losses["one"], part)
    for part in ("inter", "intra"):
        assert torch.equal(getattr(losses["one decoded"], part), getattr(losses["both"], part))
    assert losses["one decoded"].intra > 0


def test_a_contrast_apart_reads_views_of_its_own(
    variants: dict[str, ModelConfig], build: Build, clips: MakeClips
) -> None:
    config, (video, spec) = variants["contrast-apart"], clips(4)
    model = build(config)
    losses = model(video, spec, seed=1, offset=3, **KEEP)
    read = build(replace(config, contrast=replace(config.contrast, mask_ratio=None)))(
        video, spec, seed=1, offset=3, **KEEP
    )
    assert torch.equal(losses.video, read.video)
    assert torch.equal(losses.audio, read.audio)
    drawn = model.draw(video, spec, seed=1, offset=3, **KEEP)
    pooled = {}
    for name, branch, x in (("audio", model.audio, spec), ("video", model.video, video)):
        (masks, *_) = getattr(drawn, name)[0]
        assert masks.keep.shape == (4, 1, KEEP[f"keep_{name}"])
        assert masks.contrast[0].shape == (4, 2, 24)  # three quarters of 32 tokens
        tokens = branch.encode(x, masks.contrast[0])[:, 1:]
        pooled[name] = tokens.mean(1).unflatten(0, (4, 2))
    c = config.contrast
    torch.testing.assert_close(losses.inter, inter_modal(pooled["audio"], pooled["video"], c.inter_temperature))
    torch.testing.assert_close(losses.intra, intra_modal(list(pooled.values()), c.intra_temperature))
    assert losses.inter != read.inter
    one = model.pooled(video, spec, seed=1, offset=3, keep_video=KEEP["keep_video"], keep_audio=KEEP["keep_audio"])
    torch.testing.assert_close(one.audio, pooled["audio"])
    torch.testing.assert_close(one.video, pooled["video"])


def test_a_contrast_may_read_whole_clips_and_no_share_beyond(variants: dict[str, ModelConfig]) -> None:
    whole = replace(variants["mavil"], views=1, contrast=ContrastConfig(mask_ratio=0.0))
    assert DiffMAViL(whole).video.contrast_keep == whole.video.tokens
    # Two views of everything would be the same view twice.
    assert DiffMAViL(replace(whole, views=2)).video.contrast_keep == whole.video.tokens - 1
    for ratio in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"contrast.mask_ratio=.*: must be in \[0, 1\), or None"):
            ContrastConfig(mask_ratio=ratio)


@pytest.mark.parametrize(("fraction", "keep", "count"), [(1.0, 7, 25), (0.25, 8, 6), (0.01, 7, 1)])
def test_the_decoded_share_of_masked_patches(
    variants: dict[str, ModelConfig], build: Build, fraction: float, keep: int, count: int
) -> None:
    branch = build(replace(variants["fast"], decode_fraction=fraction)).video
    masks = branch.draw_masks(40, keep, seed=1, offset=0, device=torch.device("cpu"))
    assert masks.decode.shape == (40, 2, count)
    assert masks.decode.dtype == torch.int32
    assert (masks.decode.diff(dim=2) > 0).all()
    for b in range(40):
        for view in range(2):
            assert not set(masks.keep[b, view].tolist()) & set(masks.decode[b, view].tolist())
    seen = masks.decode.flatten().bincount(minlength=branch.tokens)
    assert (seen > 0).float().mean() > 0.75  # drawn from everywhere: with 80 draws of 32 positions, 92 % are expected


# What is read


def test_masked_pixels_never_reach_the_encoders(variant: ModelConfig, build: Build, clips: MakeClips) -> None:
    model, (video, spec) = build(variant), clips(2)
    for branch, x in ((model.video, video), (model.audio, spec)):
        keep = branch.draw_masks(2, 7, seed=1, offset=0, device=x.device).keep[:, :1]
        outside = torch.ones(2, branch.tokens, dtype=torch.bool).scatter_(1, keep[:, 0].long(), False)
        blocks = outside.reshape(2, *branch.grid)
        for axis, size in enumerate(branch.patch):
            blocks = blocks.repeat_interleave(size, dim=axis + 1)
        blocks = blocks[..., None] if x.dim() == 5 else blocks
        garbage = torch.randint_like(x, 256) if x.dtype == torch.uint8 else torch.full_like(x, float("nan"))
        damaged = torch.where(blocks, garbage, x)
        assert torch.equal(branch.encode(damaged, keep), branch.encode(x, keep))
        assert not torch.equal(branch.encode(x.flip(1), keep), branch.encode(x, keep))


def test_the_decoder_reads_its_own_modality_through_the_fusion(
    variants: dict[str, ModelConfig], build: Build, clips: MakeClips
) -> None:
    """With fusion the sound changes the picture's prediction; without, it cannot."""
    for name, changes in (("diffmavil", True), ("one-view-no-fusion", False)):
        model, (video, spec) = build(variants[name]), clips(2)
        base = model(video, spec, seed=1, offset=0, **KEEP)
        other = model(video, spec.flip(1), seed=1, offset=0, **KEEP)
        assert (base.video != other.video) == changes


# Features


def test_features_are_unmasked_means_without_cls(variant: ModelConfig, build: Build, clips: MakeClips) -> None:
    model, batch = build(variant).eval(), clips(3)
    features = model.features(*batch)
    width = variant.encoder.width
    assert features.audio_tokens.shape == (3, variant.audio.tokens, width)
    assert features.video_tokens.shape == (3, variant.video.tokens, width)
    torch.testing.assert_close(features.audio, features.audio_tokens.mean(dim=1))
    torch.testing.assert_close(features.video, features.video_tokens.mean(dim=1))
    assert features.fused.shape == (3, 2 * width)
    if variant.fusion_depth == 0:
        torch.testing.assert_close(features.fused, torch.cat([features.audio, features.video], dim=1))
    alone = model.features(batch[0][1:2], batch[1][1:2])
    torch.testing.assert_close(alone.fused, features.fused[1:2], rtol=1e-4, atol=1e-5)


# Learning


@pytest.mark.parametrize("name", ["mavil", "diffmavil", "fast"])
def test_the_model_learns_one_batch(
    name: str, variants: dict[str, ModelConfig], build: Build, textures: MakeClips
) -> None:
    model, batch = build(variants[name]), textures(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for step in range(50):
        losses = model(*batch, seed=1, offset=3 * step, **KEEP)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        history.append(torch.stack([loss.detach() for loss in losses]))
    start, end = Losses(*history[0]), Losses(*torch.stack(history[-5:]).mean(dim=0))
    assert end.video < 0.2 * start.video
    assert end.audio < 0.2 * start.audio
    assert end.inter < 0.2 * start.inter


# Running it


def test_compiles_as_one_graph_for_all_positions(
    variants: dict[str, ModelConfig], build: Build, clips: MakeClips
) -> None:
    config = variants["fast"]
    model, batch = build(replace(config, encoder=replace(config.encoder, depth=1))), clips(2)
    graphs = CompileCounter()
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    for offset in (2, 4, 6, 8):
        plain = model(*batch, seed=1, offset=offset, **KEEP)
        for ours, theirs in zip(plain, compiled(*batch, seed=1, offset=offset, **KEEP), strict=True):
            torch.testing.assert_close(ours, theirs)
    assert graphs.frame_count <= 2  # the second has the position as a variable


def test_bf16_autocast_stays_close_to_fp32(variant: ModelConfig, build: Build, clips: MakeClips) -> None:
    model, batch = build(variant), clips(3)
    full = model(*batch, seed=1, offset=0, **KEEP)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(*batch, seed=1, offset=0, **KEEP)
    for a, b in zip(full, half, strict=True):
        assert b.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)


def test_a_checkpoint_holds_parameters_alone(variant: ModelConfig, build: Build) -> None:
    model = build(variant)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters(remove_duplicate=False)}


def test_initialisation_follows_mae(variant: ModelConfig, build: Build) -> None:
    model = build(variant)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            bound = (6 / (module.in_features + module.out_features)) ** 0.5
            assert 0.9 * bound < module.weight.detach().abs().max() <= bound
            assert not module.bias.any()
    assert 0.01 < model.video.encoder.embed.get_parameter("cls").std() < 0.03


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video": torch.zeros(2, 4, 32, 30, 3)}, r"video\.shape=\(2, 4, 32, 30, 3\): must be \(B, 4, 32, 32, 3\)"),
        ({"video": torch.zeros(2, 3, 4, 32, 32)}, r"video\.shape"),
        ({"spec": torch.zeros(2, 32, 64)}, r"spec\.shape=\(2, 32, 64\): must be \(2, 64, 32\)"),
        ({"spec": torch.zeros(3, 64, 32)}, r"spec\.shape"),
        ({"keep_video": 0}, r"keep_video=0: must be in 1\.\.31"),
        ({"keep_video": 32}, r"keep_video=32"),
        ({"keep_audio": -1}, r"keep_audio=-1"),
    ],
    ids=["video-size", "channels-first", "transposed-spec", "batch-sizes", "none-visible", "none-masked", "negative"],
)
def test_bad_inputs_are_named(
    change: dict[str, object], message: str, variants: dict[str, ModelConfig], build: Build, clips: MakeClips
) -> None:
    video, spec = clips(2)
    arguments = {"video": video, "spec": spec, "seed": 1, "offset": 0, **KEEP, **change}
    model = build(variants["diffmavil"])
    for call in (model, model.reconstruct):
        with pytest.raises(ValueError, match=message):
            call(**arguments)  # type: ignore[arg-type]  # wrong on purpose
