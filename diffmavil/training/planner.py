"""Adaptive batches: how many clips each step takes, as a pure function of (config, step).

Fewer visible tokens make a clip cheaper, so a step can take more clips for the same work. The samples of a run,
`train.steps * train.batch_size`, are cut into the stretches of the curriculum; within each, the counts of visible
tokens and the batch stay the same. The basis of a plan (cost, memory, measured times) is computed once, before training
(`diffmavil.training.budget`), and written into the config as `batch.sizes` and `batch.at_once`; from then on positions,
ratios, batches and learning rates follow from the config and the step number alone.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple, TypeVar

from diffmavil.config import Config, MaskConfig, require
from diffmavil.model.draws import MIX_RUN, turns
from diffmavil.training.curriculum import keep_count, mixed_counts, raised_counts
from diffmavil.training.optim import learning_rate

C = TypeVar("C", bound=Config)
Counts = int | tuple[int, ...]


class Plan(NamedTuple):
    """The values of the schedules at one step."""

    progress: float
    """Fraction of the run's samples seen before this step."""
    position: int
    """Position of its first sample."""
    keep_video: Counts
    keep_audio: Counts
    lr: float
    batch_size: int
    """Over all processes."""
    at_once: int
    """Most clips that a process computes in one pass; 0: all of its batch."""


class Stretch(NamedTuple):
    """Steps that take the same number of clips."""

    first_step: int
    first_position: int
    batch_size: int
    at_once: int


class Timetable(NamedTuple):
    stretches: tuple[Stretch, ...]
    steps: int
    samples: int
    """`train.steps * train.batch_size`; the last step may end past it."""


def stretch_count(mask: MaskConfig) -> int:
    """Number of equal parts of the samples within which neither modality's ratio changes."""
    return math.lcm(mask.video.levels, mask.audio.levels)


def counts_at(config: Config, progress: float) -> tuple[Counts, Counts]:
    """Visible tokens (video, audio) at `progress`."""
    mask, video, audio = config.mask, config.model.video.tokens, config.model.audio.tokens
    if not mask.mix:
        return keep_count(mask.video, progress, video), keep_count(mask.audio, progress, audio)
    return mixed_counts(mask, mask.video, progress, video), mixed_counts(mask, mask.audio, progress, audio)


def mix_notes(config: Config) -> list[str]:
    """The effect of `mask.least_visible`, a line for each modality on which it has any."""
    mask, model = config.mask, config.model
    said = {
        "video": raised_counts(mask, mask.video, model.video.tokens),
        "audio": raised_counts(mask, mask.audio, model.audio.tokens),
    }
    return [f"{name}: {what}" for name, what in said.items() if what]


def stretch_counts(config: Config) -> list[tuple[Counts, Counts]]:
    """Visible tokens (video, audio) of each stretch."""
    parts = stretch_count(config.mask)
    return [counts_at(config, (i + 0.5) / parts) for i in range(parts)]


@lru_cache(maxsize=8)
def timetable(config: Config) -> Timetable:
    """The start of each stretch, from `batch.begin` on.

    Raises:
        ValueError: a plan whose number of stretches is not the masking schedule's.
    """
    nominal = config.train.batch_size
    samples, parts = config.train.steps * nominal, stretch_count(config.mask)
    sizes = config.batch.sizes or (nominal,) * parts
    at_once = config.batch.at_once or (0,) * parts
    for name, plan in (("batch.sizes", sizes), ("batch.at_once", at_once)):
        require(len(plan) == parts, name, plan, f"{parts} numbers, one for each stretch of the masking schedule")
    stretches, (step, position) = [], config.batch.begin
    for i, (size, most) in enumerate(zip(sizes, at_once, strict=True)):
        steps = max(0, -(-(-(-samples * (i + 1) // parts) - position) // size))
        if steps:
            stretches.append(Stretch(step, position, size, most))
        step, position = step + steps, position + steps * size
    return Timetable(tuple(_joined(stretches)), step, samples)


def _joined(stretches: list[Stretch]) -> Iterator[Stretch]:
    """Merge equal neighbours."""
    last = None
    for stretch in stretches:
        if last is None or last[2:] != stretch[2:]:
            yield stretch
            last = stretch


def plan(config: Config, step: int) -> Plan:
    """The schedules at `step`, which may be the number of steps: those that would follow the last step.

    Raises:
        ValueError: a step before `batch.begin`, which the config does not describe.
    """
    table = timetable(config)
    require(step >= config.batch.begin[0], "step", step, f">= {config.batch.begin[0]}, where batch.begin lies")
    if not table.stretches:
        table = table._replace(stretches=(Stretch(*config.batch.begin, config.train.batch_size, 0),))
    index = bisect.bisect_right([s.first_step for s in table.stretches], step) - 1
    stretch = table.stretches[index]
    position = stretch.first_position + (step - stretch.first_step) * stretch.batch_size
    nominal = config.train.batch_size
    progress = min(position / table.samples, 1.0)
    video, audio = counts_at(config, progress)
    # Half a step further than progress, so that the first learning rate of a warm-up is not 0.
    seen = min((position + stretch.batch_size) / (table.samples + nominal), 1.0)
    return Plan(
        progress=progress,
        position=position,
        keep_video=video,
        keep_audio=audio,
        lr=learning_rate(config.optim, seen) * lr_scale(config, stretch.batch_size),
        batch_size=stretch.batch_size,
        at_once=stretch.at_once,
    )


def lr_scale(config: Config, batch_size: int) -> float:
    """Learning rate of a step of this size, relative to one of `train.batch_size`."""
    power = {"none": 0.0, "linear": 1.0, "sqrt": 0.5}[config.batch.lr_rule]
    return (batch_size / config.train.batch_size) ** power


def passes(clips: int, at_once: int) -> list[slice]:
    """A process's clips of one step, cut into as few passes as `at_once` (0: no limit) allows, nearly equal."""
    count = -(-clips // at_once) if at_once else 1
    ends = [clips * i // count for i in range(count + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(ends)]


def check_processes(config: Config, processes: int) -> None:
    """Check that every step divides over the processes, and that they support the settings. Raises `ValueError`."""
    graphed = config.train.cuda_graph and processes > 1
    require(not graphed, "train.cuda_graph", True, f"False with {processes} processes")
    for stretch in timetable(config).stretches:
        size = stretch.batch_size
        name = "batch.sizes" if config.batch.sizes else "train.batch_size"
        require(size % processes == 0, name, size, f"a multiple of the {processes} processes it is divided over")


_PLANNED_FROM = ("rule", "gflop", "memory_gib", "multiple", "largest")
"""Settings of `batch` that a plan of sizes depends on."""


def continued(old: Config, new: C, step: int, position: int) -> C:
    """`new`, changed so that a run of `old` that has done `step` steps resumes at its place in the stream of samples.

    Another batch size keeps the samples of the run, unless the number of steps was changed too. A plan that was made
    for other settings is made again.

    position: of the next sample.
    """
    resized = new.train.batch_size != old.train.batch_size
    if resized and new.train.steps == old.train.steps:
        steps = -(-old.train.steps * old.train.batch_size // new.train.batch_size)
        new = replace(new, train=replace(new.train, steps=steps))
    if resized or new.mask != old.mask or any(getattr(new.batch, x) != getattr(old.batch, x) for x in _PLANNED_FROM):
        kept = {name: () for name in ("sizes", "at_once") if getattr(new.batch, name) == getattr(old.batch, name)}
        new = replace(new, batch=replace(new.batch, **kept))
    to_be_planned = new.batch.rule != "fixed" and not new.batch.sizes
    if not to_be_planned and new.batch.begin[0] <= step and plan(new, step).position == position:
        return new
    return replace(new, batch=replace(new.batch, begin=(step, position)))


@dataclass(frozen=True)
class Orders:
    """Positions of one rank's clips for the steps from `first_step` to the last; each iteration starts again."""

    config: Config
    first_step: int
    rank: int
    processes: int

    def __iter__(self) -> Iterator[range]:
        for step in range(self.first_step, timetable(self.config).steps):
            now = plan(self.config, step)
            local = now.batch_size // self.processes
            first = now.position + self.rank * local
            yield range(first, first + local)

    @property
    def largest(self) -> int:
        """Most clips of one step on this rank."""
        sizes = [stretch.batch_size for stretch in timetable(self.config).stretches]
        return max(sizes, default=self.config.train.batch_size) // self.processes


def changes(config: Config) -> list[tuple[int, Plan]]:
    """The first step, and its plan, of each run of steps that differ only in position and learning rate."""
    table = timetable(config)
    found: list[tuple[int, Plan]] = []
    step, parts = 0, stretch_count(config.mask) if table.stretches else 0
    for i in range(parts):
        # The first step that begins inside part i: no earlier than where part i begins.
        begin = max(-(-table.samples * i // parts), config.batch.begin[1])
        index = max(0, bisect.bisect_right([s.first_position for s in table.stretches], begin) - 1)
        stretch = table.stretches[index]
        step = stretch.first_step + -(-(begin - stretch.first_position) // stretch.batch_size)
        if step < table.steps:
            now = plan(config, step)
            if not found or _shape(found[-1][1]) != _shape(now):
                found.append((step, now))
    return found


def shapes(config: Config) -> list[Plan]:
    """One plan for each shape of the run's steps; with mixed masking, also for each place in the turns at which a step
    begins."""
    found: dict[object, Plan] = {}
    for _, now in changes(config):
        keeps = now.keep_audio, now.keep_video
        cycle = MIX_RUN * len(turns(*keeps)) if any(isinstance(keep, tuple) for keep in keeps) else 1
        for step in range(cycle // math.gcd(cycle, now.batch_size)):
            position = now.position + step * now.batch_size
            found.setdefault((*_shape(now), position % cycle), now._replace(position=position))
    return list(found.values())


def _shape(now: Plan) -> tuple[Counts, Counts, int, int]:
    return now.keep_video, now.keep_audio, now.batch_size, now.at_once
