"""Ops as layers whose `forward` can replace another layer's, as `kernelize` of Hugging Face's `kernels` does.

A layer has no state of its own: it reads the attributes annotated here from the layer whose forward it replaces. That
layer determines shapes and names; the annotated ones are typical of masked autoencoders.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from maekernels._pixels import NormPix
from maekernels.masked_mse import masked_mse
from maekernels.patchify import patchify
from maekernels.scatter_tokens import scatter_tokens


class VisiblePatches(nn.Module):
    """The selected patches, normalised: pixels uint8 or float and ids [B, K] -> float32 [B, K, P]."""

    has_backward = True
    can_torch_compile = True
    patch: Sequence[int]
    mean: Sequence[float]
    std: Sequence[float]

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return patchify(x, ids, self.patch, self.mean, self.std)


class RestoreTokens(nn.Module):
    """Tokens [B, K, D] restored to their positions among `num_tokens`, the mask token [D] elsewhere: [B, N, D]."""

    has_backward = True
    can_torch_compile = True
    mask_token: Tensor
    num_tokens: int

    def forward(self, tokens: Tensor, ids: Tensor) -> Tensor:
        return scatter_tokens(tokens, ids, self.num_tokens, fill=self.mask_token.flatten())


class MaskedMSE(nn.Module):
    """The loss of predictions [B, Q, P] of the pixels' masked patches, given by ids [B, Q]: a float32 scalar."""

    has_backward = True
    can_torch_compile = True
    patch: Sequence[int]
    mean: Sequence[float]
    std: Sequence[float]
    norm_pix: NormPix

    def forward(self, pred: Tensor, x: Tensor, ids: Tensor) -> Tensor:
        return masked_mse(pred, x, ids, self.patch, self.mean, self.std, self.norm_pix)


__all__ = ["MaskedMSE", "RestoreTokens", "VisiblePatches"]
