"""The image MAE of the paper (He et al. 2022) in plain torch, and files of random ones in every naming."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
EPS = 1e-6


def random_state(
    width: int = 48, hidden: int = 96, depth: int = 2, patch: tuple[int, int] = (8, 8), side: int = 4
) -> State:
    """Under MAE's own names: an encoder for `side` x `side` patches, and a little of a decoder."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, std: float = 0.2) -> Tensor:
        return std * torch.randn(*shape, generator=generator)

    state = {
        "cls_token": normal(1, 1, width),
        "pos_embed": F.pad(positions((side, side), width), (0, 0, 1, 0))[None],
        "patch_embed.proj.weight": normal(width, 3, *patch),
        "patch_embed.proj.bias": normal(width),
        "norm.weight": 1 + normal(width),
        "norm.bias": normal(width),
        "mask_token": normal(1, 1, 32),
        "decoder_embed.weight": normal(32, width),
        "decoder_blocks.0.norm1.weight": normal(32),
    }
    linears = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    linears |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
    for i in range(depth):
        for name, shape in linears.items():
            state[f"blocks.{i}.{name}.weight"], state[f"blocks.{i}.{name}.bias"] = normal(*shape), normal(shape[0])
        for name in ("norm1", "norm2"):
            state[f"blocks.{i}.{name}.weight"], state[f"blocks.{i}.{name}.bias"] = 1 + normal(width), normal(width)
    return state


def positions(grid: tuple[int, int], width: int) -> Tensor:
    """Of (height, width) patches, row by row: half of the values tell the column, and come first, half the row."""
    frequencies = 10_000 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    row, column = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (column, row)]
    return torch.cat([part for a in angles for part in (a.sin(), a.cos())], dim=1).float()


def embed(state: State, picture: Tensor) -> Tensor:
    """Normalised pictures `[B, 3, H, W]` -> tokens without positions `[B, N, D]`, row by row."""
    weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    return F.conv2d(picture, weight, bias, stride=tuple(weight.shape[2:])).flatten(2).transpose(1, 2)


def encode(state: State, picture: Tensor, table: Tensor, heads: int) -> Tensor:
    """All patches visible: `[B, 3, H, W]` with positions `[N, D]` -> `[B, 1 + N, D]`, the CLS token first."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], EPS)

    tokens = embed(state, picture) + table
    x = torch.cat([state["cls_token"].expand(len(tokens), -1, -1), tokens], dim=1)
    batch, count, width = x.shape
    depth = sum(key.startswith("blocks.") and key.endswith("norm1.weight") for key in state)
    for i in range(depth):
        qkv = linear(f"blocks.{i}.attn.qkv", norm(f"blocks.{i}.norm1", x))
        q, k, v = qkv.reshape(batch, count, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / (width // heads) ** 0.5).softmax(dim=-1)
        x = x + linear(f"blocks.{i}.attn.proj", (weights @ v).transpose(1, 2).reshape(batch, count, width))
        x = x + linear(f"blocks.{i}.mlp.fc2", F.gelu(linear(f"blocks.{i}.mlp.fc1", norm(f"blocks.{i}.norm2", x))))
    return norm("norm", x)


_BOTH = {
    "norm1": ["layernorm_before"],
    "norm2": ["layernorm_after"],
    "patch_embed.proj": ["embeddings.patch_embeddings.projection"],
    "cls_token": ["embeddings.cls_token"],
    "pos_embed": ["embeddings.position_embeddings"],
}
TRANSFORMERS_4 = _BOTH | {
    "blocks": ["encoder.layer"],
    "attn.qkv": ["attention.attention.query", "attention.attention.key", "attention.attention.value"],
    "attn.proj": ["attention.output.dense"],
    "mlp.fc1": ["intermediate.dense"],
    "mlp.fc2": ["output.dense"],
}
TRANSFORMERS_5 = _BOTH | {
    "blocks": ["layers"],
    "attn.qkv": ["attention.q_proj", "attention.k_proj", "attention.v_proj"],
    "attn.proj": ["attention.o_proj"],
}


def renamed(state: State, names: dict[str, list[str]], prefix: str = "vit.") -> State:
    """As transformers' ViTMAE keeps it, of which the encoder is called `prefix`."""
    out = {}
    for key, value in state.items():
        if key.startswith(("decoder", "mask_token")):
            out[f"decoder.{key}"] = value
            continue
        found = [f"layer{key}" if key.startswith("norm.") else key]
        for ours, theirs in names.items():
            found = [name.replace(ours, one) for name in found for one in theirs if ours in name] or found
        for name, part in zip(found, value.chunk(len(found)), strict=True):
            out[prefix + name] = part.clone()
    return out
