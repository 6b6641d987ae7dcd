"""The task of pretraining: reconstruct masked patches, and tell which sound belongs to which picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffmavil.config import Config
from diffmavil.data.audio import LogMel
from diffmavil.data.augment import Augment
from diffmavil.data.dataset import Batch
from diffmavil.model import DiffMAViL
from diffmavil.model.draws import Draws
from diffmavil.model.flops import mixed_flops
from diffmavil.model.mavil import Coupled
from diffmavil.training.planner import Counts, Plan
from maekernels.philox import fold_in

_INIT, _MASKS = 1, 2  # streams folded out of the run's seed


class Pretraining:
    """`diffmavil.training.task.Task` of a `DiffMAViL`, initialised by the run's seed.

    Raises:
        ValueError: kernels that cannot be had here.
    """

    names = ("loss", "loss/video", "loss/audio", "loss/inter", "loss/intra")

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.device = config, device
        torch.manual_seed(fold_in(config.train.seed, _INIT) % 2**63)
        self.model = DiffMAViL(config.model).to(device)
        self.seed = fold_in(config.train.seed, _MASKS)
        self._log_mel = LogMel(config.model.audio).to(device)
        self._augment = Augment(config.data.augment, config.train.seed)

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Video uint8 `[B, T, H, W, 3]` and normalised log-mel `[B, F, M]`."""
        video = self._augment.video(batch.video, batch.position)
        return video, self._augment.spec(self._log_mel(batch.wave, batch.wave_valid), batch.position)

    def random_inputs(self, clips: int) -> tuple[Tensor, Tensor]:
        return random_clips(self.config, clips, self.device)

    def arguments(self, now: Plan, offset: int) -> dict[str, Any]:
        return {"seed": self.seed, "offset": offset, "keep_video": now.keep_video, "keep_audio": now.keep_audio}

    def draw(self, inputs: tuple[Tensor, ...], arguments: Mapping[str, Any]) -> Draws:
        return self.model.draw(*inputs, **arguments)

    def couple(self, passes: Sequence[tuple[tuple[Tensor, ...], dict[str, Any]]]) -> list[Coupled]:
        """The contrast of all passes together."""
        return self.model.couple([self.model.pooled(*inputs, **arguments) for inputs, arguments in passes])

    def flops(self, now: Plan) -> float:
        return mixed_flops(self.model, now.keep_video, now.keep_audio)

    def metrics(self, now: Plan) -> dict[str, float]:
        return {
            "mask_ratio/video": 1 - _mean(now.keep_video) / self.config.model.video.tokens,
            "mask_ratio/audio": 1 - _mean(now.keep_audio) / self.config.model.audio.tokens,
        }


def random_clips(config: Config, clips: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Noise in the shape of a batch: video uint8 `[B, T, H, W, 3]` and spectrogram `[B, F, M]`."""
    video, audio = config.model.video, config.model.audio
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(
        256, (clips, video.frames, video.size, video.size, 3), dtype=torch.uint8, generator=generator
    )
    return pixels.to(device), torch.randn(clips, audio.frames, audio.mels, generator=generator).to(device)


def _mean(counts: Counts) -> float:
    return sum(counts) / len(counts) if isinstance(counts, tuple) else counts
