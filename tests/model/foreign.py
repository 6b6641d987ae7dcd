"""Other people's masked autoencoders in plain torch, written from their descriptions, and files of random ones.

Each is a state with its authors' names, and a function that computes what they do with it. Pictures and spectrograms
come normalised.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
WIDTH, HEADS, HIDDEN = 48, 3, 96
PATCH = 8


class Random:
    """Draws parameters."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, *shape: int, mean: float = 0.0) -> Tensor:
        return mean + 0.2 * torch.randn(*shape, generator=self.generator)

    def norm(self, name: str, width: int = WIDTH) -> State:
        return {f"{name}.weight": self.normal(width, mean=1.0), f"{name}.bias": self.normal(width)}

    def linear(self, name: str, rows: int, columns: int) -> State:
        return {f"{name}.weight": self.normal(rows, columns), f"{name}.bias": self.normal(rows)}

    def block(self, name: str, norms: Sequence[str] = ("norm1", "norm2"), width: int = WIDTH) -> State:
        state: State = {}
        for norm in norms:
            state |= self.norm(f"{name}.{norm}", width)
        state |= self.linear(f"{name}.attn.qkv", 3 * width, width) | self.linear(f"{name}.attn.proj", width, width)
        return state | self.linear(f"{name}.mlp.fc1", HIDDEN, width) | self.linear(f"{name}.mlp.fc2", width, HIDDEN)

    def conv(self, name: str, *shape: int) -> State:
        return {f"{name}.weight": self.normal(WIDTH, *shape), f"{name}.bias": self.normal(WIDTH)}


def block(state: State, name: str, x: Tensor, eps: float, ending: str = "", heads: int = HEADS) -> Tensor:
    """A pre-norm block; `ending`: which of its LayerNorms."""

    def linear(part: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.{part}.weight"], state[f"{name}.{part}.bias"])

    def norm(part: str, x: Tensor) -> Tensor:
        return layer_norm(state, f"{name}.{part}{ending}", x, eps)

    batch, count, width = x.shape
    qkv = linear("attn.qkv", norm("norm1", x)).reshape(batch, count, 3, heads, width // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-1, -2) / (width // heads) ** 0.5).softmax(dim=-1)
    x = x + linear("attn.proj", (weights @ v).transpose(1, 2).reshape(batch, count, width))
    return x + linear("mlp.fc2", F.gelu(linear("mlp.fc1", norm("norm2", x))))


def layer_norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def tokens(state: State, name: str, x: Tensor) -> Tensor:
    """`[B, C, *sizes]` -> `[B, N, D]`, row by row."""
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    conv = F.conv3d if weight.dim() == 5 else F.conv2d
    return conv(x, weight, bias, stride=tuple(weight.shape[2:])).flatten(2).transpose(1, 2)


def with_cls(state: State, cls: str, positions: str, x: Tensor) -> Tensor:
    """Positions added, and the CLS token with its own in front."""
    table = state[positions]
    first = (state[cls] + table[:, :1]).expand(len(x), -1, -1)
    return torch.cat([first, x + table[:, 1:]], dim=1)


def audio_mae(mel_patches: int = 4, time_patches: int = 6) -> State:
    """AudioMAE (Huang et al. 2022): MAE on spectrograms [B, 1, time, mel]; with a decoder of MAE's kind."""
    r = Random()
    state = r.conv("patch_embed.proj", 1, PATCH, PATCH) | r.norm("norm")
    state["cls_token"], state["pos_embed"] = r.normal(1, 1, WIDTH), r.normal(1, 1 + time_patches * mel_patches, WIDTH)
    for i in range(2):
        state |= r.block(f"blocks.{i}")
    state["mask_token"] = r.normal(1, 1, 32)
    state["decoder_pos_embed"] = F.pad(r.normal(1, time_patches * mel_patches, 32), (0, 0, 1, 0))
    state |= r.linear("decoder_embed", 32, WIDTH) | r.norm("decoder_norm", 32)
    return state | r.block("decoder_blocks.0", width=32) | r.linear("decoder_pred", PATCH * PATCH, 32)


def audio_mae_encode(state: State, spec: Tensor) -> Tensor:
    """`[B, F, M]` -> `[B, 1 + N, D]`."""
    x = with_cls(state, "cls_token", "pos_embed", tokens(state, "patch_embed.proj", spec[:, None]))
    for i in range(2):
        x = block(state, f"blocks.{i}", x, 1e-6)
    return layer_norm(state, "norm", x, 1e-6)


def audio_mae_decode(state: State, latent: Tensor, keep: Tensor) -> Tensor:
    """Latent `[B, 1 + K, D]` of the patches `keep` `[K]` -> all patches `[B, N, P]`."""
    x = F.linear(latent, state["decoder_embed.weight"], state["decoder_embed.bias"])
    table = state["decoder_pos_embed"]
    whole = state["mask_token"].repeat(len(x), table.shape[1] - 1, 1)
    whole[:, keep] = x[:, 1:]
    x = torch.cat([x[:, :1], whole], dim=1) + table
    x = layer_norm(state, "decoder_norm", block(state, "decoder_blocks.0", x, 1e-6, heads=1), 1e-6)
    return F.linear(x, state["decoder_pred.weight"], state["decoder_pred.bias"])[:, 1:]


def video_mae(prefix: str = "encoder.", norm: str = "norm") -> State:
    """VideoMAE (Tong et al. 2022): no CLS; queries and values have biases, keys have none."""
    r = Random()
    state = r.conv("patch_embed.proj", 3, 2, PATCH, PATCH) | r.norm(norm)
    for i in range(2):
        one = r.block(f"blocks.{i}")
        q, _, v = one.pop(f"blocks.{i}.attn.qkv.bias").chunk(3)
        state |= one | {f"blocks.{i}.attn.q_bias": q.clone(), f"blocks.{i}.attn.v_bias": v.clone()}
    return {prefix + name: value for name, value in state.items()}


def video_mae_encode(state: State, video: Tensor, prefix: str = "encoder.", norm: str | None = "norm") -> Tensor:
    """`[B, 3, T, H, W]` -> `[B, N, D]`."""
    state = {name.removeprefix(prefix): value for name, value in state.items()}
    for i in range(2):
        q, v = (state[f"blocks.{i}.attn.{one}_bias"] for one in "qv")
        state[f"blocks.{i}.attn.qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    x = tokens(state, "patch_embed.proj", video)
    column = torch.arange(WIDTH)
    angle = torch.arange(x.shape[1])[:, None].double() / 10_000 ** (2 * (column // 2) / WIDTH).double()
    x = x + torch.where(column % 2 == 0, angle.sin(), angle.cos()).float()
    for i in range(2):
        x = block(state, f"blocks.{i}", x, 1e-6)
    return x if norm is None else layer_norm(state, norm, x, 1e-6)


def mavil_table(grid: tuple[int, int, int], width: int) -> Tensor:
    """Positions of MAViL's video: a quarter of the width for time, three eighths each for height and width."""
    parts = []
    for axis, share in zip((0, 2, 1), (width // 4, width * 3 // 8, width * 3 // 8), strict=True):
        index = torch.arange(grid[axis]).double()
        angle = index[:, None] / 10_000 ** (torch.arange(share // 2).double() / (share / 2))
        table = torch.cat([angle.sin(), angle.cos()], dim=1)
        shape = [1, 1, 1, share]
        shape[axis] = grid[axis]
        parts.append(table.reshape(shape).expand(*grid, share))
    return torch.cat(parts, dim=-1).flatten(0, 2).float()


def mavil(fusion: int = 2, grid: tuple[int, int, int] = (2, 4, 4), sound: int = 24) -> State:
    """MAViL (Huang et al. 2023) as its inference code has it; with three joint blocks a fine-tuned one."""
    r = Random()
    state = r.conv("patch_embed.proj", 1, PATCH, PATCH) | r.conv("patch_embed_v.proj", 3, 2, PATCH, PATCH)
    state |= {"cls_token": r.normal(1, 1, WIDTH), "cls_token_v": r.normal(1, 1, WIDTH)}
    state["pos_embed"] = r.normal(1, 1 + sound, WIDTH)
    state["pos_embed_v"] = F.pad(mavil_table(grid, WIDTH), (0, 0, 1, 0))[None]
    for i in range(2):
        state |= r.block(f"blocks.{i}") | r.block(f"blocks_v.{i}")
    for i in range(fusion):
        state |= r.block(f"blocks_av.{i}")
    if fusion == 3:
        state |= r.norm("fc_norm_av", 2 * WIDTH) | r.linear("head_av", 5, 2 * WIDTH)
    return state


def mavil_encode(state: State, spec: Tensor, video: Tensor, fusion: int = 2) -> dict[str, Tensor]:
    """Tokens of sound, of video and of both after fusion, CLS in front of each."""
    audio = with_cls(state, "cls_token", "pos_embed", tokens(state, "patch_embed.proj", spec[:, None]))
    seen = with_cls(state, "cls_token_v", "pos_embed_v", tokens(state, "patch_embed_v.proj", video))
    for i in range(2):
        audio, seen = block(state, f"blocks.{i}", audio, 1e-6), block(state, f"blocks_v.{i}", seen, 1e-6)
    both = torch.cat([audio, seen], dim=1)
    for i in range(fusion):
        both = block(state, f"blocks_av.{i}", both, 1e-6)
    return {"audio": audio, "video": seen, "both": both}


def cav_mae(time_patches: int = 6, mel_patches: int = 4, side: int = 4, depth: int = 2) -> State:
    """CAV-MAE (Gong et al. 2023): no CLS, learnt modality vectors, joint blocks with LayerNorms for each use."""
    r = Random()
    state = r.conv("patch_embed_a.proj", 1, PATCH, PATCH) | r.conv("patch_embed_v.proj", 3, PATCH, PATCH)
    norms = [f"norm{i}{ending}" for i in (1, 2) for ending in ("", "_a", "_v")]
    for one, count in (("a", time_patches * mel_patches), ("v", side * side)):
        state[f"modality_{one}"], state[f"pos_embed_{one}"] = r.normal(1, 1, WIDTH), r.normal(1, count, WIDTH)
        for i in range(depth):
            state |= r.block(f"blocks_{one}.{i}", norms)
    state |= r.block("blocks_u.0", norms) | r.norm("norm") | r.norm("norm_a") | r.norm("norm_v")
    return state | {"mask_token": r.normal(1, 1, 32)} | r.linear("decoder_embed", 32, WIDTH)


def cav_mae_encode(state: State, spec: Tensor, picture: Tensor, depth: int = 2) -> dict[str, Tensor]:
    """Tokens of both after the joint blocks, and of each alone as the contrast has them; sound mel by mel."""
    inputs = {"a": spec[:, None].transpose(2, 3), "v": picture}
    streams = {}
    for one, x in inputs.items():
        x = tokens(state, f"patch_embed_{one}.proj", x) + state[f"pos_embed_{one}"] + state[f"modality_{one}"]
        for i in range(depth):
            x = block(state, f"blocks_{one}.{i}", x, 1e-5)
        streams[one] = x
    both = layer_norm(state, "norm", block(state, "blocks_u.0", torch.cat([*streams.values()], dim=1), 1e-5), 1e-5)
    alone = {
        one: layer_norm(state, f"norm_{one}", block(state, "blocks_u.0", x, 1e-5, f"_{one}"), 1e-5)
        for one, x in streams.items()
    }
    return alone | {"both": both}


def close(ours: Tensor, theirs: Tensor) -> None:
    """Equal to rounding."""
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)
