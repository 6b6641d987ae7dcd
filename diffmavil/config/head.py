"""Settings of fine-tuning: what a classifier adds to a pretrained model, and how it learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Suppress

from diffmavil.config.checks import require


@dataclass(frozen=True)
class HeadConfig:
    """A LayerNorm and a Linear layer over the mean tokens of each modality, after fusion blocks of their own number."""

    source: Annotated[str, Suppress] = "none"
    """Weights that the encoders start from, as --from named them; 'none': from scratch."""

    classes: tuple[str, ...] = ()
    """Names of the outputs. Empty: the classes of the training clips, written here when training begins."""
    labels: Literal["auto", "one", "several"] = "auto"
    """Of each clip. one: cross-entropy, top-1 and top-5. several: binary cross-entropy for each class, mAP. auto:
    several as soon as one clip has several."""
    epochs: float | None = 30.0
    """Times that every training clip is seen; it decides train.steps. None, or train.steps given: train.steps."""
    fusion_depth: int = 3
    """Fusion blocks; those beyond the pretrained ones begin as the identity."""
    start: Literal["zero", "probe"] = "zero"
    """Of the Linear layer. zero: nearly so, it knows nothing. probe: a linear probe fitted to the training clips before
    the first step, so that its first gradients do not spoil what was pretrained (Kumar et al. 2022, LP-FT)."""
    blocks: int | None = None
    """How many blocks of each encoder learn, counted from the top; 0: encoders stay as they are. None: all."""
    drop_path: float = 0.1
    """Stochastic depth: share of clips for which a block is left out, rising linearly from 0 with its height."""
    mixup: float = 0.5
    """Both parameters of mixup's Beta distribution; 0: no mixup."""
    label_smoothing: float = 0.1
    """Share of a single label that is spread over all classes; several labels are not smoothed."""
    mask_time: float = 0.2
    """Share of the spectrogram's columns of patches that a training clip is without."""
    mask_mel: float = 0.2
    """Share of the spectrogram's rows of patches that a training clip is without."""
    mask_video: float = 0.0
    """Share of the video's patches that a training clip is without, drawn at random."""
    balance: Literal["none", "sampling", "loss"] = "none"
    """What is done for rare classes, by the counts of the clips that exist. sampling: clips of rare classes come more
    often, as AudioSet's recipes have it. loss: they weigh more."""
    lr_video: float = 1.0
    """Learning rate of the video encoder relative to that of the audio encoder; without one it is not used. Of a shared
    encoder (`model.shared_encoder`): of what is the picture's alone, its embedding and last LayerNorm."""
    ema: float = 0.0
    """Decay a step of an exponential average of the weights, which is scored too; 0: none."""
    average: float = 0.25
    """Share of the steps, at the end, over which weights are averaged to be scored too; 0: none."""
    validation: float = 0.1
    """Share of the training files, by a hash of their names, that is held back to choose the best weights; 0: none."""
    val_root: str | None = None
    """Clips that choose the best weights instead; 'test': the held-out ones that the result is reported on."""
    crops: int = 3
    """Windows in time, evenly spaced, of a held-out clip, over which its scores are averaged; the centre alone is
    scored too. 1: the centre only, enough for clips no longer than the window."""

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
