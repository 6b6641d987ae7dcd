"""Masked autoencoding in float64, written plainly, as AudioMAE and VideoMAE do: cut every patch, then gather.

Also the cases that the pixel ops are tested on, and how close an answer has to be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

MEAN, STD = (0.45, 0.40, 0.55), (0.22, 0.27, 0.31)


@dataclass(frozen=True)
class Pixels:
    """One input layout of the pixel ops."""

    name: str
    shape: tuple[int, ...]
    patch: tuple[int, ...]
    dtype: torch.dtype = torch.uint8
    channels_first: bool = False
    view: Callable[[Tensor], Tensor] = lambda x: x

    def make(self, dtype: torch.dtype | None = None) -> Tensor:
        dtype = dtype or self.dtype
        generator = torch.Generator().manual_seed(0)
        if dtype == torch.uint8:
            return self.view(torch.randint(0, 256, self.shape, dtype=dtype, generator=generator))
        return self.view(torch.rand(self.shape, generator=generator, dtype=torch.float64).to(dtype))

    @property
    def channels(self) -> int:
        return 1 if len(self.shape) == 3 else self.shape[1 if self.channels_first else -1]

    @property
    def normal(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """mean and std."""
        return MEAN[: self.channels], STD[: self.channels]

    def patches(self, x: Tensor | None = None) -> Tensor:
        """All normalised patches, float64 [B, N, P]."""
        return patches(self.make() if x is None else x, self.patch, *self.normal, self.channels_first)

    def ids(self, keep: int | None = None, dtype: torch.dtype = torch.int32) -> Tensor:
        """Unordered unique tokens [B, K], by default a third of them."""
        batch, tokens, _ = self.patches().shape
        return random_ids(batch, tokens, tokens // 3 + 1 if keep is None else keep, dtype)

    def __str__(self) -> str:
        return self.name


PIXELS = [
    Pixels("video", (3, 4, 8, 12, 3), (2, 4, 6)),
    Pixels("video-channels-first", (3, 3, 4, 8, 12), (2, 4, 6), channels_first=True),
    Pixels("video-float", (2, 4, 8, 12, 3), (2, 4, 4), torch.float32),
    Pixels("video-sliced", (2, 4, 20, 12, 3), (2, 4, 4), view=lambda x: x[:, :, 2:18:2]),
    Pixels("image", (2, 12, 16, 3), (4, 4)),
    Pixels("image-channels-first", (2, 3, 12, 16), (4, 8), torch.float32, channels_first=True),
    Pixels("image-rgba", (2, 8, 8, 2), (2, 4)),
    Pixels("spectrogram", (3, 24, 16), (8, 4), torch.float32),
    Pixels("spectrogram-transposed", (3, 16, 24), (8, 4), torch.float32, view=lambda x: x.mT),
    Pixels("odd-patch", (2, 9, 15, 3), (3, 5)),
    Pixels("video-large-patch", (2, 2, 32, 48, 3), (2, 16, 16)),
    Pixels("spectrogram-large-patch", (2, 64, 32), (16, 16), torch.float32),
    Pixels("one-patch", (2, 2, 4, 4, 1), (2, 4, 4)),
]


def patches(
    x: Tensor, patch: tuple[int, ...], mean: tuple[float, ...], std: tuple[float, ...], channels_first: bool = False
) -> Tensor:
    """All normalised patches, float64 [B, N, P]; pixels within a patch ordered (t, h, w, c)."""
    x = x.double() / (255 if x.dtype == torch.uint8 else 1)
    if channels_first:
        x = rearrange(x, "b c ... -> b ... c")
    if x.dim() == 3:
        x = rearrange(x, "b f m -> b 1 f m 1")
    elif x.dim() == 4:
        x = rearrange(x, "b h w c -> b 1 h w c")
    x = (x - x.new_tensor(mean)) / x.new_tensor(std)
    pt, ph, pw = (1, *patch)[-3:]
    return rearrange(x, "b (t pt) (h ph) (w pw) c -> b (t h w) (pt ph pw c)", pt=pt, ph=ph, pw=pw)


def gather(x: Tensor, ids: Tensor) -> Tensor:
    return torch.gather(x, 1, ids.long()[..., None].repeat(1, 1, x.shape[2]))


def norm_pix(x: Tensor) -> Tensor:
    mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True)
    return (x - mean) / (var + 1e-6) ** 0.5


def norm_channels(x: Tensor, channels: int) -> Tensor:
    """VideoMAE's: each channel of a patch by its own mean and deviation, with its epsilon outside the root."""
    x = rearrange(x, "b n (p c) -> b n p c", c=channels)
    x = (x - x.mean(2, keepdim=True)) / (x.var(2, keepdim=True).sqrt() + 1e-6)
    return rearrange(x, "b n p c -> b n (p c)")


def normalised(x: Tensor, norm: bool | str, channels: int) -> Tensor:
    """As the argument `norm_pix` of the ops says."""
    return norm_channels(x, channels) if norm == "channel" else norm_pix(x) if norm else x


def random_ids(batch: int, tokens: int, keep: int, dtype: torch.dtype = torch.int32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randperm(tokens, generator=generator)[:keep] for _ in range(batch)]
    return torch.stack(rows).to(dtype) if rows else torch.empty(0, keep, dtype=dtype)


def philox(seed: int, counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 with Python's integers, from the paper."""
    x, (k0, k1) = list(counter), (seed % 2**32, seed >> 32)
    for _ in range(10):
        left, right = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [right >> 32 ^ x[1] ^ k0, right % 2**32, left >> 32 ^ x[3] ^ k1, left % 2**32]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return x[0], x[1], x[2], x[3]


def noise(seed: int, sample: int, elements: int) -> np.ndarray:
    """float64 normals of the first elements of a sample."""
    blocks = [philox(seed, (block, 0, sample % 2**32, sample >> 32)) for block in range(-(-elements // 4))]
    w = np.array(blocks, dtype=np.float64).reshape(-1, 2, 2) / 2**32
    radius, angle = np.sqrt(-2 * np.log(w[..., 0] + 2.0**-33)), 2 * np.pi * w[..., 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).reshape(-1)[:elements]


def noise_like(x: Tensor, seed: int, offset: int) -> Tensor:
    """float64 noise of x [B, ...], sample b keyed by offset + b."""
    rows = [torch.from_numpy(noise(seed, offset + b, x[b].numel())) for b in range(len(x))]
    return torch.stack(rows).view(x.shape)


def assert_within(actual: Tensor, oracle: Tensor, ulps: float, scale: float = 1.0) -> None:
    """`actual` is the float64 `oracle` up to `ulps` roundings of numbers of the size |oracle| + scale."""
    assert actual.shape == oracle.shape
    bound = ulps * torch.finfo(actual.dtype).eps * (oracle.abs() + scale)
    error = (actual.double() - oracle).abs()
    worst = (error / bound).max().item() if error.numel() else 0.0
    assert worst <= 1, f"error is {worst:.2f} times the bound of {ulps} roundings in {actual.dtype}"


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Bit for bit."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
