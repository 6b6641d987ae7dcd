"""Masked autoencoders of Hugging Face's transformers, at the sizes of a config, and one modality of ours beside them.

VideoMAEForPreTraining      the video of our config, tube or random masks given from outside
ViTMAEForPreTraining        "ViTMAE-style audio": it takes square pictures alone, so the spectrogram's patches are
                            laid into the nearest square, of at most as many patches
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffmavil.config import ModelConfig
from diffmavil.model.branch import Branch
from diffmavil.model.mavil import AUDIO_STREAM, DiffMAViL


class OneModality(nn.Module):
    """The encoder and decoder of one modality of ours, without fusion and contrast: one view's loss."""

    def __init__(self, config: ModelConfig, stream: int) -> None:
        super().__init__()
        model = DiffMAViL(config)
        self.branch: Branch = model.audio if stream == AUDIO_STREAM else model.video

    def forward(self, x: Tensor, keep: int, offset: int) -> Tensor:
        drawn = self.branch.draw(x, keep, 0, offset)
        return self.branch.loss(self.branch.encode_all([x], [drawn.masks.keep]), [x], [drawn])


def load_transformers() -> Any:
    """The module. Raises `ImportError` with the reason when it cannot be used."""
    if "torchaudio" not in sys.modules:
        try:
            import torchaudio  # noqa: F401
        except (ImportError, OSError):
            # PyPI's compiled torchaudio does not load beside a CPU-only torch; the peers need none.
            sys.modules["torchaudio"] = None  # type: ignore[assignment]
    try:
        transformers = importlib.import_module("transformers")
        for name in ("VideoMAEForPreTraining", "ViTMAEForPreTraining"):
            getattr(transformers, name)  # loaded only now
    except (ImportError, OSError, RuntimeError) as error:
        raise ImportError(f"{type(error).__name__}: {error}") from error
    return transformers


def video_mae(
    config: ModelConfig, batch: int, keep: int, device: torch.device
) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Its model, and its loss for a batch of clips at hand as it wants them."""
    transformers = load_transformers()
    v, e, d = config.video, config.encoder, config.video_decoder
    assert v.patch[1] == v.patch[2]
    model = transformers.VideoMAEForPreTraining(
        transformers.VideoMAEConfig(
            image_size=v.size,
            patch_size=v.patch[1],
            num_frames=v.frames,
            tubelet_size=v.patch[0],
            hidden_size=e.width,
            num_hidden_layers=e.depth,
            num_attention_heads=e.heads,
            intermediate_size=int(e.width * e.mlp_ratio),
            decoder_hidden_size=d.width,
            decoder_num_hidden_layers=d.depth,
            decoder_num_attention_heads=d.heads,
            decoder_intermediate_size=int(d.width * d.mlp_ratio),
        )
    ).to(device)
    generator = torch.Generator().manual_seed(0)
    clip = torch.randn(batch, v.frames, 3, v.size, v.size, generator=generator).to(device)
    order = torch.rand(batch, v.tokens, generator=generator).argsort(dim=1)
    masked = (order >= keep).to(device)
    return model, lambda: model(clip, bool_masked_pos=masked).loss


def vit_mae(
    config: ModelConfig, batch: int, ratio: float, device: torch.device
) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Its model, and its loss for spectrograms laid into a square."""
    transformers = load_transformers()
    a, e, d = config.audio, config.encoder, config.audio_decoder
    side = math.isqrt(a.tokens)
    patch = math.isqrt(a.patch_dim)
    model = transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(
            image_size=side * patch,
            patch_size=patch,
            num_channels=1,
            mask_ratio=ratio,
            norm_pix_loss=True,
            hidden_size=e.width,
            num_hidden_layers=e.depth,
            num_attention_heads=e.heads,
            intermediate_size=int(e.width * e.mlp_ratio),
            decoder_hidden_size=d.width,
            decoder_num_hidden_layers=d.depth,
            decoder_num_attention_heads=d.heads,
            decoder_intermediate_size=int(d.width * d.mlp_ratio),
        )
    ).to(device)
    generator = torch.Generator().manual_seed(0)
    picture = torch.randn(batch, 1, side * patch, side * patch, generator=generator).to(device)
    return model, lambda: model(picture).loss


def counted_flops(loss: Callable[[], Tensor], batch: int) -> float:
    """FLOPs of one clip's forward, as torch counts them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        loss()
    return counter.get_total_flops() / batch
