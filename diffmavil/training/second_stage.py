"""The task of the second stage: predict what a teacher makes of masked patches, beside contrast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from diffmavil.config import AudioConfig, Config, ModelConfig, TeacherConfig, VideoConfig, require
from diffmavil.model.draws import Draws
from diffmavil.model.flops import teacher_flops
from diffmavil.model.teacher import Teacher
from diffmavil.training.planner import Plan, plan
from diffmavil.training.pretraining import Pretraining


class SecondStage(Pretraining):
    """`Pretraining` of a student, initialised by the run's seed, whose targets a teacher gives.

    Args:
        teacher: on the device. With `teacher.source` ema it has the student's architecture, and its weights are set.
        sets: as of `Pretraining`.

    Raises:
        ValueError: as of `Pretraining`, or a teacher of another width than `model.target_width`.
    """

    def __init__(
        self, config: Config, device: torch.device, teacher: Teacher, *, sets: Sequence[tuple[int, float]] = ()
    ) -> None:
        super().__init__(config, device, sets=sets)
        width = config.model.target_width
        require(width == teacher.width, "model.target_width", width, f"{teacher.width}, the width of the teacher")
        self.teacher = teacher
        self.begin()

    def begin(self) -> None:
        """An averaged teacher begins as the student: to be called again when that got other weights to begin with."""
        if self.config.teacher.averaged:
            self.teacher.learn_from(self.model)

    @property
    def frozen(self) -> tuple[nn.Module, ...]:
        return (self.teacher,)

    @property
    def state(self) -> dict[str, Tensor]:
        """An averaged teacher; a frozen one stays where it came from."""
        own = super().state
        if not self.config.teacher.averaged:
            return own
        return own | {f"teacher/{name}": value for name, value in self.teacher.state_dict().items()}

    def after_step(self, done: int) -> None:
        super().after_step(done)
        if self.config.teacher.averaged:
            self.teacher.follow(self.model, decay_at(self.config.teacher, plan(self.config, done - 1).progress))

    def draw(self, inputs: tuple[Tensor, ...], arguments: Mapping[str, Any]) -> Draws:
        video, spec, *_ = inputs
        return self.teacher.targets(super().draw(inputs, arguments), video, spec)

    def step_flops(self, now: Plan) -> float:
        return super().step_flops(now) + teacher_flops(self.teacher)


def decay_at(config: TeacherConfig, progress: float) -> float:
    """What an averaged teacher keeps of itself at `progress` in [0, 1]."""
    first, last = config.decay
    return first + (last - first) * (min(1.0, progress / config.decay_ramp) if config.decay_ramp else 1.0)


def taught(config: Config, teacher: ModelConfig | None) -> Config:
    """The student's config with what it takes over from its teacher: the width, and the statistics of the sound.

    Args:
        teacher: of a frozen teacher; None: an averaged one, which is as the student is.

    Raises:
        ValueError: a teacher that sees or hears other inputs than the student, or cuts them otherwise.
    """
    model, of = config.model, config.teacher.source
    width = (teacher or model).encoder.width
    require(model.target_width in (None, width), "model.target_width", model.target_width, _as(of, width))
    model = replace(model, target_width=width)
    if teacher is not None:
        both, theirs = teacher.modalities, teacher.audio
        require(model.modalities == both, "model.modalities", model.modalities, _as(of, both))
        if model.sees:
            _agree("video", model.video, teacher.video, of)
        if model.hears and theirs.mean is not None:
            audio = replace(model.audio, mean=theirs.mean, std=theirs.std) if model.audio.mean is None else model.audio
            _agree("audio", audio, theirs, of)
            model = replace(model, audio=audio)
        elif model.hears:
            known = f"given, with std, as the teacher was trained: --teacher {of} does not tell"
            require(model.audio.mean is not None, "model.audio.mean", None, known)
            _agree("audio", replace(model.audio, mean=None, std=None), theirs, of)
    return replace(config, model=model)


def _agree(name: str, own: VideoConfig | AudioConfig, theirs: VideoConfig | AudioConfig, of: str | None) -> None:
    """Student and teacher see the same tensor, cut into the same patches."""
    for setting, value in vars(theirs).items():
        given = getattr(own, setting)
        require(given == value, f"model.{name}.{setting}", given, _as(of, value))


def _as(of: str | None, value: object) -> str:
    return f"{value!r}, as --teacher {of} was trained"
