"""Mixed masking: one batch, several ratios, packed; and random numbers drawn apart from the arithmetic."""

from dataclasses import replace

import pytest
import torch

from diffmavil.config import ModelConfig
from diffmavil.model.blocks import Blocks, SelfBlock, pack, unpack
from diffmavil.model.draws import MIX_RUN, spans

KEEP = {"keep_video": 7, "keep_audio": 6}


def test_runs_of_samples_take_the_counts_in_turn_wherever_the_batch_begins() -> None:
    whole = [(s.first, s.last, s.keep_audio, s.keep_video) for s in spans(24, 0, (3, 5), (10, 20))]
    assert whole == [(0, 8, 3, 10), (8, 16, 5, 20), (16, 24, 3, 10)]
    counts = [count for s in spans(24, 0, (3, 5), 9) for count in [s.keep_audio] * s.samples]
    later = [count for s in spans(19, 5, (3, 5), 9) for count in [s.keep_audio] * s.samples]
    assert later == counts[5:]


def test_one_count_is_one_span() -> None:
    assert spans(13, 5, 3, 4) == [(0, 13, 3, 4)]


def test_counts_for_other_numbers_of_turns_are_refused() -> None:
    with pytest.raises(ValueError, match="keep_audio, keep_video"):
        spans(8, 0, (1, 2), (1, 2, 3))


def test_a_mix_of_one_ratio_is_the_batch_of_that_ratio(variant: ModelConfig, build, clips) -> None:
    model, batch = build(variant), clips(12)
    plain = model(*batch, seed=1, offset=4, **KEEP)
    mixed = model(*batch, seed=1, offset=4, keep_video=(7, 7), keep_audio=(6, 6))
    gradients = [torch.autograd.grad(losses.total, list(model.parameters())) for losses in (plain, mixed)]
    for a, b in zip((*plain, *gradients[0]), (*mixed, *gradients[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_each_sample_of_a_mix_is_computed_as_alone(variants, build, clips) -> None:
    """Reconstruction of a packed batch is the mean over its runs, each of which is a batch of its own."""
    model, (video, spec) = build(variants["fast"]), clips(12)
    offset = 2 * MIX_RUN - 4  # four samples of one run, then eight of the next
    mixed = model(video, spec, seed=1, offset=offset, keep_video=(7, 20), keep_audio=(6, 9))
    first = model(video[:4], spec[:4], seed=1, offset=offset, keep_video=20, keep_audio=9)
    second = model(video[4:], spec[4:], seed=1, offset=offset + 4, keep_video=7, keep_audio=6)
    for part in ("video", "audio"):
        mean = (4 * getattr(first, part) + 8 * getattr(second, part)) / 12
        torch.testing.assert_close(getattr(mixed, part), mean)


def test_what_was_drawn_before_gives_the_same_losses(variant: ModelConfig, build, clips) -> None:
    model, batch = build(variant), clips(3)
    key = {"seed": 1, "offset": 5, **KEEP}
    draws = model.draw(*batch, **key)
    again = model(*batch, **{**key, "seed": 99, "offset": 77}, draws=draws)
    assert all(torch.equal(a, b) for a, b in zip(model(*batch, **key), again, strict=True))


def test_unpack_is_the_inverse_of_pack() -> None:
    batches = [torch.randn(2, 3, 4), torch.randn(1, 5, 4)]
    packed, segments = pack(batches)
    assert packed.shape == (11, 4)
    assert segments.lengths == (3, 3, 5)
    assert all(torch.equal(a, b) for a, b in zip(unpack(packed, batches), batches, strict=True))


def test_recomputed_blocks_give_the_same_gradients(variant: ModelConfig, build, clips) -> None:
    model, batch = build(variant), clips(3)
    gradients = []
    for recompute in (False, True):
        for module in model.modules():
            if isinstance(module, Blocks):
                module.recompute = recompute
        total = model(*batch, seed=1, offset=0, **KEEP).total
        gradients.append(torch.autograd.grad(total, list(model.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_attention_of_the_config_is_the_one_used(variants, build, clips) -> None:
    fast = variants["fast"]
    plain = build(replace(fast, attention="math"))(*clips(2), seed=1, offset=0, **KEEP)
    other = build(replace(fast, attention="sdpa"))(*clips(2), seed=1, offset=0, **KEEP)
    torch.testing.assert_close(plain.total, other.total)
    with pytest.raises(ValueError, match="backend='flash'"):
        build(replace(fast, attention="flash"))(*clips(2), seed=1, offset=0, **KEEP)


def test_every_block_is_reached_by_the_choice(variants, build) -> None:
    model = build(replace(variants["fast"], attention="math"))
    used = {m.backend for m in model.modules() if hasattr(m, "backend")}
    assert used == {"math"}
    assert SelfBlock(8, 2, 1.0).attn.backend == "auto"
