"""Contrastive losses between modalities (inter) and between masked views (intra), on mean-pooled encoder outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from maekernels import info_nce
from maekernels.info_nce import all_rows


def pool(tokens: Tensor, real: Tensor | None = None, *, cls: bool = True) -> Tensor:
    """Mean over all tokens but the CLS in front: `[..., 1 + K, D] -> [..., D]`, float32.

    real: bool `[..., K]`, at least one True in each row: over these tokens alone. cls: False where there is none.
    """
    tokens = tokens[..., int(cls) :, :].float()
    if real is None:
        return tokens.mean(dim=-2)
    weight = real.float() / real.sum(dim=-1, keepdim=True)
    return (tokens * weight[..., None]).sum(dim=-2)


def inter_modal(audio: Tensor, video: Tensor, temperature: float, clips: Tensor | None = None) -> Tensor:
    """A clip's sound against its own picture among the batch's: mean over views of the symmetric InfoNCE.

    audio, video: `[B, V, D]`, the pooled views. clips: int64 `[B]`, see `contrast`.
    """
    views = range(audio.shape[1])
    return torch.stack([contrast(audio[:, v], video[:, v], temperature, clips) for v in views]).mean()


def intra_modal(modalities: Sequence[Tensor], temperature: float, clips: Tensor | None = None) -> Tensor:
    """One masked view of a clip against the other view of the same modality: mean over the modalities.

    modalities: `[B, 2, D]` each, the pooled views. clips: int64 `[B]`, see `contrast`.
    """
    return torch.stack([contrast(x[:, 0], x[:, 1], temperature, clips) for x in modalities]).mean()


def contrast(a: Tensor, b: Tensor, temperature: float, clips: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE of the rows of a and b `[B, D]`, over all ranks.

    clips: which clip each row shows, where a batch may hold one twice: rows of one clip are then no negatives of each
    other. That stores the matrix of all pairs. None: every row shows another clip.
    """
    if clips is None:
        return info_nce(a, b, temperature)
    a, b = (nn.functional.normalize(x.float(), dim=1) for x in (a, b))
    first = dist.get_rank() * len(a) if dist.is_available() and dist.is_initialized() else 0
    own = first + torch.arange(len(a), device=a.device)
    twins = clips[:, None] == all_rows(clips)[None, :]
    twins = twins.scatter(1, own[:, None], False)
    with torch.autocast(a.device.type, enabled=False):  # logits of ten would be rounded to sixteenths in bf16
        losses = [
            nn.functional.cross_entropy((x @ all_rows(y).T / temperature).masked_fill(twins, -torch.inf), own)
            for x, y in ((a, b), (b, a))
        ]
    return 0.5 * torch.stack(losses).sum()
