"""The task of pretraining: reconstruct masked patches, and tell which sound belongs to which picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffmavil.config import Config, ModelConfig
from diffmavil.data.audio import make_log_mel
from diffmavil.data.augment import Augment
from diffmavil.data.dataset import Batch
from diffmavil.model import DiffMAViL
from diffmavil.model.draws import Draws
from diffmavil.model.flops import FORWARDS, mixed_flops
from diffmavil.model.mavil import Coupled
from diffmavil.training.averages import Averages
from diffmavil.training.planner import Counts, Plan, timetable
from maekernels.philox import fold_in

_INIT, _MASKS = 1, 2  # streams folded out of the run's seed
_RARE, _STORED = 1 / 16, 1024
"""A step that takes a larger share of a set than the first tells the contrast which clips they are: with less, one clip
in 1,500 meets itself, where two epochs do. The contrast then stores the matrix of all pairs, so in larger steps than
the second it is told only where it must be, of a set that is smaller than what a step takes of it."""


class Pretraining:
    """`diffmavil.training.task.Task` of a `DiffMAViL`, initialised by the run's seed.

    Args:
        sets: (clips, weight) of each set that is trained on; none: of more clips than a step could show twice.

    Attributes:
        note: what the user should know; None: nothing.
        averages: of the weights, "ema" if it is asked for.

    Raises:
        ValueError: kernels that cannot be had here.
    """

    def __init__(self, config: Config, device: torch.device, *, sets: Sequence[tuple[int, float]] = ()) -> None:
        self.config, self.device = config, device
        self.names = loss_names(config.model)
        largest = max((stretch.batch_size for stretch in timetable(config).stretches), default=0)
        total = sum(weight for _, weight in sets)
        taken = [(math.ceil(largest * weight / total), clips) for clips, weight in sets]
        rare = _RARE if largest <= _STORED else 1
        self._twice = any(some > rare * clips for some, clips in taken)
        most = "up to" if len(sets) == 1 else "about"
        said = f"a step takes {most} {{}} clips of a set of {{}}: some come twice, and are no negatives then"
        small = next((of for of in taken if of[0] > of[1]), None)
        self.note = said.format(*small) if small else None
        torch.manual_seed(fold_in(config.train.seed, _INIT) % 2**63)
        self.model = DiffMAViL(config.model).to(device)
        self.seed = fold_in(config.train.seed, _MASKS)
        steps = timetable(config).steps
        self.averages = Averages(self.model, decay=config.train.ema, share=0.0, steps=steps)
        self._log_mel = make_log_mel(config.model).to(device)
        self._augment = Augment(config.data.augment, config.train.seed)

    @property
    def frozen(self) -> Sequence[nn.Module]:
        return ()

    @property
    def state(self) -> dict[str, Tensor]:
        return self.averages.state

    def after_step(self, done: int) -> None:
        self.averages.after_step(done)

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Video uint8 `[B, T, H, W, 3]`, normalised log-mel `[B, F, M]`; which clips they are, if some come twice."""
        video = self._augment.video(batch.video, batch.position)
        spec = self._augment.spec(self._log_mel(batch.wave, batch.wave_valid), batch.position)
        return (video, spec, batch.clip) if self._twice else (video, spec)

    def random_inputs(self, clips: int) -> tuple[Tensor, ...]:
        video, spec = random_clips(self.config, clips, self.device)
        return (video, spec, torch.arange(clips, device=self.device)) if self._twice else (video, spec)

    def arguments(self, now: Plan, offset: int) -> dict[str, Any]:
        return {"seed": self.seed, "offset": offset, "keep_video": now.keep_video, "keep_audio": now.keep_audio}

    def draw(self, inputs: tuple[Tensor, ...], arguments: Mapping[str, Any]) -> Draws:
        video, spec, *_ = inputs
        return self.model.draw(video, spec, **arguments)

    def couple(self, passes: Sequence[tuple[tuple[Tensor, ...], dict[str, Any]]]) -> list[Coupled]:
        """The contrast of all passes together."""
        return self.model.couple([self.model.pooled(*inputs, **arguments) for inputs, arguments in passes])

    def step_flops(self, now: Plan) -> float:
        return FORWARDS * mixed_flops(self.model, now.keep_video, now.keep_audio)

    def metrics(self, now: Plan) -> dict[str, float]:
        keep = {"video": now.keep_video, "audio": now.keep_audio}
        return {
            f"mask_ratio/{name}": 1 - _mean(count) / self.model.branches[name].tokens
            for name, count in keep.items()
            if name in self.model.branches
        }


def loss_names(model: ModelConfig) -> tuple[str | None, ...]:
    """What `diffmavil.model.mavil.Losses` are recorded as; None: a model of one modality has no such part."""
    both = model.hears and model.sees
    contrasted = model.views == 2 and model.contrast.intra_weight > 0
    return (
        "loss",
        "loss/video" if model.sees else None,
        "loss/audio" if model.hears else None,
        "loss/inter" if both else None,
        "loss/intra" if both or contrasted else None,
    )


def random_clips(config: Config, clips: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Noise in the shape of a batch: video uint8 `[B, T, H, W, 3]` and spectrogram `[B, F, M]`, empty if not used."""
    video, audio = config.model.video, config.model.audio
    generator = torch.Generator().manual_seed(0)
    frames = (video.frames, video.size, video.size) if config.model.sees else (0, 0, 0)
    pixels = torch.randint(256, (clips, *frames, 3), dtype=torch.uint8, generator=generator)
    spec = torch.randn(clips, *((audio.frames, audio.mels) if config.model.hears else (0, 0)), generator=generator)
    return pixels.to(device), spec.to(device)


def _mean(counts: Counts) -> float:
    return sum(counts) / len(counts) if isinstance(counts, tuple) else counts
