"""These tests put a recording driver in the place of Triton's, for the rest of the process."""

from __future__ import annotations

import os

import pytest

if os.environ.get("MAEKERNELS_AOT") != "1" or os.environ.get("TRITON_INTERPRET") == "1":
    pytest.exit("tests/aot needs a process of its own, without TRITON_INTERPRET: MAEKERNELS_AOT=1 pytest tests/aot", 4)
