"""MAE, AudioMAE and CrossMAE in a few lines each, as their papers tell them, and the same with our ops.

One skeleton: embed, keep some, encode, decode, loss on the masked. What each paper has of its own is a method. `Plain`
is written as their authors write it: every patch embedded, noise sorted, indices repeated to gather, targets cut from
the whole picture. `OnOps` has the same weights and overrides what the ops replace.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from maekernels import attention, gather_tokens, masked_mse, scatter_tokens
from maekernels.integrations import MaskedPatchEmbed


@dataclass(frozen=True)
class Kind:
    """What differs: MAE on pictures; AudioMAE on spectrograms, raw targets; CrossMAE decodes a part, by attending."""

    name: str
    channels: int = 3
    size: tuple[int, int] = (16, 16)
    norm_pix: bool = True
    crosses: bool = False
    decoded: int | None = None

    def __str__(self) -> str:
        return self.name


KINDS = [
    Kind("MAE"),
    Kind("AudioMAE", channels=1, size=(32, 16), norm_pix=False),
    Kind("CrossMAE", crosses=True, decoded=5),
]
PATCH, WIDTH, HEADS = 4, 16, 2


class Block(nn.Module):
    """Pre-norm; keys and values from `context` where there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.kv, self.proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        normed = self.norm1(x)
        q = rearrange(self.q(normed), "b n (h d) -> b n h d", h=HEADS)
        k, v = rearrange(
            self.kv(normed if context is None else context), "b n (two h d) -> two b n h d", two=2, h=HEADS
        )
        x = x + self.proj(self.attend(q, k, v).flatten(2))
        return x + self.mlp(self.norm2(x))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = torch.einsum("bnhd,bmhd->bhnm", q, k).mul(q.shape[-1] ** -0.5).softmax(-1)
        return torch.einsum("bhnm,bmhd->bnhd", weights, v)


class Plain(nn.Module):
    """x [B, C, H, W] and noise [B, N] -> the loss."""

    block = Block
    positions: Tensor

    def __init__(self, kind: Kind, mask_ratio: float = 0.75) -> None:
        super().__init__()
        self.kind, self.mask_ratio = kind, mask_ratio
        tokens, dim = kind.size[0] * kind.size[1] // PATCH**2, PATCH**2 * kind.channels
        self.embed = nn.Conv2d(kind.channels, WIDTH, PATCH, PATCH)
        self.register_buffer("positions", torch.randn(1, tokens, WIDTH))
        self.mask_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.encoder = nn.ModuleList(self.block() for _ in range(2))
        self.decoder = nn.ModuleList(self.block() for _ in range(2))
        self.head = nn.Linear(WIDTH, dim)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        order = noise.argsort(dim=1)
        ids_keep, ids_mask = order.split(
            [keep := int(order.shape[1] * (1 - self.mask_ratio)), order.shape[1] - keep], 1
        )
        if self.kind.decoded is not None:
            ids_mask = ids_mask[:, : self.kind.decoded]
        hidden = self.visible(x, ids_keep)
        for block in self.encoder:
            hidden = block(hidden)
        if self.kind.crosses:
            queries = self.mask_token + self.gather(self.positions.expand(len(x), -1, -1), ids_mask)
            for block in self.decoder:
                queries = block(queries, hidden)
            return self.loss(self.head(queries), x, ids_mask)
        full = self.unshuffle(hidden, ids_keep, order) + self.positions
        for block in self.decoder:
            full = block(full)
        return self.loss(self.gather(self.head(full), ids_mask), x, ids_mask)

    def gather(self, x: Tensor, ids: Tensor) -> Tensor:
        return torch.gather(x, 1, ids[..., None].repeat(1, 1, x.shape[2]))

    def visible(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.gather(self.embed(x).flatten(2).mT + self.positions, ids)

    def unshuffle(self, hidden: Tensor, ids_keep: Tensor, order: Tensor) -> Tensor:
        missing = self.mask_token.repeat(len(order), order.shape[1] - hidden.shape[1], 1)
        return self.gather(torch.cat([hidden, missing], dim=1), order.argsort(dim=1))

    def loss(self, pred: Tensor, x: Tensor, ids: Tensor) -> Tensor:
        target = rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=PATCH, q=PATCH)
        if self.kind.norm_pix:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
        return (pred - self.gather(target, ids)).square().mean()


class OpsBlock(Block):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v)


class OnOps(Plain):
    block = OpsBlock

    def gather(self, x: Tensor, ids: Tensor) -> Tensor:
        return gather_tokens(x, ids)

    def visible(self, x: Tensor, ids: Tensor) -> Tensor:
        return MaskedPatchEmbed(self.embed)(x, ids) + F.embedding(ids, self.positions[0])

    def unshuffle(self, hidden: Tensor, ids_keep: Tensor, order: Tensor) -> Tensor:
        return scatter_tokens(hidden, ids_keep, order.shape[1], self.mask_token[0, 0])

    def loss(self, pred: Tensor, x: Tensor, ids: Tensor) -> Tensor:
        normal = [0.0] * self.kind.channels, [1.0] * self.kind.channels
        return masked_mse(pred, x, ids, (PATCH, PATCH), *normal, self.kind.norm_pix, channels_first=True)
