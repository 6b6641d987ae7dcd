"""Every setting of a run, as frozen dataclasses; presets.py has the named ones.

A `Config` is complete: together with the step number it determines masks, noise, data order, learning rate and
ratio, so nothing else has to be restored on resume. Impossible values raise `ValueError` naming the field, what was
given and what is allowed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from diffmavil.config.checks import require
from diffmavil.config.data import AugmentConfig, DataConfig, DecoderName
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
from diffmavil.config.training import BatchConfig, MaskConfig, OptimConfig, RatioSchedule, TrainConfig

__all__ = [
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
    "MaskConfig",
    "Modalities",
    "ModelConfig",
    "OptimConfig",
    "RatioSchedule",
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
