"""timm's ViT blocks: `attention` instead of its call of scaled_dot_product_attention, in a whole model or a part of it.

The same function on CUDA; on a CPU in half precision `attention` chooses the faster way back. Modules that were told
not to fuse (`fused_attn` False, e.g. to look at the weights), a mask, causality or dropout of weights are computed by
timm's own code, call by call.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from maekernels import attention
from maekernels.integrations._instance import check_known, check_untouched, replace_forward

VERSIONS = "timm 0.9.16 to 1.0.31"
KNOWN = ("eb6c9d13474199eb", "d3b06317c3000b3a", "c2e12cae6d1478bb", "0a00b5db64c2aa40", "2c66a1038259e02a")
"""timm 0.9 to 1.0.15 | 1.0.16 to 1.0.22: a mask | to 1.0.25 | 1.0.26 and 1.0.27: causality | since 1.0.28: a gate."""
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
        return type(self).forward(self, x, *extra)  # causality is not in all of them, nor is a mask
    batch, tokens, _ = x.shape
    q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).unbind(2)
    # Autocast gives norms in float32, and would cast what goes into torch's own attention.
    q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
    out = attention(q, k, v).reshape(batch, tokens, -1)
    # From 1.0 on, where asked for.
    if getattr(self, "norm", None) is not None:
        out = self.norm(out)
    if getattr(self, "gate", None) is not None:
        out = out * self.gate(x).sigmoid()
    return self.proj_drop(self.proj(out))
