"""The fusion encoder: blocks over the visible tokens of both modalities together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffmavil.config import EncoderConfig
from diffmavil.model.blocks import Blocks, SelfBlock, layer_norm


class Fusion(nn.Module):
    """`depth` joint blocks over [cls_a, audio, cls_v, video], each modality marked by a learnt type embedding.

    At depth 0 the tokens pass unchanged and there are no parameters.

    Args:
        types, norm: False leaves out the type embeddings, and the LayerNorm after the last block.
    """

    def __init__(self, depth: int, config: EncoderConfig, *, types: bool = True, norm: bool = True) -> None:
        super().__init__()
        self.blocks = Blocks(
            SelfBlock(config.width, config.heads, config.mlp_ratio, config.norm_eps) for _ in range(depth)
        )
        self.types = types
        if depth > 0 and types:
            self.audio_type = nn.Parameter(torch.empty(config.width))
            self.video_type = nn.Parameter(torch.empty(config.width))
        if depth > 0:
            self.norm = layer_norm(config.width, config.norm_eps) if norm else nn.Identity()

    def forward(
        self, audio: Tensor | Sequence[Tensor], video: Tensor | Sequence[Tensor], scales: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | list[tuple[Tensor, Tensor]]:
        """audio `[B, 1 + Ka, D]`, video `[B, 1 + Kv, D]` -> the same shapes, each having read the other.

        Or lists of them, for batches of other numbers of tokens: then a list of pairs. scales: as of `Blocks`.
        """
        if isinstance(audio, Tensor):
            return self.forward([audio], [video], scales)[0]  # type: ignore[list-item]  # a tensor each
        pairs = list(zip(audio, video, strict=True))
        if not self.blocks:
            return pairs
        both = [torch.cat(self._marked(a, v), dim=1) for a, v in pairs]
        joint = self.blocks(both, scales=scales)
        fused = []
        for x, (a, v) in zip(joint, pairs, strict=True):
            fused_audio, fused_video = self.norm(x).split([a.shape[1], v.shape[1]], dim=1)
            fused.append((fused_audio, fused_video))
        return fused

    def _marked(self, audio: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
        return (audio + self.audio_type, video + self.video_type) if self.types else (audio, video)
