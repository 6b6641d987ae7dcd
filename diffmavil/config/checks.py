"""The check used by every setting, and field metadata used by some."""

from __future__ import annotations

OMITTED = {"omitted": True}
"""Metadata of a setting that config.yaml omits while it has its default: files older than the setting lack it."""


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raise `ValueError` naming the setting unless `ok`."""
    if not ok:
        raise ValueError(f"{name}={value!r}: must be {allowed}")
