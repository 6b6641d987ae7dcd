"""Where the tests of the GPU run: on CUDA, or with GPU_TESTS_ON=cpu as a rehearsal on a CPU."""

from __future__ import annotations

import os

import pytest
import torch

DEVICE = torch.device(os.environ.get("GPU_TESTS_ON", "cuda"))
THERE = torch.cuda.is_available()

on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE.type == "cuda" and not THERE, reason="no CUDA device"),
]
"""`pytestmark` of their files."""

cuda_alone = pytest.mark.skipif(DEVICE.type != "cuda" or not THERE, reason="no CUDA device")
"""Graphs, streams, kernels: nothing that a CPU could rehearse."""
