"""Every launch configuration of maekernels that is compiled ahead of time: its launchers at the shapes of real models.

Tensors are on the meta device: shapes, strides and alignment, no memory. Token counts are those of a mask ratio of 0.8,
which no power of two divides, so that no width rests on a lucky divisor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from gate import Case
from torch import Tensor

from diffmavil.config import ModelConfig
from diffmavil.config.presets import preset
from maekernels._pixels import CHANNEL, PATCH, PLAIN
from maekernels.add_noise import _launch_add_noise, _launch_add_noise_backward
from maekernels.diffuse_patches import _launch_diffuse, _launch_diffuse_backward
from maekernels.gather_tokens import _launch_gather
from maekernels.info_nce import _STRIP, _launch_contrast, _launch_unit, _launch_unit_backward, _launch_weights
from maekernels.masked_mse import _launch_masked_mse, _launch_masked_mse_backward
from maekernels.patchify import _launch_patchify, _launch_patchify_backward
from maekernels.random_mask import _launch_random_mask
from maekernels.scatter_tokens import _launch_fill_grad, _launch_scatter

OUTPUTS = {"bf16": torch.bfloat16, "fp32": torch.float32}


def meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@dataclass(frozen=True)
class Pixels:
    """What the pixel ops read: a tensor, how it is cut, and how many patches there are."""

    name: str
    x: Tensor
    patch: tuple[int, ...]
    tokens: int
    channels_first: bool = False

    @property
    def keep(self) -> Tensor:
        return self._ids(round(self.tokens * 0.2))

    @property
    def masked(self) -> Tensor:
        return self._ids(self.tokens - round(self.tokens * 0.2))

    @property
    def layout(self) -> tuple[list[int], list[float], list[float], bool]:
        channels = 1 if self.x.dim() == 3 else 3
        return list(self.patch), [0.5] * channels, [0.25] * channels, self.channels_first

    def patches(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        return meta(*ids.shape, self.x[0].numel() // self.tokens, dtype=dtype)

    def _ids(self, count: int) -> Tensor:
        return meta(len(self.x), count, dtype=torch.int32)


def of_model(name: str, model: ModelConfig, batch: int) -> list[Pixels]:
    """Video frames and spectrogram as the data loader gives them."""
    video, audio = model.video, model.audio
    frames = meta(batch, video.frames, video.size, video.size, 3, dtype=torch.uint8)
    spec = meta(batch, audio.frames, audio.mels, dtype=torch.float32)
    return [
        Pixels(f"{name} video", frames, video.patch, video.tokens),
        Pixels(f"{name} spectrogram", spec, audio.patch, audio.tokens),
    ]


TINY, BASE = preset("diffmavil-tiny").model, preset("diffmavil-base").model
BASE_8 = replace(BASE, video=replace(BASE.video, frames=8))
MODELS = {"tiny": (TINY, 8), "base-8-frames": (BASE_8, 64), "base-16-frames": (BASE, 64)}
OURS = [pixels for name, (model, batch) in MODELS.items() for pixels in of_model(name, model, batch)]
# As other code bases keep their pixels.
FOREIGN = [
    Pixels("image-224", meta(64, 224, 224, 3, dtype=torch.uint8), (16, 16), 196),
    Pixels("float image, channels first", meta(64, 3, 224, 224, dtype=torch.float32), (16, 16), 196, True),
    Pixels("video, channels first", meta(64, 3, 16, 224, 224, dtype=torch.uint8), (2, 16, 16), 1568, True),
]
# transformers' VideoMAE: [B, T, C, H, W], of which the ops see a view.
FRAMES_FIRST = meta(16, 16, 3, 224, 224, dtype=torch.float32).movedim(2, -1)
FOREIGN.append(Pixels("float frames, channels first", FRAMES_FIRST, (2, 16, 16), 1568))
SEED = meta(dtype=torch.int64)


def norms(pixels: Pixels) -> tuple[int, ...]:
    """VideoMAE's target is asked for by those who keep their pixels as it does; the others would take minutes more."""
    return (PLAIN, PATCH, CHANNEL) if pixels in FOREIGN[1:] else (PLAIN, PATCH)


def all_cases() -> Iterator[Case]:
    for out, dtype in OUTPUTS.items():
        for pixels in OURS + (FOREIGN if dtype == torch.bfloat16 else []):
            name = f"{pixels.name} {out}"
            yield from patchify(name, pixels, dtype)
            yield from diffuse_patches(name, pixels, dtype)
            yield from masked_mse(name, pixels, dtype)
        for name, (model, batch) in MODELS.items():
            yield from tokens(f"{name} {out}", model, batch, dtype)
            yield from add_noise(f"{name} {out}", model, batch, dtype)
            yield from info_nce(f"{name} {out}", batch, model.encoder.width, dtype)
        yield from info_nce(f"large batch {out}", 4096, BASE.encoder.width, dtype)
    for name, (model, batch) in MODELS.items():
        yield from random_mask(name, model, batch)


def patchify(name: str, pixels: Pixels, dtype: torch.dtype) -> Iterator[Case]:
    patch, mean, std, first = pixels.layout
    forward = partial(_launch_patchify, pixels.x, pixels.keep, patch, mean, std, dtype, first)
    yield Case("patchify", f"patchify {name}", forward)
    if pixels.x.is_floating_point():
        grad = pixels.patches(pixels.keep, dtype)
        backward = partial(_launch_patchify_backward, grad, pixels.x, pixels.keep, patch, std, first)
        yield Case("patchify", f"patchify backward {name}", backward)


def diffuse_patches(name: str, pixels: Pixels, dtype: torch.dtype) -> Iterator[Case]:
    patch, mean, std, first = pixels.layout
    ids, alpha_bar = pixels.masked, meta(len(pixels.x), dtype=torch.float32)
    for norm in norms(pixels):
        args = (pixels.x, ids, patch, mean, std, alpha_bar)
        forward = partial(_launch_diffuse, *args, SEED, 0, norm, dtype, first)
        yield Case("diffuse_patches", f"diffuse_patches {name} {norm=}", forward)
        if pixels.x.is_floating_point():
            backward = partial(_launch_diffuse_backward, pixels.patches(ids, dtype), *args, norm, first)
            yield Case("diffuse_patches", f"diffuse_patches backward {name} {norm=}", backward)


def masked_mse(name: str, pixels: Pixels, dtype: torch.dtype) -> Iterator[Case]:
    patch, mean, std, first = pixels.layout
    pred, loss = pixels.patches(pixels.masked, dtype), meta(dtype=torch.float32)
    for norm in norms(pixels):
        args = (pred, pixels.x, pixels.masked, patch, mean, std, norm, first)
        yield Case("masked_mse", f"masked_mse {name} {norm=}", partial(_launch_masked_mse, *args))
        backward = partial(_launch_masked_mse_backward, loss, *args)
        yield Case("masked_mse", f"masked_mse backward {name} {norm=}", backward)


def tokens(name: str, model: ModelConfig, batch: int, dtype: torch.dtype) -> Iterator[Case]:
    """Gather and scatter of encoder and decoder tokens; scatter as MAE's mask token, and as gather's gradient."""
    length = model.video.tokens
    ids = meta(batch, round(length * 0.2), dtype=torch.int32)
    for width in (model.encoder.width, model.video_decoder.width):
        full, few = meta(batch, length, width, dtype=dtype), meta(*ids.shape, width, dtype=dtype)
        row = meta(width, dtype=dtype)
        what = f"{name} width {width}"
        yield Case("tokens", f"gather_tokens {what}", partial(_launch_gather, full, ids))
        yield Case("tokens", f"scatter_tokens {what}", partial(_launch_scatter, few, ids, length, 0.0, None))
        yield Case("tokens", f"scatter_tokens row {what}", partial(_launch_scatter, few, ids, length, 0.0, row))
        yield Case("tokens", f"scatter_tokens backward {what}", partial(_launch_fill_grad, full, ids))


def add_noise(name: str, model: ModelConfig, batch: int, dtype: torch.dtype) -> Iterator[Case]:
    x0 = meta(batch, model.video.tokens, model.video.patch_dim, dtype=dtype)
    alpha_bar = meta(batch, dtype=torch.float32)
    yield Case("add_noise", f"add_noise {name}", partial(_launch_add_noise, x0, alpha_bar, SEED, 0))
    yield Case("add_noise", f"add_noise backward {name}", partial(_launch_add_noise_backward, x0, alpha_bar))


def random_mask(name: str, model: ModelConfig, batch: int) -> Iterator[Case]:
    """Random over all tokens; tubes (one set of labels) on video; time and frequency (two sets) on the spectrogram."""
    for kind, length, sets in (("video", model.video.tokens, 1), ("spectrogram", model.audio.tokens, 2)):
        keep = round(length * 0.2)
        for groups in (None, meta(sets, length, dtype=torch.int32)):
            launch = partial(_launch_random_mask, batch, length, keep, SEED, 0, groups)
            yield Case("random_mask", f"random_mask {name} {kind} groups={sets if groups is not None else 0}", launch)


def info_nce(name: str, batch: int, width: int, dtype: torch.dtype) -> Iterator[Case]:
    """One process, and one of eight."""
    rows, few = meta(batch, width, dtype=dtype), meta(batch, dtype=torch.float32)
    yield Case("info_nce", f"info_nce unit {name}", partial(_launch_unit, rows))
    yield Case("info_nce", f"info_nce unit backward {name}", partial(_launch_unit_backward, rows, rows, few))
    for ranks in (1, 8):
        both, k = ranks == 1, meta(batch * ranks, width, dtype=dtype)
        columns = few if both else few[:0]
        what, first = f"{name} {ranks=}", (ranks - 1) * batch
        yield Case("info_nce", f"info_nce {what}", partial(_launch_contrast, rows, k, first, 0.1, both))
        # Of the backward pass the kernel alone, on a strip: the rest is torch's, and its autocast knows no meta device.
        strip = slice(0, max(1, _STRIP // len(k)))
        weights = partial(_launch_weights, rows[strip], k, few[strip], columns, 0, first, 0.1, both)
        yield Case("info_nce", f"info_nce backward {what}", weights)


def odd_cases() -> Iterator[Case]:
    """What no budget is for, and must compile all the same: sizes of 1, which Triton makes constants of, sizes that
    nothing divides, float16, int64 ids, one sample.
    """
    half, seed = torch.float16, meta(dtype=torch.int64)
    odd = [
        Pixels("odd video", meta(1, 2, 8, 12, 3, dtype=torch.uint8), (2, 4, 6), 4),
        Pixels("odd spectrogram", meta(3, 21, 35, dtype=half), (7, 5), 21),
        Pixels("one patch a side", meta(5, 14, 14, 3, dtype=torch.float32), (14, 7), 2),
        Pixels("image of 4 channels first", meta(2, 4, 30, 42, dtype=torch.bfloat16), (10, 14), 9, True),
    ]
    for pixels in odd:
        channels = pixels.x.shape[1 if pixels.channels_first else -1] if pixels.x.dim() > 3 else 1
        layout = (list(pixels.patch), [0.5] * channels, [0.25] * channels, pixels.channels_first)
        yield from _odd_pixels(pixels, layout, half, seed)
    for batch, length, keep, dim in ((1, 1, 1, 1), (3, 37, 9, 100), (1, 2049, 1, 33), (7, 16, 15, 96)):
        for ids_type in (torch.int32, torch.int64):
            ids = meta(batch, keep, dtype=ids_type)
            full, few = meta(batch, length, dim, dtype=half), meta(batch, keep, dim, dtype=half)
            name = f"odd {batch}x{length}x{dim} {ids_type}"
            yield Case("tokens", f"gather_tokens {name}", partial(_launch_gather, full, ids))
            yield Case("tokens", f"gather_tokens strided {name}", partial(_launch_gather, full.mT.contiguous().mT, ids))
            yield Case("tokens", f"scatter_tokens {name}", partial(_launch_scatter, few, ids, length, 1.0, None))
            yield Case(
                "tokens", f"scatter_tokens row {name}", partial(_launch_scatter, few, ids, length, 0.0, full[0, 0])
            )
            yield Case("tokens", f"scatter_tokens backward {name}", partial(_launch_fill_grad, full, ids))
        alpha_bar = meta(batch, dtype=torch.float32)
        yield Case("add_noise", f"add_noise {name}", partial(_launch_add_noise, full, alpha_bar, seed, 2**33))
        yield Case("add_noise", f"add_noise backward {name}", partial(_launch_add_noise_backward, full, alpha_bar))
        for groups in (None, meta(3, length, dtype=torch.int64)):
            launch = partial(_launch_random_mask, batch, length, keep, seed, 2**33, groups)
            yield Case("random_mask", f"random_mask {name} {groups is None}", launch)
    for rows, columns, dim in ((1, 1, 1), (3, 3, 7), (70, 70, 100), (5, 40, 24)):
        for dtype in (torch.float32, half):
            q, k, few = meta(rows, dim, dtype=dtype), meta(columns, dim, dtype=dtype), meta(rows, dtype=torch.float32)
            name, both = f"odd {rows}x{columns}x{dim} {dtype}", rows == columns
            yield Case("info_nce", f"info_nce unit {name}", partial(_launch_unit, q))
            yield Case("info_nce", f"info_nce unit backward {name}", partial(_launch_unit_backward, q, q, few))
            yield Case("info_nce", f"info_nce {name}", partial(_launch_contrast, q, k, 0, 0.1, both))
            weights = partial(_launch_weights, q, k, few, few if both else few[:0], 0, 2**33, 0.1, both)
            yield Case("info_nce", f"info_nce backward {name}", weights)


def _odd_pixels(
    pixels: Pixels, layout: tuple[list[int], list[float], list[float], bool], dtype: torch.dtype, seed: Tensor
) -> Iterator[Case]:
    patch, mean, std, first = layout
    x, name = pixels.x, pixels.name
    alpha_bar = meta(len(x), dtype=torch.float32)
    for ids in (pixels.keep, pixels.masked.long()):
        pred = pixels.patches(ids, dtype)
        yield Case("patchify", f"patchify {name}", partial(_launch_patchify, x, ids, patch, mean, std, dtype, first))
        backward = partial(_launch_patchify_backward, pred, x, ids, patch, std, first)
        yield Case("patchify", f"patchify backward {name}", backward)
        for norm in (PLAIN, PATCH, CHANNEL):
            args = (x, ids, patch, mean, std)
            forward = partial(_launch_diffuse, *args, alpha_bar, seed, 2**33, norm, dtype, first)
            yield Case("diffuse_patches", f"diffuse_patches {name} {norm=}", forward)
            backward = partial(_launch_diffuse_backward, pred, *args, alpha_bar, norm, first)
            yield Case("diffuse_patches", f"diffuse_patches backward {name} {norm=}", backward)
            yield Case(
                "masked_mse", f"masked_mse {name} {norm=}", partial(_launch_masked_mse, pred, *args, norm, first)
            )
            backward = partial(_launch_masked_mse_backward, alpha_bar[0], pred, *args, norm, first)
            yield Case("masked_mse", f"masked_mse backward {name} {norm=}", backward)
