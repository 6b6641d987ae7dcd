"""The measured shapes: those of the ops in one training step of well-known masked autoencoders."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["video", "image", "spectrogram"]


@dataclass(frozen=True)
class Case:
    """One input and the dimensions of the model around it."""

    name: str
    kind: Kind
    size: tuple[int, ...]
    """Video (T, H, W), image (H, W), spectrogram (F, M)."""
    patch: tuple[int, ...]
    width: int
    """Width of the encoder's tokens, which are gathered."""
    decoder_width: int
    """Width of the decoder's tokens, among which the visible ones are scattered."""
    mask_ratio: float
    cpu_batch: int
    cuda_batch: int
    cpu_pairs: int = 256
    cuda_pairs: int = 4096
    """Rows of each side of the contrastive loss, which covers the whole step, not one micro-batch."""

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """Shape of one stored sample: RGB last, a spectrogram without channels."""
        return self.size if self.kind == "spectrogram" else (*self.size, 3)

    @property
    def mean(self) -> tuple[float, ...]:
        """ImageNet's; spectrograms are already normalised, as the model receives them."""
        return (0.0,) if self.kind == "spectrogram" else (0.485, 0.456, 0.406)

    @property
    def std(self) -> tuple[float, ...]:
        return (1.0,) if self.kind == "spectrogram" else (0.229, 0.224, 0.225)

    @property
    def tokens(self) -> int:
        # A list: dynamo cannot trace a generator here.
        return math.prod([size // p for size, p in zip(self.size, self.patch, strict=True)])

    @property
    def patch_dim(self) -> int:
        return math.prod(self.patch) * len(self.mean)

    @property
    def kept(self) -> int:
        return round(self.tokens * (1 - self.mask_ratio))

    @property
    def masked(self) -> int:
        return self.tokens - self.kept

    def batch(self, device_type: str) -> int:
        """Samples per batch: on a GPU enough to fill it, on a CPU few, so that a run takes minutes."""
        return self.cuda_batch if device_type == "cuda" else self.cpu_batch

    def pairs(self, device_type: str) -> int:
        return self.cuda_pairs if device_type == "cuda" else self.cpu_pairs


_TUBELET = (2, 16, 16)

CASES = {
    case.name: case
    for case in (
        Case("tiny", "video", (16, 96, 96), _TUBELET, 192, 128, 0.8, cpu_batch=4, cuda_batch=256),
        Case("base-8-frames", "video", (8, 224, 224), _TUBELET, 768, 512, 0.8, cpu_batch=1, cuda_batch=128),
        Case("base-16-frames", "video", (16, 224, 224), _TUBELET, 768, 512, 0.8, cpu_batch=1, cuda_batch=64),
        Case("base-audio", "spectrogram", (1024, 128), (16, 16), 768, 512, 0.8, cpu_batch=4, cuda_batch=256),
        Case("large", "video", (16, 224, 224), _TUBELET, 1024, 512, 0.8, cpu_batch=1, cuda_batch=64),
        Case("image-224", "image", (224, 224), (16, 16), 768, 512, 0.75, cpu_batch=4, cuda_batch=512),
    )
}
