"""What whole clips, nothing masked, look like to encoders and fusion blocks: of a pretrained model or a classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from diffmavil.model.branch import Branch
from diffmavil.model.contrast import pool
from diffmavil.model.embed import all_ids
from diffmavil.model.fusion import Fusion


class Reading(NamedTuple):
    """Of B clips, by modality ("audio", "video"). Pooled: the mean over tokens without CLS, float32."""

    pooled: dict[str, Tensor]
    """`[B, D]` of each encoder; with both, "fused" too: `[B, 2D]`, audio and video tokens of the fusion encoder."""
    tokens: dict[str, Tensor]
    """`[B, N, D]` of each encoder, without CLS."""
    layers: dict[str, Tensor]
    """`[B, L, D]`, pooled outputs of the encoder blocks asked for, before the encoder's last LayerNorm."""
    layer_tokens: dict[str, Tensor]
    """`[B, L, N, D]`, the same not pooled."""


def read_clips(
    branches: Mapping[str, Branch],
    fusion: Fusion,
    inputs: Mapping[str, Tensor],
    heard: Tensor | None = None,
    layers: Sequence[int] = (),
) -> Reading:
    """Encode every patch of the modalities in `branches`, and fuse them if they are two.

    Args:
        inputs: "video" `[B, T, H, W, 3]` uint8, "audio" `[B, F, M]` normalised log-mel; others are not looked at.
        heard: int64 `[B]`, frames of the spectrogram before the sound's end; tokens of nothing but padding are not
            pooled. None: all are.
        layers: numbers of encoder blocks that are read too, from 0; as many as they are, in this order.
    """
    pooled, tokens, read, whole = {}, {}, {}, {}
    for name, branch in branches.items():
        x = inputs[name]
        real = None if heard is None or name != "audio" else branch.reached(heard)
        ids = all_ids(len(x), 1, branch.tokens, x.device)
        if layers:
            tokens[name], blocks = _with_blocks(branch, x, ids, layers)
            each = None if real is None else real[:, None].expand(-1, len(layers), -1)
            read[name], whole[name] = (
                pool(blocks, each, cls=branch.encoder.cls),
                blocks[..., int(branch.encoder.cls) :, :],
            )
        else:
            tokens[name] = branch.encode(x, ids)
        pooled[name] = pool(tokens[name], real, cls=branch.encoder.cls)
    if len(tokens) == 2:
        fused = dict(zip(tokens, fusion(tokens["audio"], tokens["video"]), strict=True))
        real = None if heard is None else branches["audio"].reached(heard)
        pairs = [(fused["audio"], real, branches["audio"]), (fused["video"], None, branches["video"])]
        pooled["fused"] = torch.cat([pool(x, real, cls=branch.encoder.cls) for x, real, branch in pairs], dim=1)
    patches = {name: x[:, int(branches[name].encoder.cls) :] for name, x in tokens.items()}
    return Reading(pooled, patches, read, whole)


def _with_blocks(branch: Branch, x: Tensor, ids: Tensor, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The encoder's output `[B, 1 + N, D]`, and the outputs of the blocks in `layers` `[B, L, 1 + N, D]`."""
    kept, last = {}, x
    each = branch.encoder.each_block([branch.patches(x, ids)], [rearrange(ids, "b 1 n -> b n")])
    for number, (last,) in enumerate(each):
        if number in layers:
            kept[number] = last
    return branch.encoder.norm(last), torch.stack([kept[number] for number in layers], dim=1)
