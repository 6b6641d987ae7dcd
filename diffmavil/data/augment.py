"""Random changes of whole batches on the training device: colour, time roll, SpecAugment, mixup.

Every random number is a function of (seed, position of the clip in the training stream, use), by Philox, so the same
clip is changed alike on any device and in any layout of processes and workers. Crops and flips are not here: decoding
draws only the pixels that are kept.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from diffmavil.config import AugmentConfig, require
from maekernels.philox import fold_in, uniform

_COLOUR, _ROLL, _SPEC, _MIXUP = 32, 33, 34, 35
"""Philox streams of the uses; those below belong to maekernels."""
_GREY = (0.299, 0.587, 0.114)
_TRIES = 32
"""Draws of a Beta variate, of which the first that is accepted counts: none is in 1 of 4e9 at worst."""


class Augment:
    """What `config` switches on; with its defaults nothing changes, and nothing is computed."""

    def __init__(self, config: AugmentConfig, seed: int) -> None:
        self.config = config
        self.seed = fold_in(seed, _COLOUR)

    def video(self, video: Tensor, position: Tensor) -> Tensor:
        """uint8 `[B, T, H, W, 3]`, int64 `[B]` -> the same shape and type."""
        strength = self.config.colour
        return colour_jitter(video, position, self.seed, strength) if strength and video.numel() else video

    def spec(self, spec: Tensor, position: Tensor, heard: Tensor | None = None) -> Tensor:
        """Normalised log-mel `[B, F, M]`, int64 `[B]` -> the same shape and type.

        heard: int64 `[B]`, frames before the sound's end: padding stays behind it. None: all are sound.
        """
        c = self.config
        if not spec.numel():
            return spec
        if c.roll:
            spec = time_roll(spec, position, self.seed, heard)
        if c.time_mask or c.mel_mask:
            spec = spec_augment(spec, position, self.seed, time=c.time_mask, mels=c.mel_mask)
        return spec


def colour_jitter(video: Tensor, position: Tensor, seed: int, strength: float) -> Tensor:
    """Brightness, contrast and saturation, each times a number in [1 - strength, 1 + strength]; alike in all frames.

    Args:
        video: uint8 `[B, T, H, W, 3]`.
        position: int64 `[B]`.
        strength: in (0, 1].
    """
    require(video.dtype == torch.uint8 and video.ndim == 5, "video", (video.dtype, video.ndim), "uint8 [B, T, H, W, 3]")
    factor = 1 + strength * (2 * uniform(seed, 3, samples=position, stream=_COLOUR) - 1)
    brightness, contrast, saturation = (rearrange(column, "b -> b 1 1 1 1") for column in factor.unbind(1))
    x = video.float() * brightness
    mean = grey(x).mean((1, 2, 3, 4), keepdim=True)
    x = mean + contrast * (x - mean)
    shade = grey(x)
    return (shade + saturation * (x - shade)).round_().clamp_(0, 255).to(torch.uint8)


def grey(x: Tensor) -> Tensor:
    """Luma: `[..., 3]` -> `[..., 1]`."""
    red, green, blue = x.split(1, dim=-1)
    return red * _GREY[0] + green * _GREY[1] + blue * _GREY[2]  # numbers: a tensor of them would wait for the device


def time_roll(spec: Tensor, position: Tensor, seed: int, heard: Tensor | None = None) -> Tensor:
    """Roll each spectrogram `[B, F, M]` in time by a number of frames in [0, F), what leaves at the end comes first.

    heard: int64 `[B]`, frames that are rolled in place of F; those behind them stay.
    """
    frame = torch.arange(spec.shape[1], device=spec.device)
    length = torch.full_like(position, len(frame)) if heard is None else heard.clamp(min=1)
    length = rearrange(length, "b -> b 1")
    shift = (uniform(seed, 1, samples=position, stream=_ROLL) * length).long()
    source = torch.where(frame < length, (frame - shift) % length, frame)
    return spec.gather(1, rearrange(source, "b f -> b f 1").expand_as(spec))


def spec_augment(spec: Tensor, position: Tensor, seed: int, *, time: int, mels: int) -> Tensor:
    """One stretch of up to `time` frames and one of up to `mels` bins of each spectrogram become 0, the mean.

    As SpecAugment: the width is uniform in [0, limit], the place uniform in what is left.
    """
    frames, bins = spec.shape[1:]
    require(0 <= time <= frames, "data.augment.time_mask", time, f"in [0, {frames}], the frames of the spectrogram")
    require(0 <= mels <= bins, "data.augment.mel_mask", mels, f"in [0, {bins}], the bins of the spectrogram")
    u = uniform(seed, 4, samples=position, stream=_SPEC)
    hidden_time = _stretch(u[:, 0], u[:, 1], time, frames)
    hidden_mels = _stretch(u[:, 2], u[:, 3], mels, bins)
    hidden = rearrange(hidden_time, "b f -> b f 1") | rearrange(hidden_mels, "b m -> b 1 m")
    return spec.masked_fill(hidden, 0.0)


def _stretch(width: Tensor, place: Tensor, most: int, length: int) -> Tensor:
    """Two uniform numbers `[B]` -> bool `[B, length]`, True in a stretch of 0 to `most`."""
    wide = (width * (most + 1)).long()
    begin = (place * (length - wide + 1)).long()
    index = torch.arange(length, device=width.device)
    return (index >= rearrange(begin, "b -> b 1")) & (index < rearrange(begin + wide, "b -> b 1"))


class Mixed(NamedTuple):
    """A batch after `mixup`."""

    video: Tensor
    spec: Tensor
    targets: Tensor


def mixup(video: Tensor, spec: Tensor, targets: Tensor, position: Tensor, seed: int, alpha: float) -> Mixed:
    """Mix each clip with its neighbour in the stream, for fine-tuning: the share of itself is max(l, 1 - l), l ~ Beta.

    Positions 2k and 2k + 1 are partners, whatever the layout of processes; the order of the stream is random already.

    Args:
        video: uint8 `[B, T, H, W, 3]`. B is even and position[0] too, as when the batch of each process is even.
        spec: `[B, F, M]`.
        targets: float `[B, C]`, such as `multi_hot` gives.
        position: int64 `[B]`, consecutive.
        alpha: both parameters of the Beta distribution, in (0, 1].

    Returns:
        Video still uint8, spec and targets, mixed alike.
    """
    require(0 < alpha <= 1, "alpha", alpha, "in (0, 1]")
    require(len(video) % 2 == 0, "video", tuple(video.shape), "an even number of clips")
    share = _beta(seed, position, alpha)
    share = torch.maximum(share, 1 - share)

    def mixed(x: Tensor) -> Tensor:
        partner = rearrange(rearrange(x, "(b two) ... -> b two ...", two=2).flip(1), "b two ... -> (b two) ...")
        own = share.view(-1, *[1] * (x.ndim - 1))
        return own * x.float() + (1 - own) * partner.float()

    return Mixed(mixed(video).round_().to(torch.uint8), mixed(spec), mixed(targets))


def _beta(seed: int, position: Tensor, alpha: float) -> Tensor:
    """Beta(alpha, alpha) for each position, by Jöhnk's method: the first accepted of `_TRIES` pairs."""
    u = rearrange(uniform(seed, 2 * _TRIES, samples=position, stream=_MIXUP), "b (n two) -> two b n", two=2)
    x, y = (u.double() + 2.0**-25) ** (1 / alpha)
    first = ((x + y) <= 1).byte().argmax(1, keepdim=True)
    x, y = x.gather(1, first), y.gather(1, first)
    return rearrange(x / (x + y), "b 1 -> b").float()


def multi_hot(labels: list[tuple[int, ...]], classes: int) -> Tensor:
    """Indices of each clip's classes -> float32 `[B, classes]`, 1 where it carries the class."""
    out = torch.zeros(len(labels), classes)
    for row, carried in zip(out, labels, strict=True):
        row[list(carried)] = 1.0
    return out
