"""Data settings: where clips come from and how they are processed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from diffmavil.config.checks import require


@dataclass(frozen=True)
class AugmentConfig:
    """Random augmentation of training batches on the device; all off by default."""

    colour: float = 0.0
    """Vary brightness, contrast and saturation by up to this fraction; 0: off."""
    roll: bool = False
    """Roll the spectrogram in time by a random number of frames."""
    time_mask: int = 0
    """SpecAugment: most frames of the spectrogram that are masked; 0: none."""
    mel_mask: int = 0
    """SpecAugment: most mel bins of the spectrogram that are masked; 0: none."""

    def __post_init__(self) -> None:
        require(0 <= self.colour <= 1, "data.augment.colour", self.colour, "in [0, 1]")
        require(self.time_mask >= 0, "data.augment.time_mask", self.time_mask, ">= 0")
        require(self.mel_mask >= 0, "data.augment.mel_mask", self.mel_mask, ">= 0")


DecoderName = Literal["pyav", "torchcodec", "dali"]


@dataclass(frozen=True)
class DataConfig:
    root: str = "synthetic"
    """Folder of videos or audio files, CSV (path,start,duration,labels), prepared folder or its URL, or 'synthetic'."""
    more: tuple[str, ...] = ()
    """Further sets to mix in."""
    weights: tuple[float, ...] = ()
    """Relative weight of each set in training, root first. Empty: in proportion to their numbers of clips."""
    eval_root: str | None = None
    """Held-out clips for evaluation and the report. None: the synthetic held-out split, or else a slice of root."""
    cache: str = "~/.cache/diffmavil"
    """Folder for the synthetic set and measured statistics."""
    synthetic_train: int = 768
    synthetic_eval: int = 384
    workers: int = 2
    """Decoding processes per rank; 0: decode in the training process."""
    prefetch: int = 4
    """Batches that each worker keeps ready."""
    decoder: Literal["pyav", "torchcodec", "dali", "auto"] = "pyav"
    """Decoder of prepared clips; plain files use pyav. auto: the fastest that is installed and fits the device."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Range of the random spatial crop's area, relative to the frame; the same crop for all frames."""
    flip: bool = True
    crops_kept: int = 0
    """0: a new crop each time, nothing is kept. Else the number of random crops per training clip, used in turn by its
    epochs; each is decoded once and kept in memory that all decoding processes of a rank share."""
    augment: AugmentConfig = AugmentConfig()
    max_bad_share: float = 0.2
    """Stop the run when more than this fraction of the clips tried could not be used."""
    stats_clips: int = 256
    """Clips to measure the audio statistics on, if model.audio.mean is None and the set does not provide them."""
    deadline: float = 60.0
    """Seconds allowed for decoding a clip before it counts as bad."""
    remote_cache_gb: float = 50.0
    """Most GB that data.cache keeps of clips read from a URL; 0: nothing is kept."""

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        require(0 < low <= high <= 1, "data.crop_scale", self.crop_scale, "two shares, 0 < low <= high <= 1")
        require(self.workers >= 0, "data.workers", self.workers, ">= 0")
        require(self.prefetch >= 1, "data.prefetch", self.prefetch, ">= 1")
        require(self.crops_kept >= 0, "data.crops_kept", self.crops_kept, ">= 0")
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
