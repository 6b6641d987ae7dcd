"""Every setting of a run, as frozen dataclasses; presets.py defines the named ones.

A `Config` is complete: together with the step number it determines masks, noise, data order, learning rate and
mask ratio, so nothing else has to be restored on resume. Impossible values raise `ValueError` naming the field, the
value given and the values allowed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from diffmavil.config.checks import OMITTED, require
from diffmavil.config.data import AugmentConfig, DataConfig, DecoderName
from diffmavil.config.head import HeadConfig
from diffmavil.config.model import (
    AudioConfig,
    ContrastConfig,
    DecoderConfig,
    DiffusionConfig,
    EncoderConfig,
    Modalities,
    ModelConfig,
    VideoConfig,
)
from diffmavil.config.teacher import EMA, TeacherConfig
from diffmavil.config.training import BatchConfig, MaskConfig, OptimConfig, RatioSchedule, TrainConfig

__all__ = [
    "EMA",
    "AudioConfig",
    "AugmentConfig",
    "BatchConfig",
    "Config",
    "ContrastConfig",
    "DataConfig",
    "DecoderConfig",
    "DecoderName",
    "DiffusionConfig",
    "EncoderConfig",
    "FinetuneConfig",
    "HeadConfig",
    "MaskConfig",
    "Modalities",
    "ModelConfig",
    "OptimConfig",
    "RatioSchedule",
    "TeacherConfig",
    "TrainConfig",
    "VideoConfig",
    "require",
]


@dataclass(frozen=True)
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    data: DataConfig = field(default_factory=DataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig, metadata=OMITTED)

    def __post_init__(self) -> None:
        width = self.model.target_width
        allowed = "None in stage 1, which predicts patches"
        require(self.teacher.stage == 2 or width is None, "model.target_width", width, allowed)
        # xformers copies its mask for packed sequences from the host on every call, which a CUDA graph cannot capture.
        unfit = self.train.cuda_graph and self.mask.mix and self.model.attention == "xformers"
        require(not unfit, "model.attention", "xformers", "another with both train.cuda_graph and mask.mix")
        self._check_hidden()

    def _check_hidden(self) -> None:
        """SpecAugment masks at most the whole spectrogram."""
        audio, hidden = self.model.audio, self.data.augment
        if self.model.hears:
            frames, bins = f"at most model.audio.frames={audio.frames}", f"at most model.audio.mels={audio.mels}"
            require(hidden.time_mask <= audio.frames, "data.augment.time_mask", hidden.time_mask, frames)
            require(hidden.mel_mask <= audio.mels, "data.augment.mel_mask", hidden.mel_mask, bins)


@dataclass(frozen=True)
class FinetuneConfig(Config):
    """Config of a classifier. `model` is the pretrained model; its decoders, masks and contrast are not used.

    Raises:
        ValueError: a batch rule other than 'fixed' (the cost of a clip never changes), both --from and train.init, or
            stage 2.
    """

    head: HeadConfig = field(default_factory=HeadConfig)

    def __post_init__(self) -> None:
        self._check_hidden()
        require(self.batch.rule == "fixed", "batch.rule", self.batch.rule, "'fixed' in fine-tuning")
        require(self.batch.memory_gib is None, "batch.memory_gib", self.batch.memory_gib, "None in fine-tuning")
        require(self.teacher.stage == 1, "teacher.stage", self.teacher.stage, "1 in fine-tuning")
        require(self.train.ema == 0, "train.ema", self.train.ema, "0 in fine-tuning, where head.ema averages")
        alone = self.train.init is None or self.head.source == "none"
        require(alone, "train.init", self.train.init, f"None beside --from {self.head.source}")
