"""The check behind every setting."""

from __future__ import annotations


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raise `ValueError` naming the setting unless `ok`."""
    if not ok:
        raise ValueError(f"{name}={value!r}: must be {allowed}")
