"""Which of csrc's and Triton's kernels a CUDA call takes, decided without a GPU."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from maekernels import _native_cuda
from maekernels.random_mask import NATIVE_LENGTH, _launch_native

MODULE = sys.modules[_launch_native.__module__]  # `maekernels.random_mask` as an attribute is the function


@pytest.fixture
def calls(monkeypatch) -> list[tuple[object, ...]]:
    """What is launched, by whom; the native ops are there and the current stream is 7."""
    made: list[tuple[object, ...]] = []
    native = SimpleNamespace(random_mask=lambda *args: made.append(("native", *args)))
    monkeypatch.setattr(MODULE, "native_ops", lambda: native)
    monkeypatch.setattr(MODULE, "runs_native", lambda device: True)
    monkeypatch.setattr(MODULE, "current_stream", lambda device: 7)
    monkeypatch.setattr(MODULE, "_launch_random_mask", lambda *args: made.append(("triton", *args)))
    return made


def test_native_on_the_current_stream(calls):
    seed = torch.tensor(3)
    _launch_native(2, NATIVE_LENGTH, 5, seed, 1, None)
    assert calls == [("native", 2, NATIVE_LENGTH, 5, seed, 1, None, 7)]


def test_groups_are_made_contiguous(calls):
    groups = torch.zeros(8, 2, dtype=torch.int64).t()
    _launch_native(2, 8, 5, torch.tensor(3), 1, groups)
    (given,) = (value for value in calls[0] if isinstance(value, torch.Tensor) and value.dim() == 2)
    assert given.is_contiguous()


def test_long_samples_take_triton(calls):
    seed = torch.tensor(3)
    _launch_native(2, NATIVE_LENGTH + 1, 5, seed, 1, None)
    assert calls == [("triton", 2, NATIVE_LENGTH + 1, 5, seed, 1, None)]


def test_triton_where_nothing_is_built(calls, monkeypatch):
    monkeypatch.setattr(MODULE, "native_ops", lambda: None)
    _launch_native(2, 8, 5, torch.tensor(3), 1, None)
    assert calls[0][0] == "triton"


def test_triton_on_a_gpu_that_the_library_has_no_code_for(calls, monkeypatch):
    monkeypatch.setattr(MODULE, "runs_native", lambda device: False)
    _launch_native(2, 8, 5, torch.tensor(3), 1, None)
    assert calls[0][0] == "triton"


@pytest.mark.parametrize(
    ("capability", "driver", "why"),
    [
        ((9, 0), 13020, ""),
        ((9, 0), 13000, ""),
        ((7, 5), 13020, "it needs compute capability 8.0"),
        ((9, 0), 12080, "it was compiled with CUDA 13.1, and the driver has 12.8"),
    ],
)
def test_a_driver_older_than_the_runtime_takes_triton(monkeypatch, capability, driver, why):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: driver, raising=False)
    monkeypatch.setitem(sys.modules, "maekernels._C_cuda", SimpleNamespace(TOOLKIT=13010))
    _native_cuda.unfit.cache_clear()
    assert _native_cuda.unfit(torch.device("cuda", 0)) == why
    assert _native_cuda.runs_native(torch.device("cuda", 0)) == (not why)
    _native_cuda.unfit.cache_clear()


def test_the_switch_turns_native_code_off(monkeypatch):
    monkeypatch.setattr(_native_cuda, "_load", lambda: "loaded")
    monkeypatch.delenv("MAEKERNELS_NATIVE", raising=False)
    assert _native_cuda.native_ops() == "loaded"
    monkeypatch.setenv("MAEKERNELS_NATIVE", "0")
    assert _native_cuda.native_ops() is None
