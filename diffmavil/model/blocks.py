"""Pre-norm transformer blocks with self- or cross-attention.

Everything here takes tokens of equal sequences `[B, N, D]` or, with `Segments`, of sequences packed end to end
`[T, D]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffmavil.model.apex import fused_layer_norm
from maekernels import Segments, attention
from maekernels.attention import Backend

NORM_EPS = 1e-6


def layer_norm(width: int, eps: float = NORM_EPS) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=eps)


def choose_kernels(model: nn.Module, attention: Backend, norm: Literal["torch", "apex"]) -> None:
    """Whose kernels every attention and LayerNorm below `model` uses. Parameters and their names stay.

    Raises:
        ValueError: `norm` is 'apex', and NVIDIA apex cannot be used here.
    """
    for module in list(model.modules()):
        if isinstance(module, SelfAttention | CrossAttention):
            module.backend = attention
        for name, child in list(module.named_children()):
            if norm == "apex" and isinstance(child, nn.LayerNorm):
                fused = fused_layer_norm(child.weight.shape[0], child.eps)
                fused.weight, fused.bias = child.weight, child.bias
                setattr(module, name, fused)


class Mlp(nn.Sequential):
    """Linear, GELU, Linear: `[..., D] -> [..., D]`."""

    def __init__(self, width: int, ratio: float) -> None:
        hidden = int(width * ratio)
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class SelfAttention(nn.Module):
    """Every token reads every token of its sequence. Queries, keys and values come from one Linear."""

    backend: Backend = "auto"

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, segments: Segments | None = None) -> Tensor:
        # Their gradients are put together in this order, without a second copy of them.
        q, k, v = rearrange(self.qkv(x), "... (qkv h d) -> ... qkv h d", qkv=3, h=self.heads).unbind(-3)
        out = attention(q, k, v, segments, backend=self.backend)
        return self.proj(rearrange(out, "... h d -> ... (h d)"))


class CrossAttention(nn.Module):
    """Queries `[B, Q, D]` read a context `[B, N, D]`, and not each other: `-> [B, Q, D]`."""

    backend: Backend = "auto"

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Tensor, context: Tensor, segments: Segments | None = None, context_segments: Segments | None = None
    ) -> Tensor:
        q = rearrange(self.q(x), "... (h d) -> ... h d", h=self.heads)
        k, v = rearrange(self.kv(context), "... (kv h d) -> ... kv h d", kv=2, h=self.heads).unbind(-3)
        out = attention(q, k, v, segments, context_segments, backend=self.backend)
        return self.proj(rearrange(out, "... h d -> ... (h d)"))


class SelfBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), as in ViT: `[B, N, D] -> [B, N, D]`.

    scale: `[2, B]`, by which each of the two terms is multiplied before it is added to a clip's tokens.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, eps: float = NORM_EPS) -> None:
        super().__init__()
        self.norm1 = layer_norm(width, eps)
        self.attn = SelfAttention(width, heads)
        self.norm2 = layer_norm(width, eps)
        self.mlp = Mlp(width, mlp_ratio)

    def forward(self, x: Tensor, segments: Segments | None = None, scale: Tensor | None = None) -> Tensor:
        if scale is None:
            x = x + self.attn(self.norm1(x), segments)
            return x + self.mlp(self.norm2(x))
        first, second = rearrange(scale.to(x.dtype), "two b -> two b 1 1")
        x = x + first * self.attn(self.norm1(x), segments)
        return x + second * self.mlp(self.norm2(x))


class CrossBlock(nn.Module):
    """As `SelfBlock`, but the queries read the context instead of each other (CrossMAE, Fu et al. 2024).

    No query sees another, so leaving queries out changes nothing for those that stay.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, eps: float = NORM_EPS) -> None:
        super().__init__()
        self.norm1 = layer_norm(width, eps)
        self.attn = CrossAttention(width, heads)
        self.norm2 = layer_norm(width, eps)
        self.mlp = Mlp(width, mlp_ratio)

    def forward(
        self, x: Tensor, context: Tensor, segments: Segments | None = None, context_segments: Segments | None = None
    ) -> Tensor:
        x = x + self.attn(self.norm1(x), context, segments, context_segments)
        return x + self.mlp(self.norm2(x))


class Blocks(nn.ModuleList):
    """Blocks one after the other, over one batch or several batches of other lengths, which are then packed.

    Attributes:
        recompute: keep only the input of each block for the backward pass and compute it again there.
    """

    recompute: bool = False

    def forward(
        self, batches: Sequence[Tensor], contexts: Sequence[Tensor] = (), scales: Tensor | None = None
    ) -> list[Tensor]:
        """batches: `[B_i, N_i, D]`, and for cross-attention contexts `[B_i, M_i, D]`; gives the shapes of batches.

        scales: `[blocks, 2, B]` of one batch, see `SelfBlock`.
        """
        if scales is not None:
            return [self._run_scaled(batches[0], scales)]
        if len(batches) == 1:
            return [self._run(batches[0], *contexts)]
        x, segments = pack(batches)
        if not contexts:
            return unpack(self._run(x, segments), batches)
        context, context_segments = pack(contexts)
        return unpack(self._run(x, context, segments, context_segments), batches)

    def each(self, batches: Sequence[Tensor], contexts: Sequence[Sequence[Tensor]] = ()) -> Iterator[list[Tensor]]:
        """What every block gives, in turn; arguments as of `forward`, but that each block has contexts of its own."""
        alone = len(batches) == 1
        x, segments = (batches[0], None) if alone else pack(batches)
        for i, block in enumerate(self):
            if not contexts:
                x = self._block(block, x, segments)
            elif alone:
                x = self._block(block, x, contexts[i][0])
            else:
                context, context_segments = pack(contexts[i])
                x = self._block(block, x, context, segments, context_segments)
            yield [x] if alone else unpack(x, batches)

    def _run(self, x: Tensor, *others: Tensor | Segments) -> Tensor:
        for block in self:
            x = self._block(block, x, *others)
        return x

    def _run_scaled(self, x: Tensor, scales: Tensor) -> Tensor:
        for block, scale in zip(self, scales, strict=True):
            x = self._block(block, x, None, scale)
        return x

    def _block(self, block: nn.Module, *arguments: Tensor | Segments | None) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            # Nothing in a block is random, so there is no generator's state to keep.
            return cast(Tensor, checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False))
        return block(*arguments)


def pack(batches: Sequence[Tensor]) -> tuple[Tensor, Segments]:
    """`[B_i, N_i, D]` -> all tokens end to end `[T, D]`, and where each sequence lies."""
    lengths = [x.shape[1] for x in batches for _ in range(x.shape[0])]
    return torch.cat([rearrange(x, "b n d -> (b n) d") for x in batches]), Segments.of(lengths, batches[0].device)


def unpack(x: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of `pack`, for batches of the shapes of `like`."""
    parts = x.split([y.shape[0] * y.shape[1] for y in like])
    return [rearrange(part, "(b n) d -> b n d", b=y.shape[0]) for part, y in zip(parts, like, strict=True)]
