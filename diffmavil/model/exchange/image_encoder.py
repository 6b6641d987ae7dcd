"""The encoder in a file of an image MAE, under the names that its parts have here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from diffmavil.config import EncoderConfig
from diffmavil.model.exchange.names import KNOWN, ORIGINAL, Names, find_names
from diffmavil.model.exchange.state import Tensors, described, refusal
from diffmavil.model.exchange.vit import ENDS, check_outside, hidden_of, take_block, whole_depth

_A_PART = "attn.proj.weight"  # by which a block is known


@dataclass(frozen=True)
class ImageEncoder:
    """A vision transformer for pictures, all float32.

    Attributes:
        kernel: of the patch embedding, `[D, 3, h, w]`; bias: `[D]`.
        cls: `[1, 1, D]`.
        norm: weight and bias of the last LayerNorm, `[D]`.
        blocks: of each block, the parameters of our `SelfBlock` by name.
        heads: in each block; None: not told.
        left: keys of the file that belong to none of these.
    """

    path: Path
    names: Names
    kernel: Tensor
    bias: Tensor
    cls: Tensor
    norm: dict[str, Tensor]
    blocks: list[dict[str, Tensor]]
    heads: int | None
    left: list[str]

    @property
    def width(self) -> int:
        return len(self.bias)

    def check_fits(self, config: EncoderConfig) -> None:
        """Raise `ValueError` unless an encoder of `config` can start from it."""
        hidden, wanted = len(self.blocks[0]["mlp.0.bias"]), int(config.width * config.mlp_ratio)
        wrong = []
        if self.width != config.width:
            wrong.append(f"a width of {self.width} (model.encoder.width={config.width})")
        elif hidden != wanted:
            wrong.append(f"MLPs of {hidden} (model.encoder.mlp_ratio={config.mlp_ratio} makes {wanted})")
        if self.heads not in (None, config.heads):
            wrong.append(f"{self.heads} heads (model.encoder.heads={config.heads})")
        if len(self.blocks) < config.depth:
            wrong.append(f"{len(self.blocks)} blocks (model.encoder.depth={config.depth})")
        if wrong:
            allowed = "width, heads and MLPs must be those of the model, and the blocks as many or more"
            raise refusal(self.path, f"has {', '.join(wrong)}; {allowed}")


def read_image_encoder(path: Path) -> ImageEncoder:
    """The encoder in a file.

    Raises:
        ValueError: nothing that can be read there, not an image MAE, or one whose parts are missing, do not fit each
            other, are not finite, or are more than a plain vision transformer has.
    """
    state = Tensors(path)
    names = find_names(state)
    if names is None:
        known = "; ".join(f"{one.patch}.weight with {one.keys(0, _A_PART)[0]}" for one in KNOWN)
        raise refusal(path, f"is no image MAE; found: {described(state.named)}; must have {known}")
    kernel = state.take(f"{names.patch}.weight")
    if kernel.dim() != 4 or kernel.shape[1] != 3:
        shape = f"{list(kernel.shape)}; must be [width, 3, height, width of a patch]"
        raise refusal(path, f"is not for pictures: {names.patch}.weight is {shape}")
    width, hidden = len(kernel), hidden_of(state, names)
    image = ImageEncoder(
        path,
        names,
        kernel,
        bias=state.take(f"{names.patch}.bias", (width,)),
        cls=state.take(names.cls, (1, 1, width)),
        norm={end: state.take(f"{names.norm}.{end}", (width,)) for end in ENDS},
        blocks=[take_block(state, names, number, width, hidden) for number in range(whole_depth(state, names))],
        heads=None if names is ORIGINAL else _heads(path),
        left=state.left,
    )
    check_outside(state)
    return image


def _heads(path: Path) -> int | None:
    """What transformers' config.json beside the file says."""
    beside = path.with_name("config.json")
    if not beside.exists():
        return None
    try:
        return int(json.loads(beside.read_text())["num_attention_heads"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise refusal(path, f"{beside.name} beside it tells no num_attention_heads ({error!r})") from error
