"""Every setting of a run, as frozen dataclasses; presets.py has the named ones.

A `Config` is complete: together with the step number it determines masks, noise, data order, learning rate and
ratio, so nothing else has to be restored on resume. Impossible values raise `ValueError` naming the field, what was
given and what is allowed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raise `ValueError` naming the setting unless `ok`."""
    if not ok:
        raise ValueError(f"{name}={value!r}: must be {allowed}")


@dataclass(frozen=True)
class VideoConfig:
    """What the video encoder sees: `frames` RGB frames of `size` x `size`, spread evenly over `seconds`."""

    frames: int = 16
    size: int = 224
    seconds: float = 4.0
    patch: tuple[int, int, int] = (2, 16, 16)
    """Tubelet (time, height, width)."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        t, h, w = self.patch
        require(min(self.patch) > 0, "video.patch", self.patch, "three positive sizes")
        require(self.frames > 0 and self.frames % t == 0, "video.frames", self.frames, f"a multiple of patch[0]={t}")
        require(
            self.size > 0 and self.size % h == 0 and self.size % w == 0,
            "video.size",
            self.size,
            f"a multiple of the patch's height {h} and width {w}",
        )
        require(self.seconds > 0, "video.seconds", self.seconds, "positive")
        require(min(self.std) > 0, "video.std", self.std, "positive")

    @property
    def grid(self) -> tuple[int, int, int]:
        """Patches along (time, height, width)."""
        t, h, w = self.patch
        return self.frames // t, self.size // h, self.size // w

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)

    @property
    def patch_dim(self) -> int:
        return math.prod(self.patch) * 3


@dataclass(frozen=True)
class AudioConfig:
    """What the audio encoder sees: Kaldi log-mel filterbanks, `frames` steps of 10 ms by `mels` bins."""

    frames: int = 1024
    mels: int = 128
    sample_rate: int = 16_000
    patch: tuple[int, int] = (16, 16)
    """(time, mel)."""
    mean: float | None = None
    """Mean of the log-mel over the *dataset*; None: measured before training and written to the resolved config."""
    std: float | None = None
    """Standard deviation of the log-mel over the dataset. The input is (x - mean) / (2 std), as in AST and AudioMAE."""

    def __post_init__(self) -> None:
        f, m = self.patch
        require(min(self.patch) > 0, "audio.patch", self.patch, "two positive sizes")
        require(self.frames > 0 and self.frames % f == 0, "audio.frames", self.frames, f"a multiple of patch[0]={f}")
        require(self.mels > 0 and self.mels % m == 0, "audio.mels", self.mels, f"a multiple of patch[1]={m}")
        require(self.sample_rate == 16_000, "audio.sample_rate", self.sample_rate, "16000 (windows are 25 ms, 10 ms)")
        require(self.std is None or self.std > 0, "audio.std", self.std, "positive, or None to measure it")
        both = (self.mean is None) == (self.std is None)
        require(both, "audio.mean, audio.std", (self.mean, self.std), "given together, or neither")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along (time, mel)."""
        return self.frames // self.patch[0], self.mels // self.patch[1]

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)

    @property
    def patch_dim(self) -> int:
        return math.prod(self.patch)

    @property
    def samples(self) -> int:
        """Waveform samples that make exactly `frames` windows of 25 ms every 10 ms."""
        return (self.frames - 1) * (self.sample_rate // 100) + self.sample_rate // 40


@dataclass(frozen=True)
class EncoderConfig:
    """A pre-norm vision transformer; one for each modality, and the blocks of the fusion encoder alike."""

    depth: int = 12
    width: int = 768
    heads: int = 12
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        require(self.depth > 0, "encoder.depth", self.depth, "positive")
        require(
            self.heads > 0 and self.width % self.heads == 0, "encoder.heads", self.heads, f"a divisor of {self.width}"
        )
        require(self.width % 4 == 0, "encoder.width", self.width, "a multiple of 4 (sin-cos positions)")


@dataclass(frozen=True)
class DecoderConfig:
    """One modality's decoder."""

    depth: int = 8
    width: int = 512
    heads: int = 16
    mlp_ratio: float = 4.0
    attention: Literal["self", "cross"] = "self"
    """self: over visible and masked tokens together (MAE). cross: masked tokens query the visible (DiffMAViL)."""

    def __post_init__(self) -> None:
        require(self.depth > 0, "decoder.depth", self.depth, "positive")
        require(
            self.heads > 0 and self.width % self.heads == 0, "decoder.heads", self.heads, f"a divisor of {self.width}"
        )
        require(self.width % 4 == 0, "decoder.width", self.width, "a multiple of 4 (sin-cos positions)")
        require(self.attention in ("self", "cross"), "decoder.attention", self.attention, "'self' or 'cross'")


@dataclass(frozen=True)
class DiffusionConfig:
    """What stands at a masked position in the decoder."""

    corruption: Literal["mask_token", "diffusion"] = "diffusion"
    """mask_token: one learnt vector (MAE, MAViL). diffusion: the patch diffused to x_t (DiffMAViL)."""
    schedule: Literal["linear", "cosine"] = "linear"
    """DDPM betas linear in 1e-4..0.02 (Ho et al. 2020), or the cosine schedule (Nichol and Dhariwal 2021)."""
    steps: int = 1000
    first_step: int = 1
    """Timesteps are drawn evenly from first_step..steps; 1, all of them, is DDPM's. At the small ones x_t already shows
    the patch."""

    def __post_init__(self) -> None:
        allowed = ("mask_token", "diffusion")
        require(self.corruption in allowed, "diffusion.corruption", self.corruption, f"one of {allowed}")
        require(self.schedule in ("linear", "cosine"), "diffusion.schedule", self.schedule, "'linear' or 'cosine'")
        require(self.steps > 1, "diffusion.steps", self.steps, "at least 2")
        in_process = f"in 1..diffusion.steps={self.steps}"
        require(1 <= self.first_step <= self.steps, "diffusion.first_step", self.first_step, in_process)

    @property
    def times(self) -> range:
        """The timesteps of training: first_step..steps."""
        return range(self.first_step, self.steps + 1)


@dataclass(frozen=True)
class ContrastConfig:
    """InfoNCE between audio and video of a clip (inter) and between two masked views of one modality (intra)."""

    inter_weight: float = 0.1
    inter_temperature: float = 0.1
    intra_weight: float = 0.01
    intra_temperature: float = 1.0

    def __post_init__(self) -> None:
        require(self.inter_weight >= 0, "contrast.inter_weight", self.inter_weight, ">= 0")
        require(self.intra_weight >= 0, "contrast.intra_weight", self.intra_weight, ">= 0")
        require(self.inter_temperature > 0, "contrast.inter_temperature", self.inter_temperature, "positive")
        require(self.intra_temperature > 0, "contrast.intra_temperature", self.intra_temperature, "positive")


@dataclass(frozen=True)
class ModelConfig:
    """The architecture and its losses. Defaults: `mavil-base` as published."""

    video: VideoConfig = VideoConfig()
    audio: AudioConfig = AudioConfig()
    encoder: EncoderConfig = EncoderConfig()
    fusion_depth: int = 2
    video_decoder: DecoderConfig = DecoderConfig()
    audio_decoder: DecoderConfig = DecoderConfig()
    diffusion: DiffusionConfig = DiffusionConfig(corruption="mask_token")
    contrast: ContrastConfig = ContrastConfig()
    views: int = 2
    """Independently masked views of each clip; the intra-modal contrast needs 2."""
    decode_fraction: float = 1.0
    """Share of the masked patches that is decoded (CrossMAE); the others cost nothing."""
    norm_pix: bool = True
    """Normalise each target patch by its own mean and standard deviation."""
    video_weight: float = 1.0
    audio_weight: float = 1.0
    attention: Literal["auto", "sdpa", "math", "flash", "xformers"] = "auto"
    """Whose attention kernels (`maekernels.attention`). auto: by capability; any other is used or is an error."""
    norm: Literal["torch", "apex"] = "torch"
    """LayerNorm of torch, or NVIDIA apex's fused one."""

    def __post_init__(self) -> None:
        require(self.fusion_depth >= 0, "model.fusion_depth", self.fusion_depth, ">= 0")
        require(self.views in (1, 2), "model.views", self.views, "1 or 2")
        require(0 < self.decode_fraction <= 1, "model.decode_fraction", self.decode_fraction, "in (0, 1]")
        require(self.video_weight >= 0, "model.video_weight", self.video_weight, ">= 0")
        require(self.audio_weight >= 0, "model.audio_weight", self.audio_weight, ">= 0")
        kernels = ("auto", "sdpa", "math", "flash", "xformers")
        require(self.attention in kernels, "model.attention", self.attention, f"one of {kernels}")
        require(self.norm in ("torch", "apex"), "model.norm", self.norm, "'torch' or 'apex'")
        partial = self.decode_fraction < 1
        for name, decoder in (("video_decoder", self.video_decoder), ("audio_decoder", self.audio_decoder)):
            allowed = "'cross' when model.decode_fraction < 1: self-attention mixes all positions"
            require(not partial or decoder.attention == "cross", f"model.{name}.attention", decoder.attention, allowed)


@dataclass(frozen=True)
class RatioSchedule:
    """Share of tokens masked as a function of progress; falling or rising.

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
    """Added to the scheduled ratio, in turn by runs of 8 samples, e.g. -0.1 0 0.1: one batch then has several ratios
    (AVSiam) and is computed packed. Empty: every sample has the scheduled ratio."""

    def __post_init__(self) -> None:
        require(all(-1 < shift < 1 for shift in self.mix), "mask.mix", self.mix, "shares between -1 and 1")


@dataclass(frozen=True)
class BatchConfig:
    """How many clips a step takes while the curriculum changes their cost: `diffmavil.planner`.

    `train.batch_size` is the nominal size: what a step takes where clips are dearest. `train.steps` times it is the
    number of samples of the run under every rule.
    """

    rule: Literal["fixed", "flops", "memory", "measured"] = "fixed"
    """fixed: always train.batch_size. flops: as many as cost what train.batch_size of the dearest clips cost. measured:
    the same in seconds, by a short sweep before training. memory: as many as fit in batch.memory_gib."""
    gflop: float | None = None
    """For rule=flops: another budget, of one step with its backward pass, over all processes."""
    memory_gib: float | None = None
    """Of each process's device, for parameters, optimiser and activations. With any rule, a larger batch is
    accumulated from several passes. None: no limit; with rule=memory on CUDA, 80 % of the device."""
    multiple: int = 8
    """Sizes are multiples of it, and it of the number of processes: 8 times the most processes ever used."""
    largest: int = 65_536
    """No step takes more clips."""
    lr_rule: Literal["none", "linear", "sqrt"] = "none"
    """The learning rate grows with (batch / train.batch_size) to the power of 0, 1 or 1/2."""
    sizes: tuple[int, ...] = ()
    """The plan, one size for each stretch of the curriculum. Empty: made before training; a resumed run keeps it."""
    at_once: tuple[int, ...] = ()
    """The plan: most clips that a process computes at once, for each stretch. Empty: the whole batch."""

    def __post_init__(self) -> None:
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
class AugmentConfig:
    """Random changes of training batches on the device; all off by default, as MAViL pretrains."""

    colour: float = 0.0
    """Brightness, contrast and saturation vary by this share."""
    roll: bool = False
    """Roll the spectrogram in time by a random number of frames."""
    time_mask: int = 0
    """SpecAugment: frames of the spectrogram hidden at most."""
    mel_mask: int = 0
    """SpecAugment: bins of the spectrogram hidden at most."""

    def __post_init__(self) -> None:
        require(0 <= self.colour <= 1, "data.augment.colour", self.colour, "in [0, 1]")
        require(self.time_mask >= 0, "data.augment.time_mask", self.time_mask, ">= 0")
        require(self.mel_mask >= 0, "data.augment.mel_mask", self.mel_mask, ">= 0")


DecoderName = Literal["pyav", "torchcodec", "dali"]


@dataclass(frozen=True)
class DataConfig:
    root: str = "synthetic"
    """A folder of videos, a CSV (path,start,duration,labels), a prepared folder or its URL, or 'synthetic'."""
    more: tuple[str, ...] = ()
    """Further sets that are mixed in."""
    weights: tuple[float, ...] = ()
    """Share of each set in training, that of root first; none: by their numbers of clips."""
    eval_root: str | None = None
    """Held-out clips for evaluation and the report; None: the synthetic held-out split, or else a slice of root."""
    cache: str = "~/.cache/diffmavil"
    """Where the synthetic set and measured statistics are kept."""
    synthetic_train: int = 768
    synthetic_eval: int = 384
    workers: int = 2
    """Decoding processes for each rank; 0 decodes in the training process."""
    prefetch: int = 4
    """Batches each worker keeps ready."""
    decoder: Literal["pyav", "torchcodec", "dali", "auto"] = "pyav"
    """Of prepared clips; plain files are decoded by pyav. auto: the fastest that is installed and fits the device."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Area of the random spatial crop relative to the frame, the same crop for all frames."""
    flip: bool = True
    augment: AugmentConfig = AugmentConfig()
    max_bad_share: float = 0.2
    """The run stops when more than this share of the clips tried could not be used."""
    stats_clips: int = 256
    """Clips from which the audio statistics are measured, when model.audio.mean is None and the set knows none."""
    deadline: float = 60.0
    """Seconds that decoding a clip may take before it counts as bad."""
    remote_cache_gb: float = 50.0
    """Most that data.cache keeps of clips read from a URL; 0: nothing."""

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        require(0 < low <= high <= 1, "data.crop_scale", self.crop_scale, "two shares, 0 < low <= high <= 1")
        require(self.workers >= 0, "data.workers", self.workers, ">= 0")
        require(self.prefetch >= 1, "data.prefetch", self.prefetch, ">= 1")
        require(0 <= self.max_bad_share <= 1, "data.max_bad_share", self.max_bad_share, "in [0, 1]")
        require(self.stats_clips >= 1, "data.stats_clips", self.stats_clips, ">= 1")
        sets = 1 + len(self.more)
        known = not self.weights or (len(self.weights) == sets and all(weight > 0 for weight in self.weights))
        require(known, "data.weights", self.weights, f"{sets} positive numbers, one for each set, or none")
        decoders = ("pyav", "torchcodec", "dali", "auto")
        require(self.decoder in decoders, "data.decoder", self.decoder, f"one of {decoders}")
        require(self.deadline > 0, "data.deadline", self.deadline, "positive")
        require(self.remote_cache_gb >= 0, "data.remote_cache_gb", self.remote_cache_gb, ">= 0")
        require(self.synthetic_train >= 1, "data.synthetic_train", self.synthetic_train, ">= 1")
        require(self.synthetic_eval >= 1, "data.synthetic_eval", self.synthetic_eval, ">= 1")


@dataclass(frozen=True)
class OptimConfig:
    name: Literal["adamw", "muon", "apex_adam", "apex_lamb"] = "adamw"
    """adamw: torch's fused AdamW. muon: torch's Muon for the matrices of the blocks, AdamW for the rest. apex_*: NVIDIA
    apex's FusedAdam or FusedLAMB, or an error where it is not usable."""
    lr: float = 2e-4
    """Peak learning rate at the given batch size."""
    min_lr: float = 0.0
    warmup: float = 0.05
    """Share of the samples over which the learning rate rises linearly."""
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    """Applied to matrices; biases, norms and single vectors are exempt."""
    clip_grad: float = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    layer_decay: float = 1.0
    """Each block below the fusion encoder learns this much slower than the one above; 1: all alike."""

    def __post_init__(self) -> None:
        names = ("adamw", "muon", "apex_adam", "apex_lamb")
        require(self.name in names, "optim.name", self.name, f"one of {names}")
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
    """Clips in one optimiser step, over all processes."""
    seed: int = 0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 autocast on a GPU, or a CPU (AVX512-BF16, AMX), that computes in it; else fp32."""
    compile: bool = False
    """torch.compile of each kind of transformer block, for every shape of the curriculum, before the first step."""
    cuda_graph: bool = False
    """Record forward and backward once for each shape of the curriculum and replay them; one process on CUDA."""
    recompute: bool = False
    """Keep only the inputs of blocks for the backward pass and compute the rest again: less memory, more work."""
    log_every: int = 10
    """Steps between log lines; the only times the host waits for the device."""
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    max_nonfinite: int = 5
    """Consecutive skipped steps after which the run stops."""
    report: bool = True
    """Write report.html at the end."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, "train.steps", self.steps, ">= 1")
        require(self.batch_size >= 1, "train.batch_size", self.batch_size, ">= 1")
        require(0 <= self.seed < 2**63, "train.seed", self.seed, "in [0, 2^63)")
        require(self.precision in ("auto", "bf16", "fp32"), "train.precision", self.precision, "auto, bf16 or fp32")
        require(self.log_every >= 1, "train.log_every", self.log_every, ">= 1")
        require(self.checkpoint_every >= 1, "train.checkpoint_every", self.checkpoint_every, ">= 1")
        require(self.keep_checkpoints >= 1, "train.keep_checkpoints", self.keep_checkpoints, ">= 1")
        require(self.max_nonfinite >= 1, "train.max_nonfinite", self.max_nonfinite, ">= 1")


@dataclass(frozen=True)
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    data: DataConfig = field(default_factory=DataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
