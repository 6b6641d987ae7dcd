"""Training settings: masking schedule, batches, optimiser and the loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from diffmavil.config.checks import require


@dataclass(frozen=True)
class RatioSchedule:
    """Fraction of tokens masked, as a function of progress; falling or rising.

    Rounded to `levels` distinct token counts, so that compiled graphs are reused.
    """

    kind: Literal["constant", "linear", "cosine", "step"] = "constant"
    start: float = 0.8
    end: float = 0.8
    levels: int = 8

    def __post_init__(self) -> None:
        kinds = ("constant", "linear", "cosine", "step")
        require(self.kind in kinds, "mask.kind", self.kind, f"one of {kinds}")
        require(0 < self.start < 1, "mask.start", self.start, "in (0, 1)")
        require(0 < self.end < 1, "mask.end", self.end, "in (0, 1)")
        require(self.levels >= 1, "mask.levels", self.levels, ">= 1")


@dataclass(frozen=True)
class MaskConfig:
    video: RatioSchedule = RatioSchedule()
    audio: RatioSchedule = RatioSchedule()
    mix: tuple[float, ...] = ()
    """Empty: every sample has the scheduled ratio. Else offsets to it, taken in turn by runs of 8 samples, e.g. -0.1 0
    0.1: a batch then has several ratios (AVSiam) and is computed packed."""
    least_visible: float = 0.05
    """Smallest fraction of the tokens that `mix` leaves visible, or what the schedule leaves if that is less."""

    def __post_init__(self) -> None:
        require(0 <= self.least_visible < 1, "mask.least_visible", self.least_visible, "in [0, 1)")
        require(all(-1 < shift < 1 for shift in self.mix), "mask.mix", self.mix, "shares between -1 and 1")


@dataclass(frozen=True)
class BatchConfig:
    """How many clips a step takes while the curriculum changes their cost: `diffmavil.training.planner`.

    `train.batch_size` is the nominal size: that of a step where clips are most expensive. `train.steps` times it is
    the number of samples of the run under every rule.
    """

    rule: Literal["fixed", "flops", "memory", "measured"] = "fixed"
    """Clips in a step. fixed: train.batch_size. flops: as many as cost the same as train.batch_size of the most
    expensive clips. measured: the same in seconds, from a short sweep before training. memory: as many as fit in
    batch.memory_gib."""
    gflop: float | None = None
    """For rule=flops: another budget, in GFLOP, of one step with its backward pass, over all processes."""
    memory_gib: float | None = None
    """GiB of each process's device for parameters, optimiser and activations. None: 80 % of the device on CUDA, no
    limit on a CPU. With any rule, a larger batch is accumulated over several passes."""
    multiple: int = 8
    """Batch sizes are multiples of this and of the number of processes. To resume with another number of processes,
    give a multiple of both: 8 times the most ever used."""
    largest: int = 65_536
    """Most clips in a step."""
    lr_rule: Literal["none", "linear", "sqrt"] = "none"
    """Scale the learning rate by (batch / train.batch_size) to the power of 0, 1 or 1/2."""
    sizes: tuple[int, ...] = ()
    """The plan: one size for each stretch of the curriculum. Empty: made before training; a resumed run keeps it."""
    at_once: tuple[int, ...] = ()
    """The plan: most clips that a process computes in one pass, for each stretch. Empty: the whole batch."""

    begin: tuple[int, int] = (0, 0)
    """(step, sample) from which these sizes apply: where a run was resumed with other ones."""

    def __post_init__(self) -> None:
        require(min(self.begin) >= 0, "batch.begin", self.begin, "a step and a sample, >= 0")
        rules = ("fixed", "flops", "memory", "measured")
        require(self.rule in rules, "batch.rule", self.rule, f"one of {rules}")
        require(self.gflop is None or self.gflop > 0, "batch.gflop", self.gflop, "positive")
        require(self.gflop is None or self.rule == "flops", "batch.gflop", self.gflop, "None unless batch.rule=flops")
        require(self.memory_gib is None or self.memory_gib > 0, "batch.memory_gib", self.memory_gib, "positive")
        require(self.multiple >= 1, "batch.multiple", self.multiple, ">= 1")
        require(self.largest >= self.multiple, "batch.largest", self.largest, f">= batch.multiple={self.multiple}")
        scalings = ("none", "linear", "sqrt")
        require(self.lr_rule in scalings, "batch.lr_rule", self.lr_rule, f"one of {scalings}")
        for name, plan in (("batch.sizes", self.sizes), ("batch.at_once", self.at_once)):
            require(all(size >= 1 for size in plan), name, plan, "positive")


@dataclass(frozen=True)
class OptimConfig:
    name: Literal["adamw", "muon", "apex_adam", "apex_lamb"] = "adamw"
    """adamw: torch's fused AdamW. muon: Muon for the matrices of the blocks, AdamW for the rest. apex_*: NVIDIA apex's
    FusedAdam or FusedLAMB, or an error where they are not usable."""
    lr: float = 2e-4
    """Peak learning rate, at train.batch_size."""
    min_lr: float = 0.0
    warmup: float = 0.05
    """Fraction of the samples over which the learning rate rises linearly."""
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    """Applied to matrices; biases, norms and single vectors are exempt."""
    clip_grad: float = 1.0
    """Largest global gradient norm; 0: no clipping."""
    muon_steps: int = 5
    """Iterations with which Muon orthogonalises an update. They cost the same for any batch, in each process: five take
    a sixth to a quarter of a tiny model's step on a CPU. With 3, directions below a fortieth of the whole stay
    smaller."""
    layer_decay: float = 1.0
    """Learning rate of each block below the fusion encoder, relative to the block above it; 1: all equal."""

    def __post_init__(self) -> None:
        names = ("adamw", "muon", "apex_adam", "apex_lamb")
        require(self.name in names, "optim.name", self.name, f"one of {names}")
        require(self.muon_steps >= 1, "optim.muon_steps", self.muon_steps, ">= 1")
        require(0 < self.layer_decay <= 1, "optim.layer_decay", self.layer_decay, "in (0, 1]")
        require(self.lr > 0, "optim.lr", self.lr, "positive")
        require(0 <= self.min_lr <= self.lr, "optim.min_lr", self.min_lr, f"in [0, optim.lr={self.lr}]")
        require(0 <= self.warmup < 1, "optim.warmup", self.warmup, "in [0, 1)")
        require(all(0 <= b < 1 for b in self.betas), "optim.betas", self.betas, "two numbers in [0, 1)")
        require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, ">= 0")
        require(self.clip_grad >= 0, "optim.clip_grad", self.clip_grad, ">= 0")


@dataclass(frozen=True)
class TrainConfig:
    steps: int = 1000
    batch_size: int = 64
    """Clips per optimiser step, over all processes."""
    seed: int = 0
    init: Annotated[str | None, arg(aliases=["--init"])] = None
    """Weights to start from. An image MAE (safetensors, .pth or .bin): both encoders and the fusion blocks. In
    pretraining also our own weights (a run, one of its checkpoints, its weights, or owner/name on the Hub): all that
    fits. Read once, before step 0; a resumed run continues from its own checkpoint."""
    ema: float = 0.0
    """Decay per step of an exponential moving average of the weights, which pretraining also exports (ema.safetensors)
    for `evaluate --weights`; 0: none. In fine-tuning use head.ema."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 autocast on a GPU or a CPU (AVX512-BF16, AMX) that computes in it; else fp32."""
    compile: bool = False
    """Run torch.compile on each kind of transformer block, for every shape of the curriculum, before the first step."""
    cuda_graph: bool = False
    """Record forward and backward once for each shape of the curriculum and replay them; needs one process on CUDA."""
    recompute: bool = False
    """Keep only the inputs of blocks for the backward pass and recompute the rest: less memory, more work."""
    log: Annotated[tuple[Literal["tensorboard", "wandb", "mlflow"], ...], arg(aliases=["--log"])] = ("tensorboard",)
    """Where to show curves, apart from metrics.jsonl: tensorboard (files in the run folder), wandb, mlflow; several, or
    none. Their own environment variables configure them."""
    log_every: int = 10
    """Steps between log lines; the host waits for the device only then."""
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    max_nonfinite: int = 5
    """Stop the run after this many consecutive skipped steps."""
    probe_every: int = 0
    """Steps between probes of the features of held-out clips (neighbours, effective rank, dead dimensions), which show
    early whether anything is learnt; the last step is probed too; 0: none. They do not change training. In fine-tuning:
    steps between validations; 0: a tenth of the run."""
    probe_clips: int = 256
    """Held-out clips per probe, and as many labelled training clips; bounds its cost. Fine-tuning validates on all
    validation clips."""
    report: bool = True
    """Write report.html at the end."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, "train.steps", self.steps, ">= 1")
        require(self.batch_size >= 1, "train.batch_size", self.batch_size, ">= 1")
        require(0 <= self.seed < 2**63, "train.seed", self.seed, "in [0, 2^63)")
        require(0 <= self.ema < 1, "train.ema", self.ema, "in [0, 1)")
        require(self.precision in ("auto", "bf16", "fp32"), "train.precision", self.precision, "auto, bf16 or fp32")
        boards = ("tensorboard", "wandb", "mlflow")
        known = set(self.log) <= set(boards) and len(set(self.log)) == len(self.log)
        require(known, "train.log", self.log, f"some of {boards}, each once")
        require(self.log_every >= 1, "train.log_every", self.log_every, ">= 1")
        require(self.checkpoint_every >= 1, "train.checkpoint_every", self.checkpoint_every, ">= 1")
        require(self.keep_checkpoints >= 1, "train.keep_checkpoints", self.keep_checkpoints, ">= 1")
        require(self.probe_every >= 0, "train.probe_every", self.probe_every, ">= 0")
        require(self.probe_clips >= 2, "train.probe_clips", self.probe_clips, ">= 2")
        require(self.max_nonfinite >= 1, "train.max_nonfinite", self.max_nonfinite, ">= 1")
