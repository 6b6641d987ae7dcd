"""transformers, for tests that compare with its models."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn


def transformers() -> Any:
    """The package, or the test is skipped. Its random weights are made by `randomised`.

    It imports torchaudio where that is installed, whose compiled part does not load beside every torch: a stand-in.
    """
    name = "torchaudio._extension"
    if name not in sys.modules:
        stand_in = ModuleType(name)
        stand_in.__dict__.update(
            _IS_TORCHAUDIO_EXT_AVAILABLE=False, _IS_ALIGN_AVAILABLE=False, fail_if_no_align=lambda function: function
        )
        sys.modules[name] = stand_in
    return pytest.importorskip("transformers", reason="transformers is not installed")


def randomised(model: nn.Module) -> Any:
    """Weights far from where training starts, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            with torch.no_grad():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(0.2 * noise + float(parameter.dim() == 1))
    return model.eval()
