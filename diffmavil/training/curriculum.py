"""The masking-ratio curriculum: how many tokens stay visible, as a pure function of progress (samples seen)."""

from __future__ import annotations

import math

from diffmavil.config import RatioSchedule


def mask_ratio(schedule: RatioSchedule, progress: float) -> float:
    """Share of masked tokens at `progress` in [0, 1].

    Progress is cut into `schedule.levels` equal stretches; the first has exactly `start`, the last exactly `end`, so
    that a run sees at most `levels` ratios and their mean over the run is that of the continuous schedule.
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress={progress!r}: must be in [0, 1]")
    # A hair more: where a stretch begins, progress * levels may come out just below the whole number that it is.
    level = min(int(progress * schedule.levels + 1e-9), schedule.levels - 1)
    u = level / (schedule.levels - 1) if schedule.levels > 1 else 0.5
    shape = {
        "constant": 0.0,
        "linear": u,
        "cosine": (1 - math.cos(math.pi * u)) / 2,
        "step": float(u >= 0.5),
    }[schedule.kind]
    return schedule.start + (schedule.end - schedule.start) * shape


def keep_count(schedule: RatioSchedule, progress: float, tokens: int) -> int:
    """Visible tokens out of `tokens` at `progress`: at least one visible, at least one masked."""
    keep = round((1 - mask_ratio(schedule, progress)) * tokens)
    return min(max(keep, 1), tokens - 1)


def level_progress(schedule: RatioSchedule) -> list[float]:
    """One progress value inside each level, for averages over the whole schedule."""
    return [(level + 0.5) / schedule.levels for level in range(schedule.levels)]


def mixed_counts(schedule: RatioSchedule, mix: tuple[float, ...], progress: float, tokens: int) -> tuple[int, ...]:
    """Visible tokens at `progress` of the runs of samples that take the shifts of `mix` in turn."""
    ratio = mask_ratio(schedule, progress)
    return tuple(min(max(round((1 - ratio - shift) * tokens), 1), tokens - 1) for shift in mix)
