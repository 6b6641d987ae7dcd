"""Every test here runs under the sanitizer; see `sanitizer.py` for what it finds."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.exit("tests/interpreter needs a process of its own: TRITON_INTERPRET=1 pytest tests/interpreter", 4)

from sanitizer import Sanitizer, installed


@pytest.fixture(autouse=True)
def sanitized() -> Iterator[Sanitizer]:
    """Check every launch of this test."""
    with installed() as sanitizer:
        yield sanitizer
