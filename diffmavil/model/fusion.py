"""The fusion encoder: blocks over the visible tokens of both modalities together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffmavil.config import EncoderConfig
from diffmavil.model.blocks import SelfBlock, layer_norm


class Fusion(nn.Module):
    """`depth` joint blocks over [cls_a, audio, cls_v, video], each modality marked by a learnt type embedding.

    At depth 0 the tokens pass unchanged and there are no parameters.
    """

    def __init__(self, depth: int, config: EncoderConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SelfBlock(config.width, config.heads, config.mlp_ratio) for _ in range(depth))
        if depth > 0:
            self.audio_type = nn.Parameter(torch.empty(config.width))
            self.video_type = nn.Parameter(torch.empty(config.width))
            self.norm = layer_norm(config.width)

    def forward(self, audio: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
        """audio `[B, 1 + Ka, D]`, video `[B, 1 + Kv, D]` -> the same shapes, each having read the other."""
        if not self.blocks:
            return audio, video
        x = torch.cat([audio + self.audio_type, video + self.video_type], dim=1)
        for block in self.blocks:
            x = block(x)
        fused_audio, fused_video = self.norm(x).split([audio.shape[1], video.shape[1]], dim=1)
        return fused_audio, fused_video
