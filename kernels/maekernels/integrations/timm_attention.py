"""timm's ViT blocks with `attention` instead of scaled_dot_product_attention, in a whole model or a part of it.

On CUDA this is the same function; in half precision on a CPU, `attention` selects the faster backward pass. Modules set
not to fuse (`fused_attn` False, e.g. to inspect the weights), and calls with a mask, causality or attention dropout,
are computed by timm's own code.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from maekernels import attention
from maekernels.integrations._instance import check_known, check_untouched, replace_forward

VERSIONS = "timm 0.9.16 to 1.0.31"
KNOWN = ("eb6c9d13474199eb", "d3b06317c3000b3a", "c2e12cae6d1478bb", "0a00b5db64c2aa40", "2c66a1038259e02a")
"""timm 0.9 to 1.0.15 | 1.0.16 to 1.0.22: mask | to 1.0.25 | 1.0.26 and 1.0.27: causality | from 1.0.28 on: gate."""
MODULES = ("timm.models.vision_transformer", "timm.layers.attention")


def blocks(model: nn.Module) -> list[nn.Module]:
    """timm's plain attention modules in the model."""
    return [m for m in model.modules() if type(m).__name__ == "Attention" and type(m).__module__ in MODULES]


def replace(model: nn.Module) -> None:
    found = blocks(model)
    for module in found:
        check_known(type(module), "forward", KNOWN, VERSIONS)
        check_untouched(module, "forward")
    for module in found:
        replace_forward(module, _forward)


def _forward(self: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    if attn_mask is not None or is_causal or not self.fused_attn or (self.training and self.attn_drop.p):
        extra = (attn_mask, is_causal) if is_causal else () if attn_mask is None else (attn_mask,)
        return type(self).forward(self, x, *extra)  # not every version takes is_causal, or a mask
    batch, tokens, _ = x.shape
    q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).unbind(2)
    # Under autocast the norms return float32; torch's own attention would have its inputs cast.
    q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
    out = attention(q, k, v).flatten(2)  # not reshape to -1, which an empty batch leaves open
    # From 1.0 on, if configured.
    if getattr(self, "norm", None) is not None:
        out = self.norm(out)
    if getattr(self, "gate", None) is not None:
        out = out * self.gate(x).sigmoid()
    return self.proj_drop(self.proj(out))
