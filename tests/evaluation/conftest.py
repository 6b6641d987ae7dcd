"""What is evaluated here."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffmavil.config import Config
from tests.runs import very_small


@pytest.fixture(scope="module")
def config(cache: Path) -> Config:
    return very_small(cache)
