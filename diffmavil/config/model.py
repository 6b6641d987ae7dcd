"""Model settings: its inputs, its parts and its losses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from diffmavil.config.checks import OMITTED, require

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class VideoConfig:
    """Input of the video encoder: `frames` RGB frames of `size` x `size`, spread evenly over `seconds`."""

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
    """Input of the audio encoder: Kaldi log-mel filterbanks, `frames` steps of 10 ms by `mels` bins."""

    frames: int = 1024
    mels: int = 128
    sample_rate: int = 16_000
    patch: tuple[int, int] = (16, 16)
    """Patch (time, mel)."""
    mean: float | None = None
    """Mean of the log-mel over the *dataset*. None: measured before training and written to the resolved config."""
    std: float | None = None
    """Standard deviation of the log-mel over the dataset. The input is (x - mean) / (2 std), as in AST and AudioMAE."""
    padding: Literal["mean", "zero"] = "mean"
    """What follows the end of the audio. mean: the mean of the dataset, 0 when normalised. zero: a log-mel of 0, which
    is -mean / (2 std) when normalised, as in AudioMAE, CAV-MAE and MAViL's released code."""

    def __post_init__(self) -> None:
        f, m = self.patch
        require(min(self.patch) > 0, "audio.patch", self.patch, "two positive sizes")
        require(self.frames > 0 and self.frames % f == 0, "audio.frames", self.frames, f"a multiple of patch[0]={f}")
        require(self.mels > 0 and self.mels % m == 0, "audio.mels", self.mels, f"a multiple of patch[1]={m}")
        require(self.sample_rate == 16_000, "audio.sample_rate", self.sample_rate, "16000 (windows are 25 ms, 10 ms)")
        require(self.std is None or self.std > 0, "audio.std", self.std, "positive, or None to measure it")
        both = (self.mean is None) == (self.std is None)
        require(both, "audio.mean, audio.std", (self.mean, self.std), "given together, or neither")
        require(self.padding in ("mean", "zero"), "audio.padding", self.padding, "'mean' or 'zero'")

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
    """A pre-norm vision transformer, one for each modality; the fusion encoder has the same blocks."""

    depth: int = 12
    width: int = 768
    heads: int = 12
    mlp_ratio: float = 4.0
    cls: bool = True
    """Put a learnt token in front of the patches; VideoMAE and CAV-MAE have none."""
    positions: Literal["sincos", "sequence", "stored"] = "sincos"
    """Position embeddings. sincos: a part of the width for each axis of the grid. sequence: all patches numbered
    consecutively (VideoMAE). stored: a table kept with the weights; until one is imported, that of sincos."""
    final_norm: bool = True
    """Apply a LayerNorm after the last block of each encoder; CAV-MAE and MAViL's released weights have none."""
    norm_eps: float = 1e-6
    """Epsilon of every LayerNorm in encoders and fusion. transformers uses 1e-12, CAV-MAE 1e-5."""

    def __post_init__(self) -> None:
        require(self.depth > 0, "encoder.depth", self.depth, "positive")
        tables = ("sincos", "sequence", "stored")
        require(self.positions in tables, "encoder.positions", self.positions, f"one of {tables}")
        require(self.norm_eps > 0, "encoder.norm_eps", self.norm_eps, "positive")
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
    """self: over visible and masked tokens together (MAE). cross: masked tokens query the visible ones (DiffMAViL)."""
    reads: Literal["last", "mix"] = "last"
    """last: every block reads the fused tokens. mix: each reads its own learnt mix of them and of the outputs of all
    encoder blocks (CrossMAE); needs attention=cross."""
    positions: Literal["sincos", "stored"] = "sincos"
    """As in the encoder."""
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        require(self.depth > 0, "decoder.depth", self.depth, "positive")
        require(
            self.heads > 0 and self.width % self.heads == 0, "decoder.heads", self.heads, f"a divisor of {self.width}"
        )
        require(self.width % 4 == 0, "decoder.width", self.width, "a multiple of 4 (sin-cos positions)")
        require(self.attention in ("self", "cross"), "decoder.attention", self.attention, "'self' or 'cross'")
        require(self.reads in ("last", "mix"), "decoder.reads", self.reads, "'last' or 'mix'")
        crosses = self.reads == "last" or self.attention == "cross"
        require(crosses, "decoder.reads", self.reads, "'last' with attention=self: there is one sequence to read")
        require(self.positions in ("sincos", "stored"), "decoder.positions", self.positions, "'sincos' or 'stored'")
        require(self.norm_eps > 0, "decoder.norm_eps", self.norm_eps, "positive")


@dataclass(frozen=True)
class DiffusionConfig:
    """Input of the decoder at a masked position."""

    corruption: Literal["mask_token", "diffusion"] = "diffusion"
    """mask_token: one learnt vector (MAE, MAViL). diffusion: the patch diffused to x_t (DiffMAViL)."""
    schedule: Literal["linear", "cosine"] = "linear"
    """linear: DDPM betas linear in 1e-4..0.02 (Ho et al. 2020). cosine: Nichol and Dhariwal 2021."""
    steps: int = 1000
    first_step: int = 1
    """Draw timesteps from first_step..steps. 1: all of them, as in DDPM. At small ones x_t already shows the patch."""
    draws: Literal["even", "min_snr"] = "even"
    """Distribution of timesteps. even: uniform. min_snr: in proportion to min(SNR, 5), SNR = alpha_bar / (1 -
    alpha_bar): in expectation the weights of Min-SNR (Hang et al. 2023) for a model that predicts the patch, with any
    loss unchanged. The noisiest timesteps, where sampling starts, are then rarely drawn."""
    exponent: float = 1.0
    """Power to which the schedule's alpha_bar is raised (DiffMAE); below 1, every timestep keeps more of the patch."""
    token_share: float = 0.0
    """Fraction of the samples and views that get mask tokens instead of diffused patches: nothing of the patch, and a
    timestep of their own, steps + 1."""

    def __post_init__(self) -> None:
        allowed = ("mask_token", "diffusion")
        require(self.corruption in allowed, "diffusion.corruption", self.corruption, f"one of {allowed}")
        require(self.schedule in ("linear", "cosine"), "diffusion.schedule", self.schedule, "'linear' or 'cosine'")
        require(self.steps > 1, "diffusion.steps", self.steps, "at least 2")
        in_process = f"in 1..diffusion.steps={self.steps}"
        require(1 <= self.first_step <= self.steps, "diffusion.first_step", self.first_step, in_process)
        require(self.draws in ("even", "min_snr"), "diffusion.draws", self.draws, "'even' or 'min_snr'")
        require(0 < self.exponent < math.inf, "diffusion.exponent", self.exponent, "positive")
        require(0 <= self.token_share < 1, "diffusion.token_share", self.token_share, "in [0, 1)")

    @property
    def idle(self) -> list[str]:
        """Settings changed from their defaults without effect, since no patch is diffused."""
        plain = DiffusionConfig()
        changed = [name for name in ("draws", "exponent", "token_share") if getattr(self, name) != getattr(plain, name)]
        return changed if self.corruption == "mask_token" else []

    @property
    def times(self) -> range:
        """The timesteps used in training: first_step..steps."""
        return range(self.first_step, self.steps + 1)


@dataclass(frozen=True)
class ContrastConfig:
    """InfoNCE between audio and video of a clip (inter) and between two masked views of one modality (intra)."""

    inter_weight: float = 0.1
    inter_temperature: float = 0.1
    intra_weight: float = 0.01
    intra_temperature: float = 1.0
    mask_ratio: float | None = None
    """None: the contrast reads the decoded views. Else the fraction masked of additional views, which the contrast
    reads instead: heavily masked views say little about which audio belongs to which video (TG-DP)."""

    def __post_init__(self) -> None:
        ratio = self.mask_ratio
        require(ratio is None or 0 <= ratio < 1, "contrast.mask_ratio", ratio, "in [0, 1), or None")
        require(self.inter_weight >= 0, "contrast.inter_weight", self.inter_weight, ">= 0")
        require(self.intra_weight >= 0, "contrast.intra_weight", self.intra_weight, ">= 0")
        require(self.inter_temperature > 0, "contrast.inter_temperature", self.inter_temperature, "positive")
        require(self.intra_temperature > 0, "contrast.intra_temperature", self.intra_temperature, "positive")


Modalities = Literal["av", "audio", "video"]
VideoMasks = Literal["patches", "tubes", "frames"]
AudioMasks = Literal["patches", "times", "mels", "crosses"]


def hears(modalities: Modalities) -> bool:
    return modalities != "video"


def sees(modalities: Modalities) -> bool:
    return modalities != "audio"


@dataclass(frozen=True)
class ModelConfig:
    """Architecture and losses. Defaults: those of the preset."""

    modalities: Modalities = "av"
    """av: audio and video, fused. audio, video: that branch alone; the other is neither decoded nor computed."""
    video: VideoConfig = VideoConfig()
    audio: AudioConfig = AudioConfig()
    encoder: EncoderConfig = EncoderConfig()
    shared_encoder: bool = False
    """Use one stack of encoder blocks for audio and video (AVSiam, Lin and Bertasius 2024): the same weights, each
    modality with its own embedding. No effect with one modality."""
    fusion_depth: int = 2
    fusion_types: bool = True
    """Mark tokens with a learnt vector for their modality before fusion; not in MAViL's released weights."""
    fusion_norm: bool = True
    """Apply a LayerNorm after the last fusion block; not in MAViL's released weights."""
    video_decoder: DecoderConfig = DecoderConfig()
    audio_decoder: DecoderConfig = DecoderConfig()
    diffusion: DiffusionConfig = DiffusionConfig(corruption="mask_token")
    contrast: ContrastConfig = ContrastConfig()
    views: int = 2
    """Independently masked views of each clip; the intra-modal contrast needs 2."""
    decoded_views: int = 2
    """Most views that are fused, decoded and compared with their patches. 1: a second view is used by the contrast
    alone."""
    decode_fraction: float = 1.0
    """Fraction of the masked patches that is decoded (CrossMAE); the others cost nothing."""
    video_masks: VideoMasks = "patches"
    """Unit of masking. patches: single patches. tubes: one position in all frames (VideoMAE). frames: all patches of a
    time step. A ratio that is not a whole number of units splits one."""
    audio_masks: AudioMasks = "patches"
    """Unit of masking. patches: single patches. times: columns of the spectrogram. mels: its rows. crosses: columns
    and rows (AudioMAE)."""
    norm_pix: bool = True
    """Normalise each target patch by its own mean and standard deviation."""
    video_weight: float = 1.0
    audio_weight: float = 1.0
    attention: Literal["auto", "sdpa", "math", "flash", "xformers"] = "auto"
    """Attention kernels (`maekernels.attention`). auto: by capability; any other is used, or an error is raised."""
    norm: Literal["torch", "apex"] = "torch"
    """LayerNorm implementation: torch's, or NVIDIA apex's fused one."""
    target_width: int | None = field(default=None, metadata=OMITTED)
    """None: decoders predict patches. Else width of the features that they predict, the teacher's in the second stage;
    filled in when a run begins."""

    @property
    def predicted_views(self) -> int:
        """Views that are fused and decoded."""
        return min(self.views, self.decoded_views)

    @property
    def contrasts(self) -> bool:
        """Whether there is a contrast, between modalities or views."""
        between = self.modalities == "av" and self.contrast.inter_weight > 0
        return between or (self.views == 2 and self.contrast.intra_weight > 0)

    @property
    def contrast_views(self) -> int:
        """Views of each clip that only the contrast reads, masked by its own ratio."""
        return self.views if self.contrasts and self.contrast.mask_ratio is not None else 0

    @property
    def masked_views(self) -> int:
        """Views that are masked by the schedule: the decoded ones, and others if the contrast reads them."""
        return self.predicted_views if self.contrast_views else self.views

    @property
    def hears(self) -> bool:
        return hears(self.modalities)

    @property
    def sees(self) -> bool:
        return sees(self.modalities)

    def __post_init__(self) -> None:
        require(self.modalities in ("av", "audio", "video"), "model.modalities", self.modalities, "av, audio or video")
        require(self.fusion_depth >= 0, "model.fusion_depth", self.fusion_depth, ">= 0")
        require(self.views in (1, 2), "model.views", self.views, "1 or 2")
        require(self.decoded_views in (1, 2), "model.decoded_views", self.decoded_views, "1 or 2")
        require(0 < self.decode_fraction <= 1, "model.decode_fraction", self.decode_fraction, "in (0, 1]")
        require(self.video_weight >= 0, "model.video_weight", self.video_weight, ">= 0")
        require(self.audio_weight >= 0, "model.audio_weight", self.audio_weight, ">= 0")
        hidden = (("video_masks", self.video_masks, VideoMasks), ("audio_masks", self.audio_masks, AudioMasks))
        for name, value, allowed in hidden:
            require(value in get_args(allowed), f"model.{name}", value, f"one of {get_args(allowed)}")
        kernels = ("auto", "sdpa", "math", "flash", "xformers")
        require(self.attention in kernels, "model.attention", self.attention, f"one of {kernels}")
        require(self.norm in ("torch", "apex"), "model.norm", self.norm, "'torch' or 'apex'")
        width = self.target_width
        require(width is None or width > 0, "model.target_width", width, "positive, or None to predict patches")
        partial = self.decode_fraction < 1
        for name, decoder in (("video_decoder", self.video_decoder), ("audio_decoder", self.audio_decoder)):
            allowed = "'cross' when model.decode_fraction < 1: self-attention mixes all positions"
            require(not partial or decoder.attention == "cross", f"model.{name}.attention", decoder.attention, allowed)
