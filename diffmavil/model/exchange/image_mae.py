"""Start from an image MAE, as MAViL does: both encoders, and the fusion blocks from the encoder's last block.

MAE: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners". MAViL: Huang et al. 2023. An encoder of ours
then computes what the image's does, but for positions and for the first Linear:

video: the kernel of the patch embedding is repeated over the t frames of a tubelet and divided by t (inflation,
    Carreira and Zisserman 2017), so that a still clip gives the tokens of its picture. Values lie as (t, h, w, c) here
    and as (c, h, w) there.
sound: a spectrogram is shown as a grey picture, time to the right and mel downwards, as AST does (Gong et al. 2021).
    The kernel is therefore *summed* over its three channels: that gives the very token of a picture with the same
    values in all of them; a mean would give a third of it, beside positions of unchanged size. With time along the
    width, our position axes (time, mel) are those that MAE's blocks learnt to read (width, height): equal tables.
positions: ours are fixed and stay. Those of video have a third axis, time, and share out the width in another way.
another patch size: the kernel is resized so that a resized patch gives the same token, exactly for a larger patch and
    in least squares for a smaller one (FlexiViT, Beyer et al. 2023); patches are resized bicubically.

The number of heads does not follow from weights: it is compared where a config.json of transformers lies beside the
file. LayerNorm's eps of 1e-12 in transformers' ViTMAE is not taken over: ours is MAE's own, 1e-6.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor

from diffmavil.config import ModelConfig
from diffmavil.model.branch import Branch
from diffmavil.model.classifier import Classifier
from diffmavil.model.exchange.image_encoder import ImageEncoder, read_image_encoder
from diffmavil.model.mavil import DiffMAViL


@dataclass(frozen=True)
class InitReport:
    """What an initialisation did."""

    source: str
    """The file, and what it holds."""
    mapped: tuple[str, ...]
    """Ours <- theirs, and how."""
    left: tuple[str, ...]
    """Groups of keys of the file that nothing was made of."""
    new: tuple[str, ...]
    """Parts of the model that start as they do without a file."""

    def lines(self) -> list[str]:
        """To be printed."""
        rest = [f"{what}: {', '.join(names)}" for what, names in (("left over", self.left), ("new", self.new)) if names]
        return [f"init: {self.source}", *(f"  {line}" for line in (*self.mapped, *rest))]


def check_image_mae(config: ModelConfig, path: Path) -> None:
    """Raise `ValueError` as `initialise_from_image_mae` would with a model of `config`, before there is one."""
    read_image_encoder(path).check_fits(config.encoder)


@torch.no_grad()
def initialise_from_image_mae(model: DiffMAViL | Classifier, path: Path) -> InitReport:
    """Overwrite in place the encoders and the fusion blocks that `model` has.

    Args:
        path: safetensors, or a file of torch's, with MAE's own names or those of transformers' ViTMAE.

    Raises:
        ValueError: nothing that can be read there, not an image MAE, or one of another size than the model's encoders.
    """
    image = read_image_encoder(path)
    image.check_fits(model.config.encoder)
    values: dict[str, Tensor] = {}
    mapped = []
    for name, branch in branches(model).items():
        values |= _encoder(f"{name}.encoder", branch, image)
        mapped.append(f"{name}.encoder.embed.proj <- {image.names.patch}: {_how(branch, image.kernel)}")
    depth = model.config.encoder.depth
    used = _span(image, 0, depth)
    mapped.append(f"each encoder: cls <- {image.names.cls}; blocks <- {used}; norm <- {image.names.norm}")
    fusion = _fusion(model, image)
    if fusion:
        mapped.append(f"fusion: each block <- {image.names.block.format(depth - 1)}; norm <- {image.names.norm}")
    values |= fusion
    parameters = dict(model.named_parameters(remove_duplicate=False))
    absent = [name for name in values if name not in parameters]
    if absent:
        mapped.append(f"not taken, since the model's settings leave them out: {', '.join(absent)}")
    for name in parameters.keys() & values.keys():
        parameters[name].copy_(values[name])
    new = dict.fromkeys(".".join(name.split(".")[:2]) for name in parameters if name not in values)
    return InitReport(_source(image), tuple(mapped), _left(image, depth), tuple(new))


def branches(model: DiffMAViL | Classifier) -> dict[str, Branch]:
    """Name -> branch, of the modalities that the model has."""
    found = {name: getattr(model, name, None) for name in ("video", "audio")}
    return {name: branch for name, branch in found.items() if branch is not None}


def _encoder(name: str, branch: Branch, image: ImageEncoder) -> dict[str, Tensor]:
    """Parameter -> value, of the encoder called `name`."""
    values = {
        f"{name}.embed.proj.weight": patch_weight(image.kernel, branch.patch),
        f"{name}.embed.proj.bias": image.bias,
        f"{name}.embed.cls": image.cls,
    }
    for number in range(len(branch.encoder.blocks)):
        values |= _below(f"{name}.blocks.{number}", image.blocks[number])
    return values | _below(f"{name}.norm", image.norm)


def _fusion(model: DiffMAViL | Classifier, image: ImageEncoder) -> dict[str, Tensor]:
    """Parameter -> value, of the fusion encoder; nothing for a model without one."""
    fusion = getattr(model, "fusion", None)
    if fusion is None or not len(fusion.blocks):
        return {}
    last = image.blocks[model.config.encoder.depth - 1]
    values = _below("fusion.norm", image.norm)
    for number in range(len(fusion.blocks)):
        values |= _below(f"fusion.blocks.{number}", last)
    return values


def _below(name: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{part}": value for part, value in values.items()}


def patch_weight(kernel: Tensor, patch: tuple[int, ...]) -> Tensor:
    """A picture's kernel `[D, 3, h, w]` -> weight `[D, P]` for patches of video (t, h, w) or sound (time, mel)."""
    if len(patch) == 3:
        frames, *size = patch
        return repeat(resize_kernel(kernel, size) / frames, "d c h w -> d (t h w c)", t=frames)
    grey = reduce(kernel, "d c mel time -> d 1 time mel", "sum")
    return rearrange(resize_kernel(grey, patch), "d 1 time mel -> d (time mel)")


def resize_kernel(kernel: Tensor, size: Iterable[int]) -> Tensor:
    """`[D, C, h, w] -> [D, C, *size]`, so that resized patches give what patches gave.

    Resizing a flat patch x is a matrix: x R. The new kernel is the w' of least norm that comes closest to R w' = w.
    """
    size, old = tuple(size), kernel.shape[2:]
    if size == tuple(old):
        return kernel
    pixels = rearrange(torch.eye(old.numel(), dtype=torch.float64), "n (h w) -> n 1 h w", h=old[0])
    resize = F.interpolate(pixels, size=size, mode="bicubic", antialias=True)
    inverse = torch.linalg.pinv(rearrange(resize, "n 1 h w -> n (h w)"))
    resized = rearrange(kernel, "d c h w -> d c (h w)").double() @ inverse.T
    return rearrange(resized, "d c (h w) -> d c h w", h=size[0]).float()


def _how(branch: Branch, kernel: Tensor) -> str:
    """What became of the kernel of the patch embedding."""
    height, width = kernel.shape[2:]
    if len(branch.patch) == 3:
        frames, *size = branch.patch
        how = f"repeated over {frames} frames and divided by {frames}"
    else:
        size = branch.patch[::-1]
        how = "summed over its 3 channels, time along its width"
    resized = f"resized (bicubic) from {height}x{width} to {_by(size)}, "
    return how if (height, width) == tuple(size) else resized + how


def _by(size: Iterable[int]) -> str:
    return "x".join(map(str, size))


def _span(image: ImageEncoder, first: int, end: int) -> str:
    """What the blocks from `first` to before `end` are called."""
    return image.names.block.format(first) + (f" to {end - 1}" if end - first > 1 else "")


def _source(image: ImageEncoder) -> str:
    heads = "not told (taken to be ours)" if image.heads is None else str(image.heads)
    kernel = _by(image.kernel.shape[2:])
    size = f"depth {len(image.blocks)}, width {image.width}, heads {heads}, patches of {kernel}"
    return f"{image.path}, an image MAE ({image.names.kind}): {size}"


def _left(image: ImageEncoder, depth: int) -> tuple[str, ...]:
    """Groups of keys; blocks beyond `depth` are one."""
    left = [f"{image.names.positions} (our positions are fixed)"] if image.names.positions in image.left else []
    if len(image.blocks) > depth:
        left.append(_span(image, depth, len(image.blocks)))
    others = (key for key in image.left if key != image.names.positions)
    groups = Counter(re.split(r"\.\d+\.|\.(?:weight|bias)$", key)[0] for key in others)
    return (*left, *(name if count == 1 else f"{name} ({count})" for name, count in groups.items()))
