"""Blocks of a vision transformer in a file, as parameters of our `SelfBlock`."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from diffmavil.model.exchange.names import CAV_MAE_FUSION, Names
from diffmavil.model.exchange.state import Tensors

ENDS = ("weight", "bias")
_OUTSIDE = re.compile(
    r"(?!decoder)(?:.*\.)?(?:norm_pre|reg_token|register_tokens|storage_tokens|dist_token|distillation_token"
    r"|rel_pos_bias|rope\w*|patch_embed\w*\.norm)(?:\..*)?"
)
"""Parts of other vision transformers, outside their blocks, that change features."""


def depth_of(state: Tensors, names: Names) -> int:
    """How many blocks there are."""
    depth = 0
    while names.keys(depth, "attn.proj.weight")[0] in state:
        depth += 1
    return depth


def whole_depth(state: Tensors, names: Names) -> int:
    """How many blocks there are. Raises `ValueError` if one is missing below others."""
    depth = depth_of(state, names)
    block = re.compile(re.escape(names.block).replace(r"\{\}", "([0-9]+)") + r"\.")
    numbers = {int(found[1]) for found in map(block.match, state.named) if found}
    beyond = sorted(numbers - set(range(depth)))
    if beyond:
        missing = names.keys(depth, "attn.proj.weight")[0]
        raise state.refusal(f"has {names.block.format(beyond[0])}, but lacks {missing}; must have all of its blocks")
    return depth


def hidden_of(state: Tensors, names: Names) -> int:
    """The width inside the MLPs."""
    return len(state.take(names.keys(0, "mlp.0.bias")[0]))


def block_keys(names: Names, number: int) -> set[str]:
    """All keys of a block."""
    weights = {key for part in names.parts for key in names.keys(number, f"{part}.weight")}
    return weights | {key for part in names.parts for key in names.bias_keys(number, part) if key}


def take_block(state: Tensors, names: Names, number: int, width: int, hidden: int) -> dict[str, Tensor]:
    """Name -> parameter of our block.

    Raises:
        ValueError: one that is missing, not finite, or of a shape that does not fit the others; or something besides,
            as LayerScale or relative positions: what is computed without it is another model.
    """
    start = f"{names.block.format(number)}."
    beyond = {key for key in state.named if key.startswith(start)} - block_keys(names, number)
    if names.kind == CAV_MAE_FUSION.kind:  # whose joint blocks have a norm1 and norm2 for each of three uses
        beyond = {key for key in beyond if not key.removeprefix(start).startswith(("norm1", "norm2"))}
    if beyond:
        told = ", ".join(sorted(beyond))
        raise state.refusal(f"has {told}; blocks of a plain vision transformer are needed, which have no such parts")
    shapes = {"attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.0": (hidden, width)}
    shapes["mlp.2"] = (width, hidden)
    block = {}
    for part, shape in shapes.items():
        block[f"{part}.weight"] = state.take_all(names.keys(number, f"{part}.weight"), shape)
        block[f"{part}.bias"] = _bias(state, names, number, part, shape[0])
    for part in ("norm1", "norm2"):
        block |= {f"{part}.{end}": state.take_all(names.keys(number, f"{part}.{end}"), (width,)) for end in ENDS}
    return block


def check_outside(state: Tensors) -> None:
    """Raise `ValueError` for a part outside of the blocks that changes features, as `take_block` for one inside."""
    found = [key for key in state.left if _OUTSIDE.fullmatch(key)]
    if found:
        told = ", ".join(found)
        raise state.refusal(f"has {told}; must be a plain vision transformer, which has no such parts")


def _bias(state: Tensors, names: Names, number: int, part: str, length: int) -> Tensor:
    """Zeros where the names or the whole file have none for queries, keys and values."""
    keys = names.bias_keys(number, part)
    if part == "attn.qkv" and without_bias(state, names):
        keys = [None] * len(keys)
    each = length // len(keys)
    return torch.cat([torch.zeros(each) if key is None else state.take(key, (each,)) for key in keys])


def without_bias(state: Tensors, names: Names) -> bool:
    """Whether queries, keys and values have no bias at all in this file."""
    depth = depth_of(state, names)
    keys = [key for number in range(depth) for key in names.bias_keys(number, "attn.qkv") if key is not None]
    return not any(key in state for key in keys)
