"""Settings of the second stage: whose features a student predicts instead of patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from diffmavil.config.checks import require

EMA = "ema"
"""Value of `teacher.source`: the average of the student's own weights."""


@dataclass(frozen=True)
class TeacherConfig:
    """MAViL's second stage: a teacher sees whole clips, and the student predicts its features at masked positions."""

    stage: Annotated[Literal[1, 2], arg(aliases=["--stage"])] = 1
    """1: predict masked patches. 2: predict a teacher's features of them."""
    source: Annotated[str | None, arg(aliases=["--teacher"])] = None
    """Teacher of stage 2. A run, one of its checkpoints, its weights, or owner/name on the Hub: a frozen teacher. ema:
    the exponential moving average of the student's weights (data2vec). A run's config names the file that was found."""
    sha256: str | None = None
    """SHA-256 of the teacher's weights, filled in when a run begins. It resumes with no others."""
    decay: tuple[float, float] = (0.999, 0.9999)
    """Decay per step of the average, at first and after the ramp. As in data2vec for speech."""
    decay_ramp: float = 0.1
    """Fraction of the samples over which `decay` goes linearly from the first value to the second."""

    def __post_init__(self) -> None:
        require(self.stage in (1, 2), "teacher.stage", self.stage, "1 or 2")
        allowed = "None in stage 1: add --stage 2, or name a preset of it"
        require(self.stage == 2 or self.source is None, "teacher.source", self.source, allowed)
        require(all(0 <= d < 1 for d in self.decay), "teacher.decay", self.decay, "two numbers in [0, 1)")
        require(0 <= self.decay_ramp <= 1, "teacher.decay_ramp", self.decay_ramp, "in [0, 1]")

    @property
    def averaged(self) -> bool:
        """Whether the teacher is an average of the student."""
        return self.source == EMA
