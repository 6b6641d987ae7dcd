"""The second stage's targets and losses against an oracle in float64, written out; and what a teacher must not do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffmavil.config import EncoderConfig, ModelConfig
from diffmavil.model import DiffMAViL
from diffmavil.model.flops import teacher_flops
from diffmavil.model.teacher import Teacher, targets_at

KEEP = {"keep_video": 7, "keep_audio": 6}
KEY = {"seed": 1, "offset": 5, **KEEP}
WIDE = EncoderConfig(depth=2, width=72, heads=3, mlp_ratio=2.0)


def taught_by(student: ModelConfig, teacher: ModelConfig) -> ModelConfig:
    return replace(student, target_width=teacher.encoder.width)


# The oracle: numpy in float64, from the weights alone.


def norm(x: np.ndarray, weight: np.ndarray | float = 1.0, bias: np.ndarray | float = 0.0) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * weight + bias


def linear(state: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def blocks(state: dict[str, np.ndarray], name: str, depth: int, heads: int, x: np.ndarray) -> np.ndarray:
    for at in (f"{name}.blocks.{i}" for i in range(depth)):
        y = norm(x, state[f"{at}.norm1.weight"], state[f"{at}.norm1.bias"])
        q, k, v = rearrange(linear(state, f"{at}.attn.qkv", y), "b n (three h d) -> three b h n d", three=3, h=heads)
        scores = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]))
        read = rearrange(scores / scores.sum(-1, keepdims=True) @ v, "b h n d -> b n (h d)")
        x = x + linear(state, f"{at}.attn.proj", read)
        y = torch.from_numpy(
            linear(state, f"{at}.mlp.0", norm(x, state[f"{at}.norm2.weight"], state[f"{at}.norm2.bias"]))
        )
        x = x + linear(state, f"{at}.mlp.2", torch.nn.functional.gelu(y).numpy())
    return norm(x, state[f"{name}.norm.weight"], state[f"{name}.norm.bias"])


def oracle(model: DiffMAViL, video: Tensor, spec: Tensor) -> dict[str, np.ndarray]:
    """Normalised features `[B, N, W]` of every patch of whole clips."""
    config, state = model.config, {k: v.double().numpy() for k, v in model.state_dict().items()}
    pixels = (video.numpy() / 255.0 - np.array(config.video.mean)) / np.array(config.video.std)
    patches = {
        "audio": rearrange(spec.double().numpy(), "b (f pf) (m pm) -> b (f m) (pf pm)", pf=8, pm=8),
        "video": rearrange(pixels, "b (t pt) (h ph) (w pw) c -> b (t h w) (pt ph pw c)", pt=2, ph=8, pw=8),
    }
    depth, heads, tokens = config.encoder.depth, config.encoder.heads, {}
    for name, branch in model.branches.items():
        embedded = linear(state, f"{name}.encoder.embed.proj", patches[name])
        embedded = embedded + branch.encoder.embed.positions.double().numpy()
        cls = np.broadcast_to(state[f"{name}.encoder.embed.cls"], (len(spec), 1, embedded.shape[-1]))
        tokens[name] = blocks(state, f"{name}.encoder", depth, heads, np.concatenate([cls, embedded], 1))
    if len(tokens) == 2:
        both = [tokens[name] + state[f"fusion.{name}_type"] for name in tokens]
        joint = blocks(state, "fusion", config.fusion_depth, heads, np.concatenate(both, 1))
        tokens = dict(zip(tokens, np.split(joint, [both[0].shape[1]], axis=1), strict=True))
    return {name: norm(x[:, 1:]) for name, x in tokens.items()}


@pytest.mark.parametrize("modalities", ["av", "audio", "video"])
@pytest.mark.parametrize("name", ["mavil", "diffusion-self", "fast"])
def test_targets_and_losses_are_those_of_the_oracle(name: str, modalities: str, variants, build, clips) -> None:
    """A teacher of another size; sample by sample, view by view, position by position."""
    wide = replace(variants["mavil"], encoder=WIDE, modalities=modalities)
    source, batch = build(wide), clips(3)
    student = build(taught_by(replace(variants[name], modalities=modalities), wide))
    predicted: dict[str, Tensor] = {}
    for part, branch in student.branches.items():
        branch.decoder.register_forward_hook(lambda *args, part=part: predicted.update({part: args[2][0]}))
    draws = Teacher(wide).learn_from(source).targets(student.draw(*batch, **KEY), *batch)
    losses = student(*batch, **KEY, draws=draws)
    features = oracle(source, *batch)
    for part in student.branches:
        (drawn,) = getattr(draws, part)
        rows = [
            [features[part][b, token] for token in view.tolist()]
            for b, sample in enumerate(drawn.masks.decode)
            for view in sample
        ]
        expected = np.array(rows)
        assert drawn.target[0].dtype == torch.float32
        np.testing.assert_allclose(drawn.target[0].numpy(), expected, atol=2e-5)
        error = ((predicted[part].detach().double().numpy() - expected) ** 2).mean()
        assert getattr(losses, part).item() == pytest.approx(error, rel=1e-5)
    weights = student.config.contrast
    total = losses.video + losses.audio + weights.inter_weight * losses.inter + weights.intra_weight * losses.intra
    torch.testing.assert_close(losses.total, total)


def test_nothing_but_the_decoded_positions_counts() -> None:
    features = torch.randn(2, 9, 5, requires_grad=True)
    ids = torch.tensor([[[0, 3], [3, 8]], [[1, 2], [4, 5]]], dtype=torch.int32)
    flat = features.detach().clone()
    for b, sample in enumerate(ids):
        hidden = sorted(set(range(9)) - set(sample.flatten().tolist()))
        flat[b, hidden] = torch.nan
    assert torch.equal(targets_at(flat, ids), targets_at(features.detach(), ids))
    assert targets_at(flat, ids).shape == (4, 2, 5)


def test_each_target_is_normalised(variants, build, clips) -> None:
    config = variants["fast"]
    batch, model = clips(2), build(taught_by(config, config))
    draws = Teacher(config).learn_from(build(config)).targets(model.draw(*batch, **KEY), *batch)
    for drawn in (*draws.audio, *draws.video):
        torch.testing.assert_close(drawn.target[0].mean(-1), torch.zeros(()).expand(drawn.target[0].shape[:2]))
        assert drawn.target[0].var(-1, correction=0) == pytest.approx(1.0, abs=1e-3)


def test_a_batch_of_several_ratios_has_the_targets_of_its_clips_alone(variants, build, clips) -> None:
    config, batch = variants["fast"], clips(12)
    model, teacher = build(taught_by(config, config)), Teacher(config).learn_from(build(config))
    key = {"seed": 1, "offset": 12, "keep_video": (7, 20), "keep_audio": (6, 9)}
    mixed = teacher.targets(model.draw(*batch, **key), *batch)
    later = tuple(x[4:] for x in batch)
    alone = teacher.targets(model.draw(*later, seed=1, offset=16, keep_video=7, keep_audio=6), *later)
    torch.testing.assert_close(mixed.video[1].target[0], alone.video[0].target[0])
    torch.testing.assert_close(mixed.audio[1].target[0], alone.audio[0].target[0])
    assert torch.isfinite(model(*batch, **key, draws=mixed).total)


def test_the_pixels_are_no_targets(variants, build, clips, monkeypatch) -> None:
    """Nor are they computed: the op that reads them is never called."""

    def never(*args: object, **more: object) -> Tensor:
        raise AssertionError("the pixels were read")

    monkeypatch.setattr("diffmavil.model.branch.masked_mse", never)
    config, batch = variants["diffmavil"], clips(2)
    model = build(taught_by(config, config))
    draws = Teacher(config).learn_from(build(config)).targets(model.draw(*batch, **KEY), *batch)
    model(*batch, **KEY, draws=draws).total.backward()
    with pytest.raises(AssertionError, match="the pixels were read"):
        build(config)(*batch, **KEY)


def test_targets_that_are_missing_or_of_another_width_are_refused(variants, build, clips) -> None:
    config, batch = variants["fast"], clips(2)
    patches, features = build(config), build(taught_by(config, config))
    teacher = Teacher(config).learn_from(patches)
    with pytest.raises(ValueError, match=r"draws\.target=None: must be features of 48 numbers"):
        features(*batch, **KEY)
    with pytest.raises(ValueError, match=r"draws\.target=48"):
        patches(*batch, **KEY, draws=teacher.targets(patches.draw(*batch, **KEY), *batch))
    with pytest.raises(ValueError, match=r"model\.target_width=48: must be None to be drawn"):
        features.reconstruct(*batch, **KEY)
    with pytest.raises(ValueError, match=r"video\.shape"):
        teacher(batch[0][:, :2], batch[1])


def test_a_teacher_is_never_trained_and_a_student_of_it_can_teach(variants, build, clips) -> None:
    config, batch = variants["fast"], clips(2)
    student = build(taught_by(config, replace(config, encoder=WIDE)))
    teacher = Teacher(student.config).learn_from(student).train()
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(x.requires_grad for x in teacher(*batch).values())
    assert {name.split(".")[0] for name in teacher.state_dict()} == {"audio", "video", "fusion"}
    assert not any("decoder" in name for name in teacher.state_dict())


def test_an_average_follows(variants, build) -> None:
    config = variants["mavil"]
    first, second = build(config), DiffMAViL(config)
    teacher = Teacher(config).learn_from(first)
    teacher.follow(second, 0.75)
    theirs = (first.state_dict(), second.state_dict())
    for name, value in teacher.state_dict().items():
        torch.testing.assert_close(value, 0.75 * theirs[0][name] + 0.25 * theirs[1][name])


@pytest.mark.parametrize("modalities", ["av", "video"])
def test_its_flops_are_torchs(modalities: str, variants, build, clips) -> None:
    config = replace(variants["mavil"], modalities=modalities)
    teacher, batch = Teacher(config).learn_from(build(config)), clips(2)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        teacher(*batch)
    assert 2 * teacher_flops(teacher) == pytest.approx(counter.get_total_flops(), rel=0.01)
