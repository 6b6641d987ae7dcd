"""How fast training steps are, and whether they or the loader limit."""

from __future__ import annotations

from dataclasses import replace

import torch

from diffmavil.config import Config
from diffmavil.config.errors import RunError
from diffmavil.data.bottleneck import BATCH, Diagnosis, seconds_each, waited, with_statistics
from diffmavil.data.dataset import Batch
from diffmavil.model.teacher import Teacher
from diffmavil.training.distributed import World
from diffmavil.training.planner import plan, timetable
from diffmavil.training.pretraining import Pretraining, random_clips
from diffmavil.training.second_stage import SecondStage
from diffmavil.training.step import TrainStep

_CPU_BATCH = 1  # a step of a large model takes seconds for each clip


def step_speed(config: Config, seconds: float) -> float:
    """Clips per second of training steps on one device, half way through the run, measured for `seconds` at least.

    Batches are small, on a GPU as many clips as fit of 16: a larger batch is faster there, if anything.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clips = BATCH if device.type == "cuda" else _CPU_BATCH
    while True:
        try:
            return _step_speed(config, clips, device, seconds)
        except torch.OutOfMemoryError:
            if clips == 1:
                raise RunError(
                    f"a training step of one clip does not fit on {device}: --no-step leaves it out"
                ) from None
        clips //= 2


def _step_speed(config: Config, clips: int, device: torch.device, seconds: float) -> float:
    config = with_statistics(config)
    config = replace(config, train=replace(config.train, batch_size=clips))
    step = TrainStep(_task(config, device), config, World(rank=0, size=1, device=device))
    now = plan(config, timetable(config).steps // 2)
    samples = config.model.audio.samples if config.model.hears else 0
    video = random_clips(config, clips, device)[0] if config.model.sees else torch.empty((clips, 0, 0, 0, 3))
    batch = Batch(
        video=video.to(device, torch.uint8),
        wave=torch.randn(clips, samples).to(device),
        wave_valid=torch.full((clips,), samples, device=device),
        labels=[()] * clips,
        position=torch.arange(clips, device=device),
        paths=[""] * clips,
    )
    return clips / seconds_each(lambda: waited(step(batch, now, offset=now.position)), seconds)


def _task(config: Config, device: torch.device) -> Pretraining:
    """The task of the run; the teacher of a second stage is one as large as its student, with random weights."""
    if config.teacher.stage == 1:
        return Pretraining(config, device)
    model = replace(config.model, target_width=config.model.target_width or config.model.encoder.width)
    return SecondStage(replace(config, model=model), device, Teacher(config.model).to(device))


def slower(found: Diagnosis, step: float | None) -> str | None:
    """Which of "loading" and "step"; None when the step was not measured."""
    if step is None:
        return None
    return "loading" if found.together < step else "step"


def judgement(found: Diagnosis, step: float | None) -> list[str]:
    """What limits, and what to change, in sentences."""
    sentences = []
    if step is not None:
        speeds = f"loading gives {found.together:.1f} clips/s, training steps on one device take {step:.1f}"
        if slower(found, step) == "loading":
            sentences.append(f"loading limits training: {speeds}")
        else:
            sentences.append(f"the training step limits: {speeds}, so faster loading would change little")
        if not torch.cuda.is_available():
            sentences.append("without a GPU both share the cores: together each is slower than measured here")
    return [*sentences, f"{'of loading, ' if sentences else ''}{found.limit} limits: {found.advice}"]
