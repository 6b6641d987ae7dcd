"""The run folder: created once, refused if it already holds a run, found again on resume."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field, replace
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from types import FrameType, TracebackType
from typing import TypeVar

from diffmavil.config import Config, require
from diffmavil.config.cli import RunOptions
from diffmavil.config.errors import UsageError, usage_errors
from diffmavil.config.files import CONFIG_FILE, config_to_yaml, differences, load_config
from diffmavil.config.folders import check_writable
from diffmavil.data.durable import write_whole
from diffmavil.model.weights import EMA_FILE, WEIGHTS_FILE, config_of
from diffmavil.training.boards import check_boards
from diffmavil.training.checkpoint import Progress, checkpoints, newest_whole, read_progress
from diffmavil.training.distributed import World
from diffmavil.training.metrics import read_metrics
from diffmavil.training.planner import check_processes, continued, plan, timetable

C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Run:
    folder: Path
    checkpoint: Path | None
    """The checkpoint to resume from; None: start from scratch."""
    progress: Progress = field(default_factory=Progress)
    """Where it resumes."""
    notes: tuple[str, ...] = ()
    """Notes for the user, printed once."""
    begun_at: int = 0
    """Position in the stream of samples at which the last finished step began."""

    def noting(self, note: str) -> Run:
        return replace(self, notes=(*self.notes, note))


def open_run(preset: str, config: C, options: RunOptions, world: World) -> tuple[Run, C]:
    """The folder of this run, the same on every rank, and its config, which on resume includes where the run was.

    Raises:
        UsageError: the folder cannot be written, or already holds a run and `--resume` was not given; or the run began
            with another `train.init`, kind of teacher, sharing of encoders or use of `train.ema` than given
            to resume with; or the batch does not divide.
        RunError: all of its checkpoints are damaged.
    """
    default = Path("runs") / f"{preset}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = world.from_main(options.run_dir or default)
    with usage_errors():
        world.main_only(lambda: check_boards(config.train.log))
        world.main_only(lambda: check_writable("--run-dir", folder))
    run = _resumed(folder, world) if options.resume else _new(folder, world)
    if run.checkpoint is not None:
        old = load_config(run.checkpoint / CONFIG_FILE)
        with usage_errors():
            _check_settled(old, config)
            config = continued(old, config, run.progress.step, run.progress.position)
        run = replace(run, begun_at=plan(old, run.progress.step - 1).position)
        for line in differences(old, config):
            run = run.noting(f"changed on resume: {line}")
    with usage_errors():
        check_processes(config, world.size)
    return run, config


def _check_settled(old: Config, new: Config) -> None:
    """Raises `ValueError` for what a run that has begun can no longer change."""
    settled = (
        ("train.init", lambda config: config.train.init, None),
        ("teacher.stage", lambda config: config.teacher.stage, None),
        ("teacher.source", lambda config: config.teacher.averaged, repr(old.teacher.source)),
        ("model.shared_encoder", lambda config: config.model.shared_encoder, None),
        ("train.ema", lambda config: config.train.ema > 0, "above 0" if old.train.ema else "0"),
    )
    for name, decides, allowed in settled:
        value = attrgetter(name)(new)
        begun = f"{allowed or repr(decides(old))}, or left out, with --resume: the run has begun with it"
        require(decides(new) == decides(old), name, value, begun)


def _new(folder: Path, world: World) -> Run:
    if checkpoints(folder) or read_metrics(folder):  # leftovers of a start that failed before the first step are fine
        raise UsageError(f"--run-dir {folder}: already holds a run; add --resume to continue it, or choose another")
    world.barrier()  # every rank has checked before one of them writes
    return Run(folder, None)


def _resumed(folder: Path, world: World) -> Run:
    checkpoint, damaged = world.main_only(lambda: newest_whole(folder))
    if checkpoint is None:
        return Run(folder, None, notes=(f"{folder} holds no checkpoint yet: starting from step 0",))
    return Run(folder, checkpoint, read_progress(checkpoint), tuple(damaged))


def with_sound_of_main(config: C, world: World) -> C:
    """Take mean and deviation of the audio from rank 0: another kind of machine may differ in the last bits."""
    return replace(config, model=replace(config.model, audio=world.from_main(config.model.audio)))


def write_run(run: Run, config: Config, world: World) -> Run:
    """Create the folder with the resolved config; rename weights of an earlier end, beyond which it resumes, by step.

    Raises:
        UsageError: the run would end before the steps it has done.
    """
    with usage_errors():
        batch = config.train.batch_size
        enough = f"more than {run.begun_at // batch:,} with batches of {batch}: so much is done"
        if run.checkpoint is not None:
            require(
                config.train.steps * batch > run.begun_at, "train.steps (or head.epochs)", config.train.steps, enough
            )
    if world.main:
        run.folder.mkdir(parents=True, exist_ok=True)
        write_whole(run.folder / CONFIG_FILE, config_to_yaml(config).encode())
    kept = world.main_only(lambda: _set_aside(run, config))
    return run.noting(f"the weights of its earlier end are {kept} now") if kept else run


def _set_aside(run: Run, config: Config) -> str | None:
    """Rename the weights of an earlier end, if the run resumes beyond it; the new name.

    From then on, loading the run's weights gives those of its newest checkpoint, and finally those of its end.
    """
    ended = run.folder / WEIGHTS_FILE
    if run.checkpoint is None or not ended.exists() or run.progress.step >= timetable(config).steps:
        return None
    step = timetable(config_of(ended)).steps
    averaged = run.folder / EMA_FILE
    for file in [ended, *([averaged] if config.train.ema and averaged.exists() else [])]:
        file.rename(file.with_name(f"{file.stem}-step-{step}{file.suffix}"))
    return f"{ended.stem}-step-{step}{ended.suffix}"


class StopSignals:
    """SIGTERM (a scheduler's) and the first Ctrl-C ask for a checkpoint and a clean end; a second exits immediately."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> StopSignals:
        self._old = {s: signal.signal(s, self._request) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
