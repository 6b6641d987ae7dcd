"""The task of fine-tuning: tell the classes of clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import reduce, repeat
from torch import Tensor, nn

from diffmavil.config import FinetuneConfig
from diffmavil.data.audio import frames_in, make_log_mel
from diffmavil.data.augment import Augment, mixup, multi_hot
from diffmavil.data.clips import ClipSet
from diffmavil.data.dataset import Batch
from diffmavil.model.classifier import Classifier
from diffmavil.model.flops import FORWARDS, classifier_flops
from diffmavil.training.averages import Averages
from diffmavil.training.planner import Plan, timetable
from diffmavil.training.pretraining import random_clips
from maekernels.philox import fold_in

_INIT, _DRAWS, _MIXUP = 3, 4, 5  # streams folded out of the run's seed; pretraining has those before them


class Classification:
    """`diffmavil.training.task.Task` of a `Classifier`, initialised by the run's seed.

    Args:
        clips: the training clips, every one labelled, with the classes of `config.head.classes`.

    Attributes:
        averages: of the weights.
    """

    names = ("loss",)

    def __init__(self, config: FinetuneConfig, device: torch.device, *, clips: ClipSet) -> None:
        self.config, self.device = config, device
        seed, head = config.train.seed, config.head
        torch.manual_seed(fold_in(seed, _INIT) % 2**63)
        self.model = Classifier(config.model, head).to(device)
        self.averages = Averages(self.model, decay=head.ema, share=head.average, steps=timetable(config).steps)
        self._seed, self._mixup_seed = fold_in(seed, _DRAWS), fold_in(seed, _MIXUP)
        self._log_mel = make_log_mel(config.model).to(device)
        self._augment = Augment(config.data.augment, seed)
        weights = class_weights(clips, several=head.labels == "several")
        self._weights = weights.to(device) if head.balance == "loss" else None

    @property
    def frozen(self) -> Sequence[nn.Module]:
        return ()

    @property
    def state(self) -> dict[str, Tensor]:
        return self.averages.state

    def after_step(self, done: int) -> None:
        self.averages.after_step(done)

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Video, normalised log-mel, its frames before the sound's end, and the share of each class `[B, C]`."""
        heard = frames_in(batch.wave_valid, self.config.model.audio.sample_rate)
        video = self._augment.video(batch.video, batch.position)
        spec = self._augment.spec(self._log_mel(batch.wave, batch.wave_valid), batch.position, heard)
        targets = multi_hot(batch.labels, len(self.config.head.classes))
        if self.device.type == "cuda":  # so that the copy does not wait for it
            targets = targets.pin_memory()
        targets = targets.to(self.device, non_blocking=True)
        if self.config.head.mixup:
            mixed = mixup(video, spec, targets, batch.position, self._mixup_seed, self.config.head.mixup)
            video, spec, targets = mixed
            heard = reduce(heard, "(b two) -> b", "max", two=2)  # two sounds are heard until the longer one ends
            heard = repeat(heard, "b -> (b two)", two=2)
        return video, spec, heard, targets

    def random_inputs(self, clips: int) -> tuple[Tensor, ...]:
        video, spec = random_clips(self.config, clips, self.device)
        classes = len(self.config.head.classes)
        heard = torch.full((clips,), self.config.model.audio.frames, device=self.device)
        return video, spec, heard, torch.full((clips, classes), 1 / classes, device=self.device)

    def arguments(self, now: Plan, offset: int) -> dict[str, Any]:
        return {"seed": self._seed, "offset": offset, "weights": self._weights}

    def draw(self, inputs: tuple[Tensor, ...], arguments: Mapping[str, Any]) -> Any:
        video, spec, *_ = inputs
        return self.model.draw(video, spec, **arguments)

    def couple(self, passes: Sequence[tuple[tuple[Tensor, ...], dict[str, Any]]]) -> list[None]:
        """Clips have nothing to do with each other."""
        return [None] * len(passes)

    def step_flops(self, now: Plan) -> float:
        back = (FORWARDS - 1) * classifier_flops(self.model, learning=True)
        return classifier_flops(self.model) + back

    def metrics(self, now: Plan) -> dict[str, float]:
        return {}


def class_weights(clips: ClipSet, several: bool) -> Tensor:
    """How much each class weighs in the loss: float32 `[C]`, inverse to its clips. Its mean is 1: over the clips, or,
    where clips have several labels and each class its own term in the loss of each clip, over the classes.
    """
    weights = inverse_counts(clips)
    return weights / (weights if several else weights[_carried(clips)]).mean()


def clip_weights(clips: ClipSet) -> tuple[float, ...]:
    """How often each clip should come: the sum over its classes of 1 / the class's clips, as AudioSet's recipes."""
    weights = inverse_counts(clips)
    return tuple(weights[list(clip.labels)].sum().item() for clip in clips.clips)


def inverse_counts(clips: ClipSet) -> Tensor:
    """1 / clips of each class, float32 `[C]`, by the clips that exist."""
    return 1 / torch.bincount(_carried(clips), minlength=len(clips.classes)).clamp(min=1).float()


def _carried(clips: ClipSet) -> Tensor:
    return torch.tensor([label for clip in clips.clips for label in clip.labels], dtype=torch.int64)
