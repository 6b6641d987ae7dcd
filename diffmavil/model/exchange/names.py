"""What the parts of other people's encoders are called.

`save_pretrained` of transformers 5 still writes the older names of ViTMAE; a state dict there has the newer ones.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Names:
    """The names of one encoder, without `.weight` and `.bias`; `{}` stands for the number of a block.

    Attributes:
        cls, positions, norm: "" where there is none.
        parts: of a block, ours -> theirs; several of theirs lie in one of ours, one after the other.
        biases: of a part whose biases do not lie beside its weights, their whole keys; None: a bias of zeros.
    """

    kind: str
    patch: str
    cls: str
    positions: str
    block: str
    norm: str
    parts: Mapping[str, tuple[str, ...]]
    biases: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)

    def keys(self, block: int, ours: str) -> list[str]:
        """The keys of `ours`, say "attn.qkv.weight", in the given block."""
        part, _, end = ours.rpartition(".")
        return [f"{self.block.format(block)}.{theirs}.{end}" for theirs in self.parts[part]]

    def bias_keys(self, block: int, part: str) -> list[str | None]:
        """The keys of the biases of `part`, say "attn.qkv"."""
        if part not in self.biases:
            return list(self.keys(block, f"{part}.bias"))
        return [key and f"{self.block.format(block)}.{key}" for key in self.biases[part]]

    def within(self, prefix: str) -> Names:
        """The same in a model of which this is a part called `prefix`."""
        patch, cls, positions, block, norm = (
            name and prefix + name for name in (self.patch, self.cls, self.positions, self.block, self.norm)
        )
        return replace(self, patch=patch, cls=cls, positions=positions, block=block, norm=norm)

    def fit(self, state: Container[str]) -> bool:
        """Whether `state` uses them."""
        return f"{self.patch}.weight" in state and self.keys(0, "attn.proj.weight")[0] in state


_TIMM = {
    "norm1": ("norm1",),
    "attn.qkv": ("attn.qkv",),
    "attn.proj": ("attn.proj",),
    "norm2": ("norm2",),
    "mlp.0": ("mlp.fc1",),
    "mlp.2": ("mlp.fc2",),
}
ORIGINAL = Names(
    kind="MAE's own names",
    patch="patch_embed.proj",
    cls="cls_token",
    positions="pos_embed",
    block="blocks.{}",
    norm="norm",
    parts=_TIMM,
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
TRANSFORMERS_5 = replace(
    TRANSFORMERS_4,
    kind="transformers' newer names",
    block="layers.{}",
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
"""Of image MAEs."""

VIDEO_ORIGINAL = replace(
    ORIGINAL, kind="VideoMAE's own names", cls="", biases={"attn.qkv": ("attn.q_bias", None, "attn.v_bias")}
)
# Keys have no bias in VideoMAE: one would add the same to every score of a query.
VIDEO_TRANSFORMERS_4 = replace(
    TRANSFORMERS_4,
    kind="transformers' names, version 4",
    cls="",
    positions="",
    biases={"attn.qkv": ("attention.attention.q_bias", None, "attention.attention.v_bias")},
)
VIDEO_TRANSFORMERS_5 = replace(
    VIDEO_TRANSFORMERS_4,
    kind="transformers' names, version 5",
    biases={"attn.qkv": ("attention.attention.query.bias", None, "attention.attention.value.bias")},
)
KNOWN_VIDEO = (
    *(VIDEO_ORIGINAL.within(prefix) for prefix in ("encoder.", "")),
    *(VIDEO_TRANSFORMERS_4.within(prefix) for prefix in ("videomae.", "")),
)

MAVIL_AUDIO = replace(ORIGINAL, kind="MAViL's names in av-superb", norm="")
MAVIL_VIDEO = replace(
    MAVIL_AUDIO, patch="patch_embed_v.proj", cls="cls_token_v", positions="pos_embed_v", block="blocks_v.{}"
)
MAVIL_FUSION = replace(MAVIL_AUDIO, block="blocks_av.{}")

CAV_MAE = {
    name: replace(
        ORIGINAL,
        kind="CAV-MAE's names",
        patch=f"patch_embed_{name}.proj",
        cls="",
        positions=f"pos_embed_{name}",
        block=f"blocks_{name}.{{}}",
        norm=f"norm_{name}",
    )
    for name in ("a", "v")
}
CAV_MAE_FUSION = replace(ORIGINAL, kind="CAV-MAE's names", block="blocks_u.{}")


def cav_mae_alone(name: str) -> Names:
    """The joint blocks, as one modality passes them alone: with LayerNorms of its own."""
    norms = {part: (f"{part}_{name}",) for part in ("norm1", "norm2")}
    return replace(CAV_MAE_FUSION, parts=_TIMM | norms)


def find_names(state: Container[str], known: tuple[Names, ...] = KNOWN) -> Names | None:
    """Those of `known` that `state` uses; None: it is nothing that we know."""
    return next((names for names in known if names.fit(state)), None)
