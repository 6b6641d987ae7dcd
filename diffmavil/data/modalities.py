"""What is wanted of a clip: sound and picture, or one of them alone, and how much of it is enough."""

from __future__ import annotations

from diffmavil.config.model import Modalities, sees
from diffmavil.data.windows import MIN_SECONDS, MIN_SOUND_SECONDS, Span

HOLDS: dict[Modalities, str] = {"av": "picture and sound", "audio": "sound alone", "video": "picture alone"}
"""Each in words."""
_SLACK = 1e-6
"""Seconds: 2.3 + 0.5 - 2.3 is less than 0.5 in floating point."""


def least_seconds(modalities: Modalities) -> float:
    """Seconds below which a clip is of no use."""
    return MIN_SECONDS if sees(modalities) else MIN_SOUND_SECONDS


def too_short(modalities: Modalities, picture: Span, sound: Span) -> str:
    """Why a clip of these spans is of no use; "" for one that is. The span of what is not wanted is the other one."""
    common, least = picture.intersect(sound).length, least_seconds(modalities)
    if common >= least - _SLACK:
        return ""
    have = {
        "av": f"with both picture ({picture.length:.2f} s) and sound ({sound.length:.2f} s)",
        "audio": "of sound",
        "video": "of picture",
    }
    return f"only {common:.2f} s {have[modalities]}, at least {least} s are needed"
