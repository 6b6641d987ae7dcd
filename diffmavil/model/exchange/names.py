"""What image MAEs are called inside: the original, and both generations of transformers' ViTMAE.

`save_pretrained` of transformers 5 still writes the older names; a state dict there has the newer ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Names:
    """The names of one kind of file, without `.weight` and `.bias`; `{}` stands for the number of a block.

    Attributes:
        parts: of a block, ours -> theirs; several of theirs lie in one of ours, one after the other.
    """

    kind: str
    patch: str
    cls: str
    positions: str
    block: str
    norm: str
    parts: Mapping[str, tuple[str, ...]]

    def keys(self, block: int, ours: str) -> list[str]:
        """The keys of `ours`, say "attn.qkv.weight", in the given block."""
        part, _, end = ours.rpartition(".")
        return [f"{self.block.format(block)}.{theirs}.{end}" for theirs in self.parts[part]]

    def within(self, prefix: str) -> Names:
        """The same in a model of which this is a part called `prefix`."""
        patch, cls, positions, block, norm = (
            prefix + name for name in (self.patch, self.cls, self.positions, self.block, self.norm)
        )
        return Names(self.kind, patch, cls, positions, block, norm, self.parts)


ORIGINAL = Names(
    kind="MAE's own names",
    patch="patch_embed.proj",
    cls="cls_token",
    positions="pos_embed",
    block="blocks.{}",
    norm="norm",
    parts={
        "norm1": ("norm1",),
        "attn.qkv": ("attn.qkv",),
        "attn.proj": ("attn.proj",),
        "norm2": ("norm2",),
        "mlp.0": ("mlp.fc1",),
        "mlp.2": ("mlp.fc2",),
    },
)
TRANSFORMERS_4 = Names(
    kind="transformers' older names",
    patch="embeddings.patch_embeddings.projection",
    cls="embeddings.cls_token",
    positions="embeddings.position_embeddings",
    block="encoder.layer.{}",
    norm="layernorm",
    parts={
        "norm1": ("layernorm_before",),
        "attn.qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
        "attn.proj": ("attention.output.dense",),
        "norm2": ("layernorm_after",),
        "mlp.0": ("intermediate.dense",),
        "mlp.2": ("output.dense",),
    },
)
TRANSFORMERS_5 = Names(
    kind="transformers' newer names",
    patch=TRANSFORMERS_4.patch,
    cls=TRANSFORMERS_4.cls,
    positions=TRANSFORMERS_4.positions,
    block="layers.{}",
    norm=TRANSFORMERS_4.norm,
    parts={
        "norm1": ("layernorm_before",),
        "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        "attn.proj": ("attention.o_proj",),
        "norm2": ("layernorm_after",),
        "mlp.0": ("mlp.fc1",),
        "mlp.2": ("mlp.fc2",),
    },
)
KNOWN = (ORIGINAL, *(names.within(prefix) for names in (TRANSFORMERS_4, TRANSFORMERS_5) for prefix in ("vit.", "")))


def find_names(state: Mapping[str, Tensor]) -> Names | None:
    """The names that `state` uses; None: it is no image MAE that we know."""
    for names in KNOWN:
        if f"{names.patch}.weight" in state and names.keys(0, "attn.proj.weight")[0] in state:
            return names
    return None
