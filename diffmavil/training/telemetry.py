"""Turns what happens in the loop into metrics, waiting for the device only once every `train.log_every` steps."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol

import torch

from diffmavil.config import Config
from diffmavil.config.errors import RunError, usage_errors
from diffmavil.data.loader import Loader
from diffmavil.training.boards import open_boards
from diffmavil.training.distributed import World
from diffmavil.training.metrics import Metrics, RunLog
from diffmavil.training.planner import Plan, timetable
from diffmavil.training.run import Run
from diffmavil.training.step import StepResult, TrainStep


class Observation(NamedTuple):
    """What a monitor saw: numbers for the record of its step, and lines for whoever watches."""

    metrics: Metrics
    lines: list[str]


class Monitor(Protocol):
    """Looks at the model between two steps, every `train.probe_every` of them and after the last, on rank 0 while
    the others wait.

    It must leave the model, and every random number that training draws, as they are.
    """

    def __call__(self, done: int) -> Observation: ...


class Telemetry:
    """Sums losses on the device, reads them at each logging interval, and stops a run that has diverged."""

    def __init__(
        self,
        run: Run,
        config: Config,
        world: World,
        step: TrainStep,
        loader: Loader,
        done: int,
        monitor: Monitor | None = None,
    ) -> None:
        self.config, self.world, self.step, self.loader = config, world, step, loader
        self._log: RunLog | None = None
        with usage_errors():
            world.main_only(lambda: self._open_log(run.folder, done))
        self._notes = run.notes
        self._monitor = monitor if config.train.probe_every else None
        self._sums = torch.zeros(len(step.task.names) + 2, device=world.device)
        self._named_bad: set[str] = set()
        self._reset(done)

    def _open_log(self, folder: Path, done: int) -> None:
        if not self.world.main:
            return
        boards = open_boards(self.config.train.log, folder, self.config, done)
        self._log = RunLog(folder, boards, resumed_step=done, total_steps=timetable(self.config).steps)

    def _reset(self, done: int) -> None:
        self._sums.zero_()
        self._first, self._clips, self._gflop, self._wait = done, 0, 0.0, self.loader.data_wait
        self._start = time.perf_counter()

    def __enter__(self) -> Telemetry:
        if self._log:
            self._log.__enter__()
        for note in self._notes:
            self.say(note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._log:
            self._log.__exit__(kind, error, trace)

    def say(self, message: str) -> None:
        if self._log:
            self._log.say(message)

    def after_step(self, done: int, now: Plan, result: StepResult, *, flush: bool) -> None:
        """Count one step; on the logging interval, or when `flush` or the monitor's turn, read and record.

        Raises:
            RunError: too many non-finite steps in a row.
        """
        values = torch.cat([result.scalars, result.grad_norm.reshape(1), torch.ones_like(result.grad_norm).reshape(1)])
        self._sums += torch.where(torch.isfinite(result.grad_norm), values, 0)  # a skipped step has no loss
        self._gflop += self.step.task.step_flops(now) * now.batch_size / 1e9
        self._clips += now.batch_size
        last = done == timetable(self.config).steps
        monitored = self._monitor is not None and (last or done % self.config.train.probe_every == 0)
        if not (flush or monitored) and done % self.config.train.log_every:
            return
        *scalars, grad_norm, skipped, in_a_row = self._read()
        self._name_bad_clips()
        metrics = self._metrics(done, now, scalars)
        metrics |= {"grad_norm": grad_norm, "nonfinite_steps": skipped, "bad_clips": len(self._named_bad)}
        if monitored:  # after the clock is read: its seconds are not training's
            metrics |= self._observe(done)
        if self._log:
            remaining = timetable(self.config).steps - done
            self._log.record(metrics, eta_seconds=remaining * metrics["seconds_per_step"])
        if in_a_row >= self.config.train.max_nonfinite:
            raise RunError(
                f"step {done}: the gradient was not finite in {in_a_row:.0f} steps in a row, which were skipped; "
                "lower optim.lr, set optim.clip_grad, or use --train.precision fp32"
            )
        self._reset(done)

    def _observe(self, done: int) -> Metrics:
        monitor = self._monitor
        assert monitor is not None  # who calls this has looked
        seen = self.world.main_only(lambda: monitor(done))
        for line in seen.lines:
            self.say(line)
        return seen.metrics

    def _read(self) -> list[float]:
        """Means over the interval's good steps and the ranks, and the counters: the one wait for the device.

        Without a good step the means are NaN, which is recorded as nothing: 0 would be a splendid loss.
        """
        means = self.world.mean(self._sums[:-1] / self._sums[-1])
        return torch.cat([means, torch.stack([self.step.nonfinite, self.step.nonfinite_run])]).tolist()

    def _metrics(self, done: int, now: Plan, scalars: list[float]) -> Metrics:
        seconds, steps = time.perf_counter() - self._start, done - self._first
        return {
            "step": done,
            "samples": now.position + now.batch_size,
            **{name: value for name, value in zip(self.step.task.names, scalars, strict=True) if name is not None},
            "lr": now.lr,
            **self.step.task.metrics(now),
            "batch_size": now.batch_size,
            "seconds_per_step": seconds / steps,
            "clips_per_second": self._clips / seconds,
            "gflop_per_second": self._gflop / seconds,
            "data_wait": min((self.loader.data_wait - self._wait) / seconds, 1.0),
        }

    def _name_bad_clips(self) -> None:
        for bad in self.world.gather(dict(self.loader.bad)):
            for path, reason in bad.items():
                if path not in self._named_bad:
                    self._named_bad.add(path)
                    self.say(f"skipped {path}: {reason}")
