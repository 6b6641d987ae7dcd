"""The one place where queries, keys and values meet."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v for every head, unmasked.

    Args:
        q: queries `[B, H, N, D]`.
        k, v: keys and values `[B, H, M, D]`.

    Returns:
        `[B, H, N, D]`, in the dtype of `q`.
    """
    return F.scaled_dot_product_attention(q, k, v)
