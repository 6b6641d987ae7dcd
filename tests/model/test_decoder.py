"""Decoders against the way their papers write them."""

from dataclasses import replace

import pytest
import torch

from diffmavil.config import DecoderConfig
from diffmavil.model.decoder import Decoder, DiffusedPatch, ToDecode
from diffmavil.model.mavil import initialise

GRID, PATCH_DIM, CONTEXT, TOKENS = (2, 3, 2), 10, 16, 12
CONFIG = DecoderConfig(depth=2, width=24, heads=2, mlp_ratio=2.0)


def _decoder(attention: str, *, diffused: bool, reads: str = "last", encoder_depth: int = 0) -> Decoder:
    torch.manual_seed(0)
    config = replace(CONFIG, attention=attention, reads=reads)
    decoder = Decoder(GRID, PATCH_DIM, CONTEXT, config, diffused=diffused, encoder_depth=encoder_depth)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return decoder


def _inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    order = torch.stack([torch.randperm(TOKENS, generator=generator) for _ in range(2)]).int()
    keep, mask = order[:, :4].sort().values, order[:, 4:].sort().values
    return torch.randn(2, 5, CONTEXT, generator=generator), keep, mask


@pytest.mark.parametrize("diffused", [False, True], ids=["mask-token", "diffused"])
def test_self_decoder_equals_mae_with_every_token_in_its_place(diffused: bool) -> None:
    decoder, (fused, keep, mask) = _decoder("self", diffused=diffused), _inputs()
    x_t, t = torch.randn(2, 8, PATCH_DIM), torch.tensor([3, 900])
    predicted = decoder(fused, keep, mask, *((x_t, t) if diffused else ()))

    for b in range(2):
        visible = decoder.context(fused[b])
        tokens = torch.empty(TOKENS, CONFIG.width)
        tokens[keep[b]] = visible[1:] + decoder.positions[keep[b]]
        if isinstance(decoder.masked, DiffusedPatch):
            stand_in = decoder.masked.proj(x_t[b]) + decoder.masked.time(t[b : b + 1])
        else:
            stand_in = decoder.masked.token
        tokens[mask[b]] = stand_in + decoder.positions[mask[b]]
        x = torch.cat([visible[:1], tokens])[None]
        for block in decoder.blocks:
            x = block(x)
        everywhere = decoder.head(decoder.norm(x))[0, 1:]
        torch.testing.assert_close(predicted[b], everywhere[mask[b]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("diffused", [False, True], ids=["mask-token", "diffused"])
def test_cross_decoder_predicts_a_subset_as_it_predicts_all(diffused: bool) -> None:
    decoder, (fused, keep, mask) = _decoder("cross", diffused=diffused), _inputs()
    x_t, t = torch.randn(2, 8, PATCH_DIM), torch.tensor([3, 900])
    chosen = [0, 3, 6]
    everything = decoder(fused, keep, mask, *((x_t, t) if diffused else ()))
    subset = decoder(fused, keep, mask[:, chosen], *((x_t[:, chosen], t) if diffused else ()))
    torch.testing.assert_close(subset, everything[:, chosen])


@pytest.mark.parametrize("attention", ["self", "cross"])
def test_predictions_depend_on_context_patch_and_time(attention: str) -> None:
    decoder, (fused, keep, mask) = _decoder(attention, diffused=True), _inputs()
    x_t, t = torch.randn(2, 8, PATCH_DIM), torch.tensor([3, 900])
    base = decoder(fused, keep, mask, x_t, t)
    for changed in [(fused + 1, x_t, t), (fused, x_t + 1, t), (fused, x_t, t - 2)]:
        assert not torch.allclose(decoder(changed[0], keep, mask, *changed[1:]), base)


def test_each_block_reads_its_own_mix_of_the_encoder_s_blocks() -> None:
    """As CrossMAE writes it: block j reads norm_j(sum over layers of w_jl h_l)."""
    decoder, (fused, keep, mask) = _decoder("cross", diffused=False, reads="mix", encoder_depth=3), _inputs()
    blocks = tuple(torch.randn(3, *fused.shape))
    (predicted,) = decoder([ToDecode(fused, keep, mask, (), blocks)])
    x = decoder.masked(decoder.positions[mask])
    for block, weights, norm in zip(decoder.blocks, decoder.mix.weight, decoder.mix.norms, strict=True):
        total = sum(weight * layer for weight, layer in zip(weights, (*blocks, fused), strict=True))
        x = block(x, decoder.embed_context(norm(total), keep))
    torch.testing.assert_close(predicted, decoder.head(decoder.norm(x)))


def test_a_mix_is_at_first_the_fused_tokens_and_each_batch_is_mixed_alone() -> None:
    decoder, (fused, keep, mask) = _decoder("cross", diffused=False, reads="mix", encoder_depth=1), _inputs()
    decoder.apply(initialise)
    one = ToDecode(fused, keep, mask, (), (torch.randn(fused.shape),))
    two = ToDecode(fused[:, :3], keep[:, :2], mask[:, 1:], (), (torch.randn(2, 3, CONTEXT),))
    other = one._replace(blocks=(torch.randn(fused.shape),))
    torch.testing.assert_close(decoder([one])[0], decoder([other])[0])
    torch.nn.init.normal_(decoder.mix.weight)
    assert not torch.allclose(decoder([one])[0], decoder([other])[0], atol=1e-3)
    for together, alone in zip(decoder([one, two]), (one, two), strict=True):
        torch.testing.assert_close(together, decoder([alone])[0])


def test_self_attention_has_nothing_to_mix() -> None:
    with pytest.raises(ValueError, match=r"decoder\.reads='mix': must be 'last' with attention=self"):
        DecoderConfig(reads="mix")


def test_a_variant_has_only_the_parameters_it_uses() -> None:
    def names(attention: str, diffused: bool) -> str:
        return " ".join(name for name, _ in _decoder(attention, diffused=diffused).named_parameters())

    assert "masked.token" in names("self", False)
    assert "time" not in names("self", False)
    assert "masked.token" not in names("cross", True)
    assert "qkv" not in names("cross", True)
    assert ".kv" not in names("self", True)
    assert "mix" not in names("cross", True)
