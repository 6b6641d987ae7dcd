"""MAViL's step as AudioMAE and VideoMAE implement theirs: the baseline of `benchmarks/step.py`.

The parameters are those of our own model, so that both do the same work. Their conventions, kept on purpose: the clip
is normalised as a whole to float pixels, and every patch is cut and embedded before a fifth of the tokens is gathered
with repeated int64 indices; masks come from two argsorts; attention is written out, with the weights stored; the
decoder restores the order of mask tokens and visible tokens with another gather and predicts every patch; the target of
all patches is normalised and stored in float32, and the loss masks it.
"""

from __future__ import annotations

import functools

import torch
from einops import rearrange
from torch import Tensor, nn

from benchmarks import eager
from diffmavil.config import ModelConfig
from diffmavil.model import DiffMAViL
from diffmavil.model.blocks import SelfBlock
from diffmavil.model.branch import Branch
from diffmavil.model.decoder import MaskToken


@functools.cache
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Copied to the device once, not in every step."""
    return torch.tensor(values, device=device)


class EagerMAViL(nn.Module):
    """The losses of MAViL for a batch. config: with mask tokens and decoders that self-attend.

    Args:
        gather_first: embed only the kept patches.
    """

    def __init__(self, config: ModelConfig, *, gather_first: bool) -> None:
        super().__init__()
        self.model = DiffMAViL(config)
        self.gather_first = gather_first

    def forward(self, video: Tensor, spec: Tensor, *, keep_video: int, keep_audio: int) -> Tensor:
        """video uint8 `[B, T, H, W, 3]`, spec `[B, F, M]` -> the weighted sum of losses."""
        model, config = self.model, self.model.config
        views = [self._view(video, spec, keep_video, keep_audio) for _ in range(config.views)]
        c = config.contrast
        loss = sum(view[0] for view in views) / config.views
        inter = [eager.info_nce(audio, picture, c.inter_temperature) for _, audio, picture in views]
        loss = loss + c.inter_weight * torch.stack(inter).mean()
        if config.views == 2:
            pairs = [eager.info_nce(views[0][i], views[1][i], c.intra_temperature) for i in (1, 2)]
            loss = loss + c.intra_weight * torch.stack(pairs).mean()
        assert isinstance(loss, Tensor)
        assert model.fusion.blocks
        return loss

    def _view(self, video: Tensor, spec: Tensor, keep_video: int, keep_audio: int) -> tuple[Tensor, Tensor, Tensor]:
        """One masked view: reconstruction loss, pooled audio and pooled video `[B, D]`."""
        model, config = self.model, self.model.config
        audio, audio_mask, audio_restore, audio_target = self._encode(model.audio, spec, keep_audio)
        picture, video_mask, video_restore, video_target = self._encode(model.video, video, keep_video)
        x = torch.cat([audio + model.fusion.audio_type, picture + model.fusion.video_type], dim=1)
        x = model.fusion.norm(_blocks(model.fusion.blocks, x))
        fused_audio, fused_video = x.split([audio.shape[1], picture.shape[1]], dim=1)
        loss = config.audio_weight * self._decode(model.audio, fused_audio, audio_mask, audio_restore, audio_target)
        loss = loss + config.video_weight * self._decode(
            model.video, fused_video, video_mask, video_restore, video_target
        )
        return loss, audio[:, 1:].mean(dim=1), picture[:, 1:].mean(dim=1)

    def _encode(self, branch: Branch, x: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Encoded tokens with CLS, the mask, ids_restore, and every patch as the target."""
        mean, std = _constant(branch.mean, x.device), _constant(branch.std, x.device)
        patches = eager.cut(eager.normalise(x, mean, std), branch.patch)
        target = eager.normalise_patches(patches)
        ids, mask, restore = eager.random_mask(len(x), branch.tokens, keep, x.device)
        embed = branch.encoder.embed
        if self.gather_first:
            positions = embed.positions[ids]
            tokens = embed.proj(eager.gather_tokens(patches, ids)) + positions
        else:
            tokens = eager.gather_tokens(embed.proj(patches) + embed.positions, ids)
        assert embed.cls is not None
        tokens = torch.cat([embed.cls.expand(len(x), -1, -1), tokens], dim=1)
        return branch.encoder.norm(_blocks(branch.encoder.blocks, tokens)), mask, restore, target

    def _decode(self, branch: Branch, fused: Tensor, mask: Tensor, restore: Tensor, target: Tensor) -> Tensor:
        decoder = branch.decoder
        assert isinstance(decoder.masked, MaskToken)
        x = decoder.context(fused)
        tokens = eager.scatter_tokens(x[:, 1:], restore, decoder.masked.token.to(x.dtype)) + decoder.positions
        tokens = _blocks(decoder.blocks, torch.cat([x[:, :1], tokens], dim=1))
        pred = decoder.head(decoder.norm(tokens))[:, 1:]
        loss = ((pred - target) ** 2).mean(dim=-1)
        return (loss * mask).sum() / mask.sum()


def _blocks(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    for block in blocks:
        assert isinstance(block, SelfBlock)
        x = x + _attention(block, block.norm1(x))
        x = x + block.mlp(block.norm2(x))
    return x


def _attention(block: SelfBlock, x: Tensor) -> Tensor:
    """timm's attention without a fused kernel."""
    attn = block.attn
    q, k, v = rearrange(attn.qkv(x), "b n (three h d) -> three b h n d", three=3, h=attn.heads)
    weights = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    x = weights.softmax(dim=-1).to(v.dtype) @ v
    return attn.proj(rearrange(x, "b h n d -> b n (h d)"))
