"""Pre-norm transformer blocks with self- or cross-attention."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from maekernels import attention

NORM_EPS = 1e-6


def layer_norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=NORM_EPS)


class Mlp(nn.Sequential):
    """Linear, GELU, Linear: `[..., D] -> [..., D]`."""

    def __init__(self, width: int, ratio: float) -> None:
        hidden = int(width * ratio)
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class SelfAttention(nn.Module):
    """Every token reads every token: `[B, N, D] -> [B, N, D]`. Queries, keys and values come from one Linear."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (qkv h d) -> qkv b n h d", qkv=3, h=self.heads)
        return self.proj(rearrange(attention(q, k, v), "b n h d -> b n (h d)"))


class CrossAttention(nn.Module):
    """Queries `[B, Q, D]` read a context `[B, N, D]`, and not each other: `-> [B, Q, D]`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q = rearrange(self.q(x), "b q (h d) -> b q h d", h=self.heads)
        k, v = rearrange(self.kv(context), "b n (kv h d) -> kv b n h d", kv=2, h=self.heads)
        return self.proj(rearrange(attention(q, k, v), "b q h d -> b q (h d)"))


class SelfBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), as in ViT: `[B, N, D] -> [B, N, D]`."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = layer_norm(width)
        self.attn = SelfAttention(width, heads)
        self.norm2 = layer_norm(width)
        self.mlp = Mlp(width, mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class CrossBlock(nn.Module):
    """As `SelfBlock`, but the queries read the context instead of each other (CrossMAE, Fu et al. 2024).

    No query sees another, so leaving queries out changes nothing for those that stay.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = layer_norm(width)
        self.attn = CrossAttention(width, heads)
        self.norm2 = layer_norm(width)
        self.mlp = Mlp(width, mlp_ratio)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), context)
        return x + self.mlp(self.norm2(x))
