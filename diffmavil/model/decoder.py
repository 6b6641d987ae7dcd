"""The decoder of one modality: from fused visible tokens to the pixels, or a teacher's features, of masked patches.

At every position to decode stands either one learnt mask token (MAE, MAViL) or the patch itself diffused to x_t, with
an embedding of t (DiffMAViL). Two kinds of attention:

- self: blocks over [cls, visible, masked] together, as in MAE. Attention without positions does not know the order of
  its tokens, and positions are added by id, so nothing is scattered back into place: the result is the same.
- cross: the masked positions query [cls, visible] and do not see one another. Any subset can be decoded.

Only masked positions pass through the last norm and Linear: the loss reads no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

from diffmavil.config import DecoderConfig
from diffmavil.model.blocks import Blocks, CrossBlock, SelfBlock, layer_norm
from diffmavil.model.diffusion import TimestepEmbedding
from diffmavil.model.embed import sincos_positions


class MaskToken(nn.Module):
    """The same learnt vector at every masked position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(width))

    def forward(self, positions: Tensor) -> Tensor:
        """positions `[B, Q, D]` -> tokens `[B, Q, D]`."""
        return self.token + positions


class DiffusedPatch(nn.Module):
    """The diffused patch itself, embedded, with its timestep."""

    def __init__(self, patch_dim: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(patch_dim, width)
        self.time = TimestepEmbedding(width)

    def forward(self, positions: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """positions `[B, Q, D]`, x_t `[B, Q, P]`, t `[B]` -> tokens `[B, Q, D]`."""
        return self.proj(x_t) + positions + rearrange(self.time(t), "b d -> b 1 d")

    def start_as_mask_token(self) -> None:
        """Set to zero what is added to the positions, so that training starts as MAE's does.

        Noise that starts at full size fills the decoder's width and drowns the positions, and the encoder learns less
        for it: benchmarks/LOG.md.
        """
        for linear in (self.proj, self.time.mlp[-1]):
            nn.init.zeros_(linear.get_parameter("weight"))


class Mix(nn.Module):
    """What each block of the decoder reads: a learnt sum of the outputs of the encoder's blocks and the fused tokens.

    It begins as the fused tokens alone. Fu et al. 2024, "Rethinking Patch Dependence for Masked Autoencoders", 3.4
    (inter-block attention), with fusion blocks after the encoder as one layer more.

    Args:
        blocks: of the decoder.
        layers: blocks of the encoder, and one more.
        width: of the encoder.
    """

    def __init__(self, blocks: int, layers: int, width: int, norm_eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(blocks, layers))
        self.norms = nn.ModuleList(layer_norm(width, norm_eps) for _ in range(blocks))

    def forward(self, layers: Sequence[Tensor]) -> list[Tensor]:
        """`[B, N, C]` of each layer, the fused tokens last -> `[B, N, C]` for each block of the decoder."""
        mixed = einsum(torch.stack(tuple(layers), dim=-1), self.weight, "b n c l, j l -> j b n c")
        return [norm(x) for norm, x in zip(self.norms, mixed, strict=True)]

    def start_at_the_last(self) -> None:
        with torch.no_grad():
            self.weight.zero_()
            self.weight[:, -1] = 1.0


class ToDecode(NamedTuple):
    """What `Decoder.forward` takes."""

    fused: Tensor
    ids_keep: Tensor
    ids_decode: Tensor
    diffused: tuple[Tensor, ...]
    blocks: tuple[Tensor, ...] = ()
    """`[B, 1 + K, C]` of each block of the encoder, for a decoder that reads them."""


class Decoder(nn.Module):
    """Predicts the clean patches at masked positions, or features of them.

    Args:
        grid: patches along each axis, for the fixed positions.
        patch_dim: values in one patch.
        context_width: width of the fused tokens.
        config: size and kind of attention.
        diffused: whether diffused patches or mask tokens stand at the masked positions.
        target_width: numbers predicted for each position; None: those of the patch.
        encoder_depth: blocks of the encoder, for a decoder that reads them.
    """

    positions: Tensor

    def __init__(
        self,
        grid: tuple[int, ...],
        patch_dim: int,
        context_width: int,
        config: DecoderConfig,
        *,
        diffused: bool,
        target_width: int | None = None,
        encoder_depth: int = 0,
    ) -> None:
        super().__init__()
        width = config.width
        self.mixes = config.reads == "mix"
        if self.mixes:
            self.mix = Mix(config.depth, encoder_depth + 1, context_width, config.norm_eps)
        self.register_buffer("positions", sincos_positions(grid, width), persistent=config.positions == "stored")
        self.context = nn.Linear(context_width, width)
        self.masked = DiffusedPatch(patch_dim, width) if diffused else MaskToken(width)
        self.cross = config.attention == "cross"
        block = CrossBlock if self.cross else SelfBlock
        self.blocks = Blocks(block(width, config.heads, config.mlp_ratio, config.norm_eps) for _ in range(config.depth))
        self.norm = layer_norm(width, config.norm_eps)
        self.head = nn.Linear(width, target_width or patch_dim)

    def forward(self, fused: Tensor | Sequence[ToDecode], *ids_and_diffused: Tensor) -> Tensor | list[Tensor]:
        """Decode the patches at `ids_decode`.

        Args:
            fused: `[B, 1 + K, C]`, the CLS token first.
            ids_keep: `[B, K]`, positions of the visible tokens.
            ids_decode: `[B, Q]`, positions to decode; with self-attention, all the masked ones.
            diffused: x_t `[B, Q, P]` and t `[B]` when diffused patches are decoded, else nothing.

        Returns:
            `[B, Q, P]`, the predicted clean patches, or `[B, Q, W]`, features; a list of them for a list of `ToDecode`,
            batches of other numbers of tokens.
        """
        if isinstance(fused, Tensor):
            ids_keep, ids_decode, *diffused = ids_and_diffused
            return self.forward([ToDecode(fused, ids_keep, ids_decode, tuple(diffused))])[0]
        batches = fused
        masked = [self.masked(self.positions[b.ids_decode], *b.diffused) for b in batches]
        if self.mixes:
            *_, decoded = self.blocks.each(masked, self.mixed_contexts(batches))
            return [self.head(self.norm(x)) for x in decoded]
        contexts = [self.embed_context(b.fused, b.ids_keep) for b in batches]
        if self.cross:
            decoded = self.blocks(masked, contexts)
        else:
            both = list(zip(contexts, masked, strict=True))
            decoded = self.blocks([torch.cat(pair, dim=1) for pair in both])
            decoded = [x[:, context.shape[1] :] for x, (context, _) in zip(decoded, both, strict=True)]
        return [self.head(self.norm(x)) for x in decoded]

    def mixed_contexts(self, batches: Sequence[ToDecode]) -> list[list[Tensor]]:
        """For each block what it reads of each batch, as `embed_context` gives it."""
        mixed = [self.mix([*b.blocks, b.fused]) for b in batches]
        return [
            [self.embed_context(x, b.ids_keep) for x, b in zip(of_block, batches, strict=True)]
            for of_block in zip(*mixed, strict=True)
        ]

    def embed_context(self, fused: Tensor, ids_keep: Tensor) -> Tensor:
        """Fused tokens in the decoder's width, with positions (zero for CLS): `[B, 1 + K, D]`; or all without CLS."""
        cls = fused.shape[1] - ids_keep.shape[1]
        return self.context(fused) + F.pad(self.positions[ids_keep], (0, 0, cls, 0))
