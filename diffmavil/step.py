"""One optimisation step: forward, backward, clip, update. No I/O and no wait for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from diffmavil.checkpoint import TrainState
from diffmavil.config import Config
from diffmavil.curriculum import keep_count
from diffmavil.data.audio import LogMel
from diffmavil.data.augment import Augment
from diffmavil.data.loader import Batch
from diffmavil.distributed import World
from diffmavil.model import DiffMAViL
from diffmavil.optim import learning_rate, make_optimizer
from maekernels.philox import fold_in


class Plan(NamedTuple):
    """What the schedules say at one step: a pure function of (config, step)."""

    progress: float
    position: int
    keep_video: int
    keep_audio: int
    lr: float


def plan(config: Config, step: int) -> Plan:
    progress = step / config.train.steps
    return Plan(
        progress=progress,
        position=step * config.train.batch_size,
        keep_video=keep_count(config.mask.video, progress, config.model.video.tokens),
        keep_audio=keep_count(config.mask.audio, progress, config.model.audio.tokens),
        lr=learning_rate(config.optim, (step + 1) / (config.train.steps + 1)),
    )


class StepResult(NamedTuple):
    """Scalars on the device; reading one waits for it."""

    losses: torch.Tensor
    """[5]: total, video, audio, inter, intra."""
    grad_norm: torch.Tensor


class TrainStep:
    """Model, optimiser and the arithmetic of one step.

    A step whose gradient is not finite leaves parameters and optimiser state untouched: the fused optimiser reads the
    flag on the device. `nonfinite` counts all such steps, `nonfinite_run` those in a row.
    """

    def __init__(self, config: Config, world: World) -> None:
        self.config = config
        self.device = world.device
        torch.manual_seed(fold_in(config.train.seed, _INIT) % 2**63)
        self.model = DiffMAViL(config.model).to(world.device)
        self.optimizer = make_optimizer(self.model, config.optim)
        self.log_mel = LogMel(config.model.audio).to(world.device)
        self.augment = Augment(config.data.augment, config.train.seed)
        self.seed = fold_in(config.train.seed, _MASKS)
        self.autocast = use_bf16(config, world.device)
        self.nonfinite = torch.zeros((), device=world.device)
        self.nonfinite_run = torch.zeros((), device=world.device)
        counters = {"nonfinite": self.nonfinite, "nonfinite_run": self.nonfinite_run}
        self.state = TrainState(self.model, self.optimizer, counters)
        if config.train.compile:
            self.model.compile()
        self._forward: Callable[..., tuple[torch.Tensor, ...]] = self.model
        if world.size > 1:
            self._forward = DistributedDataParallel(
                self.model,
                device_ids=[world.device.index] if world.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                broadcast_buffers=False,  # positions and schedules are the same everywhere from the start
            )

    def __call__(self, batch: Batch, now: Plan, offset: int) -> StepResult:
        """Train on this rank's `batch`, whose first clip is sample `offset` of the run."""
        for group in self.optimizer.param_groups:
            group["lr"] = now.lr
        video = self.augment.video(batch.video, batch.position)
        spec = self.augment.spec(self.log_mel(batch.wave, batch.wave_valid), batch.position)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            losses = self._forward(
                video,
                spec,
                seed=self.seed,
                offset=offset,
                keep_video=now.keep_video,
                keep_audio=now.keep_audio,
            )
        losses[0].backward()
        grad_norm = self._clip()
        self._update(grad_norm)
        return StepResult(torch.stack([loss.detach() for loss in losses]), grad_norm)

    def _clip(self) -> torch.Tensor:
        parameters = list(self.model.parameters())
        limit = self.config.optim.clip_grad
        if limit > 0:
            return nn.utils.clip_grad_norm_(parameters, limit)
        return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])

    def _update(self, grad_norm: torch.Tensor) -> None:
        # The norm is that of the all-reduced gradient, so every rank decides alike.
        bad = (~torch.isfinite(grad_norm)).float()
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]  # read by fused AdamW, as GradScaler sets it
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.nonfinite.add_(bad)
        self.nonfinite_run.add_(bad).mul_(bad)


_INIT, _MASKS = 1, 2  # streams folded out of the run's seed


def use_bf16(config: Config, device: torch.device) -> bool:
    """bf16 autocast: on request, or by default on a GPU or CPU whose matmul units compute in it."""
    if config.train.precision != "auto":
        return config.train.precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
