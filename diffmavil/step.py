"""One optimisation step: forward, backward, clip, update. No I/O and no wait for the device."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from diffmavil.checkpoint import TrainState
from diffmavil.compiling import compile_blocks, graphs_compiled
from diffmavil.config import Config
from diffmavil.data.audio import LogMel
from diffmavil.data.augment import Augment
from diffmavil.data.loader import Batch
from diffmavil.distributed import World
from diffmavil.graphs import GraphedPasses
from diffmavil.model import DiffMAViL
from diffmavil.model.blocks import Blocks
from diffmavil.optim import LR_SCALE, make_optimizers, skips_on_device
from diffmavil.planner import Plan, passes, shapes
from maekernels.philox import fold_in


class StepResult(NamedTuple):
    """Scalars on the device; reading one waits for it."""

    losses: torch.Tensor
    """[5]: total, video, audio, inter, intra."""
    grad_norm: torch.Tensor


class TrainStep:
    """Model, optimiser and the arithmetic of one step.

    A step whose gradient is not finite leaves parameters and optimiser state untouched: the fused optimiser reads the
    flag on the device, for another the host waits for it. `nonfinite` counts all such steps, `nonfinite_run` those in a
    row.

    Raises:
        ValueError: kernels, an optimiser or a CUDA graph that cannot be had here.
    """

    def __init__(self, config: Config, world: World) -> None:
        self.config = config
        self.device, self.world = world.device, world
        torch.manual_seed(fold_in(config.train.seed, _INIT) % 2**63)
        self.model = DiffMAViL(config.model).to(world.device)
        self.optimizers = make_optimizers(self.model, config.optim)
        self.log_mel = LogMel(config.model.audio).to(world.device)
        self.augment = Augment(config.data.augment, config.train.seed)
        self.seed = fold_in(config.train.seed, _MASKS)
        self.autocast = use_bf16(config, world.device)
        self.nonfinite = torch.zeros((), device=world.device)
        self.nonfinite_run = torch.zeros((), device=world.device)
        counters = {"nonfinite": self.nonfinite, "nonfinite_run": self.nonfinite_run}
        self.state = TrainState(self.model, self.optimizers, counters)
        for module in self.model.modules():
            if isinstance(module, Blocks):
                module.recompute = config.train.recompute
        if config.train.compile:
            compile_blocks(self.model, config)
        self._forward: Callable[..., tuple[Tensor, ...]] = self.model
        self._graphs = GraphedPasses(self.model, world) if config.train.cuda_graph else None
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
        losses = self.gradients(batch, now, offset)
        grad_norm = self._clip()
        self._update(grad_norm)
        return StepResult(losses, grad_norm)

    def gradients(self, batch: Batch, now: Plan, offset: int) -> Tensor:
        """Forward and backward of this rank's clips, in several passes if they do not fit at once: the losses [5].

        The contrast of a pass knows the clips of that pass, over all ranks.
        """
        video = self.augment.video(batch.video, batch.position)
        spec = self.augment.spec(self.log_mel(batch.wave, batch.wave_valid), batch.position)
        parts = passes(len(batch), now.at_once)
        total = torch.zeros((), device=self.device)
        for i, rows in enumerate(parts):
            share = (rows.stop - rows.start) / len(batch)
            with self._syncs(i + 1 == len(parts)):
                losses = self.one_pass(video[rows], spec[rows], now, offset + rows.start, share)
            total = losses if len(parts) == 1 else total + losses * share
        return total

    def _syncs(self, last: bool) -> AbstractContextManager[None]:
        """Ranks exchange gradients after the last pass only."""
        if last or not isinstance(self._forward, DistributedDataParallel):
            return nullcontext()
        return self._forward.no_sync()

    def one_pass(self, video: Tensor, spec: Tensor, now: Plan, offset: int, share: float) -> Tensor:
        """Adds `share` times the gradient of the loss to that of the parameters; gives the losses [5]."""
        key = {"seed": self.seed, "offset": offset, "keep_video": now.keep_video, "keep_audio": now.keep_audio}
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            if self._graphs is not None:
                return self._graphs(video, spec, key, share)
            losses = self._forward(video, spec, **key)
        (losses[0] if share == 1 else losses[0] * share).backward()
        return torch.stack([loss.detach() for loss in losses])

    def drop_gradients(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None

    def warm_up(self) -> str:
        """Forward and backward of every shape that the run will have, without an update: what is compiled or recorded
        then is. Returns what it did, in words.
        """
        begin, found = time.perf_counter(), shapes(self.config)
        for now in found:
            for rows in passes(now.batch_size // self.world.size, now.at_once):
                video, spec = random_clips(self.config, rows.stop - rows.start, self.device)
                self.one_pass(video, spec, now, now.position, 1.0 if now.at_once == 0 else 0.5)
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
        # The norm is that of the all-reduced gradient, so every rank decides alike.
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


def random_clips(config: Config, clips: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Noise in the shape of a batch: video uint8 `[B, T, H, W, 3]` and spectrogram `[B, F, M]`."""
    video, audio = config.model.video, config.model.audio
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(
        256, (clips, video.frames, video.size, video.size, 3), dtype=torch.uint8, generator=generator
    )
    return pixels.to(device), torch.randn(clips, audio.frames, audio.mels, generator=generator).to(device)


_INIT, _MASKS = 1, 2  # streams folded out of the run's seed


def use_bf16(config: Config, device: torch.device) -> bool:
    """bf16 autocast: on request, or by default on a GPU or CPU whose matmul units compute in it."""
    if config.train.precision != "auto":
        return config.train.precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
