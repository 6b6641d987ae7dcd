"""The check behind every setting, and a mark of some."""

from __future__ import annotations

OMITTED = {"omitted": True}
"""Metadata of a setting that stays out of config.yaml where it is as by default: files from before it have none."""


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raise `ValueError` naming the setting unless `ok`."""
    if not ok:
        raise ValueError(f"{name}={value!r}: must be {allowed}")
