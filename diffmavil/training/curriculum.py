"""The masking-ratio curriculum: how many tokens stay visible, as a pure function of progress (samples seen)."""

from __future__ import annotations

import math
from dataclasses import replace

from diffmavil.config import MaskConfig, RatioSchedule


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


def mixed_counts(mask: MaskConfig, schedule: RatioSchedule, progress: float, tokens: int) -> tuple[int, ...]:
    """Visible tokens at `progress` of the runs of samples that take the shifts of `mask.mix` in turn.

    schedule: `mask.video` or `mask.audio`.
    """
    ratio, scheduled = mask_ratio(schedule, progress), keep_count(schedule, progress, tokens)
    least = min(scheduled, max(1, round(mask.least_visible * tokens)))
    return tuple(min(max(round((1 - ratio - shift) * tokens), least), tokens - 1) for shift in mask.mix)


def raised_counts(mask: MaskConfig, schedule: RatioSchedule, tokens: int) -> str | None:
    """What `mask.least_visible` changes of `mask.mix` over the run, in words; None: nothing."""
    free = replace(mask, least_visible=0.0)
    found = [
        (kept, wanted)
        for progress in level_progress(schedule)
        for kept, wanted in zip(
            mixed_counts(mask, schedule, progress, tokens), mixed_counts(free, schedule, progress, tokens), strict=True
        )
    ]
    raised = [(kept, wanted) for kept, wanted in found if kept > wanted]
    if not raised:
        return None
    kept, wanted = min(raised, key=lambda pair: pair[1])
    return (
        f"mask.mix would leave {wanted} of {tokens} tokens visible: mask.least_visible={mask.least_visible:g} leaves "
        f"{kept}, for {len(raised) / len(found):.0%} of the clips"
    )
