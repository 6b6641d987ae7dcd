"""Contrastive losses between modalities (inter) and between masked views (intra), on mean-pooled encoder outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from maekernels import info_nce


def pool(tokens: Tensor) -> Tensor:
    """Mean over all tokens but the CLS in front: `[..., 1 + K, D] -> [..., D]`, float32."""
    return tokens[..., 1:, :].float().mean(dim=-2)


def inter_modal(audio: Tensor, video: Tensor, temperature: float) -> Tensor:
    """A clip's sound against its own picture among the batch's: mean over views of the symmetric InfoNCE.

    audio, video: `[B, V, D]`, the pooled views.
    """
    views = range(audio.shape[1])
    return torch.stack([info_nce(audio[:, v], video[:, v], temperature) for v in views]).mean()


def intra_modal(audio: Tensor, video: Tensor, temperature: float) -> Tensor:
    """One masked view of a clip against the other view of the same modality: mean over the two modalities.

    audio, video: `[B, 2, D]`, the pooled views.
    """
    pair = [info_nce(x[:, 0], x[:, 1], temperature) for x in (audio, video)]
    return torch.stack(pair).mean()
