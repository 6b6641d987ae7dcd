"""What decides the bytes of a prepared set; the same settings and the same videos give the same bytes."""

from __future__ import annotations

from dataclasses import dataclass

from diffmavil.config import Modalities, require

SAMPLE_RATE = 16_000
MELS = (64, 128)
"""Numbers of mel filters for which the statistics are measured."""
SMALLEST = 16
"""Pixels of the shorter side below which a picture is of no use: the size of a patch."""


@dataclass(frozen=True)
class Settings:
    """How clips are cut and coded, and how they are laid into shards."""

    modalities: Modalities = "av"
    """audio, video: only the sound or the picture; files need no other track, and sound files are taken too."""
    cut: float = 30.0
    """Longer clips are cut evenly into pieces of about this many seconds."""
    short_side: int = 256
    """Pixels of the shorter side; smaller pictures keep their size."""
    region: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    """Part of the upright picture that is kept: left, top, right and bottom, as shares of its width and height."""
    gop: int = 15
    """Frames from one keyframe to the next: what a random window decodes in vain."""
    crf: int = 23
    """x264's constant quality: lower is better and larger."""
    per_shard: int = 256
    """Rows of the list (files, without a CSV) in a shard."""
    drop_silent: bool = False
    """Leave out clips whose sound is digital silence."""

    def __post_init__(self) -> None:
        require(self.modalities in ("av", "audio", "video"), "--modalities", self.modalities, "av, audio or video")
        silent = not (self.drop_silent and self.modalities == "video")
        require(silent, "--drop-silent", self.drop_silent, "off with --modalities video: no sound is decoded")
        require(self.cut >= 1, "--cut", self.cut, ">= 1 second")
        even = self.short_side >= SMALLEST and self.short_side % 2 == 0
        require(even, "--short-side", self.short_side, f"even, and at least {SMALLEST}")
        left, top, right, bottom = self.region
        inside = 0 <= left < right <= 1 and 0 <= top < bottom <= 1
        require(inside, "--region", self.region, "left, top, right, bottom: shares that grow")
        require(self.gop >= 1, "--gop", self.gop, ">= 1")
        require(0 <= self.crf <= 51, "--crf", self.crf, "in [0, 51]")
        require(self.per_shard >= 1, "--per-shard", self.per_shard, ">= 1")
