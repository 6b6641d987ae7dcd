"""Attention and blocks against explicit formulas."""

import torch
from torch import Tensor

from diffmavil.model.blocks import CrossAttention, CrossBlock, SelfAttention, SelfBlock


def _by_hand(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention of one sample, head by head: q `[Q, D]`, k and v `[N, D]`."""
    size = q.shape[1] // heads
    out = []
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        weights = torch.softmax(q[:, part] @ k[:, part].T / size**0.5, dim=1)
        out.append(weights @ v[:, part])
    return torch.cat(out, dim=1)


def test_self_attention_is_softmax_of_the_fused_projection() -> None:
    torch.manual_seed(0)
    attn, x = SelfAttention(12, heads=3), torch.randn(2, 5, 12)
    for b in range(2):
        q, k, v = attn.qkv(x[b]).split(12, dim=1)
        torch.testing.assert_close(attn(x)[b], attn.proj(_by_hand(q, k, v, heads=3)))


def test_cross_attention_reads_the_context() -> None:
    torch.manual_seed(0)
    attn, x, context = CrossAttention(12, heads=2), torch.randn(2, 4, 12), torch.randn(2, 7, 12)
    for b in range(2):
        k, v = attn.kv(context[b]).split(12, dim=1)
        torch.testing.assert_close(attn(x, context)[b], attn.proj(_by_hand(attn.q(x[b]), k, v, heads=2)))


def test_self_block_does_not_know_the_order_of_tokens() -> None:
    torch.manual_seed(0)
    block, x, order = SelfBlock(16, heads=4, mlp_ratio=2), torch.randn(2, 6, 16), torch.randperm(6)
    torch.testing.assert_close(block(x)[:, order], block(x[:, order]))


def test_cross_block_treats_every_query_alone() -> None:
    torch.manual_seed(0)
    block, x, context = CrossBlock(16, heads=4, mlp_ratio=2), torch.randn(2, 6, 16), torch.randn(2, 5, 16)
    changed = x.clone()
    changed[:, 3] += 1
    same = [0, 1, 2, 4, 5]
    torch.testing.assert_close(block(changed, context)[:, same], block(x, context)[:, same])
    assert not torch.allclose(block(x, context + 1), block(x, context))
