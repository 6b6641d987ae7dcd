"""One optimisation step: forward, backward, clip, update. No I/O and no wait for the device."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from diffmavil.config import Config, FinetuneConfig
from diffmavil.data.dataset import Batch
from diffmavil.model.blocks import Blocks
from diffmavil.training.checkpoint import TrainState
from diffmavil.training.compiling import compile_blocks, graphs_compiled
from diffmavil.training.distributed import World
from diffmavil.training.graphs import GraphedPasses
from diffmavil.training.optim import LR_SCALE, make_optimizers, skips_on_device
from diffmavil.training.planner import Plan, passes, shapes
from diffmavil.training.precision import use_bf16
from diffmavil.training.task import Task


class StepResult(NamedTuple):
    """Scalars on the device; reading one waits for it."""

    scalars: torch.Tensor
    """Named by `Task.names`."""
    grad_norm: torch.Tensor


class TrainStep:
    """A task's model, its optimiser and the arithmetic of one step.

    A step whose gradient is not finite leaves parameters and optimiser state untouched: a fused optimiser reads the
    flag on the device, for others the host waits for it. `nonfinite` counts all such steps, `nonfinite_run` those in a
    row.

    Raises:
        ValueError: an optimiser or a CUDA graph that is not available here.
    """

    def __init__(self, task: Task, config: Config, world: World) -> None:
        self.task, self.config = task, config
        self.device, self.world = world.device, world
        self.model = task.model
        # Relative to the audio encoder's learning rate, so it does not apply where there is no such encoder.
        head = config.head if isinstance(config, FinetuneConfig) and config.model.modalities == "av" else None
        lr_video = head.lr_video if head else 1.0
        self.optimizers = make_optimizers(self.model, config.optim, lr_video)
        self.autocast = use_bf16(config, world.device)
        self.nonfinite = torch.zeros((), device=world.device)
        self.nonfinite_run = torch.zeros((), device=world.device)
        counters = {"nonfinite": self.nonfinite, "nonfinite_run": self.nonfinite_run, **task.state}
        self.state = TrainState(self.model, self.optimizers, counters)
        for module in self.model.modules():
            if isinstance(module, Blocks):
                module.recompute = config.train.recompute
        if config.train.compile:
            for module in (self.model, *task.frozen):
                compile_blocks(module, config)
        self._forward: Callable[..., tuple[Tensor, ...]] = self.model
        self._graphs = GraphedPasses(task, world) if config.train.cuda_graph else None
        if world.size > 1:
            self._forward = DistributedDataParallel(
                self.model,
                device_ids=[world.device.index] if world.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                broadcast_buffers=False,  # positions and schedules are the same everywhere from the start
            )

    def __call__(self, batch: Batch, now: Plan, offset: int) -> StepResult:
        """Train on this rank's `batch`, whose first clip is sample `offset` of the run."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = now.lr * group[LR_SCALE]
        scalars = self.gradients(batch, now, offset)
        grad_norm = self._clip()
        self._update(grad_norm)
        return StepResult(scalars, grad_norm)

    def gradients(self, batch: Batch, now: Plan, offset: int) -> Tensor:
        """Forward and backward of this rank's clips, in several passes if they do not fit in one: the task's scalars.

        Terms between clips of several passes, such as the contrast, are computed first: cutting a step into passes
        changes nothing but its memory, and costs one more forward of the encoders.
        """
        return self._in_passes(self.task.inputs(batch), now, offset)

    def _in_passes(self, inputs: tuple[Tensor, ...], now: Plan, offset: int) -> Tensor:
        clips = len(inputs[0])
        parts = passes(clips, now.at_once)
        if len(parts) == 1:
            return self.one_pass(inputs, now, offset, 1.0)
        cut = [(tuple(x[rows] for x in inputs), offset + rows.start) for rows in parts]
        with torch.no_grad(), self._autocast():
            coupled = self.task.couple([(part, self.task.arguments(now, first)) for part, first in cut])
        total = torch.zeros((), device=self.device)
        for i, ((part, first), own) in enumerate(zip(cut, coupled, strict=True)):
            share = len(part[0]) / clips
            with self._syncs(i + 1 == len(parts)):
                total = total + share * self.one_pass(part, now, first, share, own)
        return total

    def _syncs(self, last: bool) -> AbstractContextManager[None]:
        """Let ranks exchange gradients after the last pass only."""
        if last or not isinstance(self._forward, DistributedDataParallel):
            return nullcontext()
        return self._forward.no_sync()

    def one_pass(self, inputs: tuple[Tensor, ...], now: Plan, offset: int, share: float, coupled: Any = None) -> Tensor:
        """Add `share` times the gradient of the loss to that of the parameters; return the task's scalars.

        coupled: the output of `Task.couple` for this pass; None: it is the only one.
        """
        arguments = self.task.arguments(now, offset)
        with self._autocast():
            if self._graphs is not None:
                return self._graphs(inputs, arguments, share, coupled)
            draws = self.task.draw(inputs, arguments)
            scalars = self._forward(*inputs, **arguments, draws=draws, coupled=coupled)
        (scalars[0] if share == 1 else scalars[0] * share).backward()
        return torch.stack([scalar.detach() for scalar in scalars])

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast)

    def drop_gradients(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None

    def warm_up(self) -> str:
        """Run forward and backward of every shape of the run, without an update, so that everything to be compiled or
        recorded is. Returns what it did, in words.
        """
        begin, found = time.perf_counter(), shapes(self.config)
        for now in found:
            local = now.batch_size // self.world.size
            self._in_passes(self.task.random_inputs(local), now, now.position + self.world.rank * local)
            self.drop_gradients()
        seconds = time.perf_counter() - begin
        what = f"{graphs_compiled()} graphs compiled, " if self.config.train.compile else ""
        return f"{what}every shape of the curriculum ({len(found)}) run once: {seconds:.0f} s before the first step"

    def _clip(self) -> torch.Tensor:
        parameters = list(self.model.parameters())
        limit = self.config.optim.clip_grad
        if limit > 0:
            return nn.utils.clip_grad_norm_(parameters, limit)
        return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])

    def _update(self, grad_norm: torch.Tensor) -> None:
        # The norm is that of the all-reduced gradient, so every rank decides the same.
        bad = (~torch.isfinite(grad_norm)).float()
        for optimizer in self.optimizers:
            if skips_on_device(optimizer):
                optimizer.found_inf = bad  # type: ignore[attr-defined]  # read by fused AdamW, as GradScaler sets it
                optimizer.grad_scale = None  # type: ignore[attr-defined]
                optimizer.step()
            elif not bad:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.nonfinite.add_(bad)
        self.nonfinite_run.add_(bad).mul_(bad)
