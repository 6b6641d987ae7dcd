"""Fine-tuning settings: what a classifier adds to a pretrained model, and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Suppress

from diffmavil.config.checks import require


@dataclass(frozen=True)
class HeadConfig:
    """A LayerNorm and a Linear layer over the mean token of each modality, after `fusion_depth` fusion blocks."""

    source: Annotated[str, Suppress] = "none"
    """Weights that the encoders start from, as given to --from; 'none': from scratch."""

    classes: tuple[str, ...] = ()
    """Names of the outputs. Empty: the classes of the training clips, filled in when training begins."""
    labels: Literal["auto", "one", "several"] = "auto"
    """Labels per clip. auto: several if any clip has several. one: cross-entropy, top-1 and top-5. several: binary
    cross-entropy for each class, mAP."""
    epochs: float | None = 30.0
    """Passes over the training clips, which set train.steps. None, or train.steps given: use train.steps."""
    fusion_depth: int = 3
    """Number of fusion blocks; those beyond the pretrained ones start as the identity."""
    start: Literal["zero", "probe"] = "zero"
    """Initial Linear layer. zero: close to zero. probe: a linear probe fitted to the training clips before the first
    step, so that its first gradients do not damage the pretrained weights (Kumar et al. 2022, LP-FT)."""
    blocks: int | None = None
    """Trainable blocks of each encoder, counted from the top. None: all; 0: encoders are frozen."""
    drop_path: float = 0.1
    """Stochastic depth: fraction of clips that skip the last block; rises linearly with depth from 0 at the first."""
    mixup: float = 0.5
    """Both parameters of mixup's Beta distribution; 0: no mixup."""
    label_smoothing: float = 0.1
    """Fraction of a single label that is spread over all classes; multiple labels are not smoothed."""
    mask_time: float = 0.2
    """Fraction of the spectrogram's patch columns removed from each training clip."""
    mask_mel: float = 0.2
    """Fraction of the spectrogram's patch rows removed from each training clip."""
    mask_video: float = 0.0
    """Fraction of the video's patches removed from each training clip, drawn at random."""
    balance: Literal["none", "sampling", "loss"] = "none"
    """Handling of rare classes, by the counts of the existing clips. none: equal treatment. sampling: their clips are
    drawn more often, as in AudioSet recipes. loss: their clips weigh more."""
    lr_video: float = 1.0
    """Learning rate of the video encoder relative to the audio encoder's; unused with one modality. With
    `model.shared_encoder`, that of the video-only parts: embedding and last LayerNorm."""
    ema: float = 0.0
    """Decay per step of an exponential moving average of the weights, which is also scored; 0: none."""
    average: float = 0.25
    """Fraction of the steps, at the end, over which weights are averaged; the average is also scored. 0: none."""
    validation: float = 0.1
    """Fraction of the training files, by a hash of their names, held back to choose the best weights; 0: none."""
    val_root: str | None = None
    """Clips to choose the best weights by. None: as head.validation; 'test': the held-out clips of the result."""
    crops: int = 3
    """Evenly spaced windows in time of a held-out clip, over which its scores are averaged; the centre is also scored
    alone. 1: the centre only, enough for clips no longer than the window."""

    def __post_init__(self) -> None:
        require(self.labels in ("auto", "one", "several"), "head.labels", self.labels, "auto, one or several")
        require(self.epochs is None or self.epochs > 0, "head.epochs", self.epochs, "positive, or None")
        require(self.start in ("zero", "probe"), "head.start", self.start, "zero or probe")
        require(self.fusion_depth >= 0, "head.fusion_depth", self.fusion_depth, ">= 0")
        require(self.blocks is None or self.blocks >= 0, "head.blocks", self.blocks, ">= 0, or None for all")
        require(self.lr_video > 0, "head.lr_video", self.lr_video, "positive")
        balances = ("none", "sampling", "loss")
        require(self.balance in balances, "head.balance", self.balance, f"one of {balances}")
        require(0 <= self.mixup <= 1, "head.mixup", self.mixup, "in [0, 1]")
        for name in ("drop_path", "label_smoothing", "mask_time", "mask_mel", "mask_video", "ema", "average"):
            require(0 <= getattr(self, name) < 1, f"head.{name}", getattr(self, name), "in [0, 1)")
        require(self.crops >= 1, "head.crops", self.crops, ">= 1")
        require(0 <= self.validation < 1, "head.validation", self.validation, "in [0, 1)")
