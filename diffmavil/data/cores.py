"""How many cores this process may use."""

from __future__ import annotations

import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Microseconds of all cores together, or "max", and in how many."""


def usable_cores() -> int:
    """Cores that this process may use: those it is bound to, or fewer by the quota of its container."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = map(int, _QUOTA.read_text().split())
    except (OSError, ValueError):  # no container, or no quota
        return bound
    return min(bound, max(1, -(-quota // period)))
