"""Philox, add_noise and random_mask: kernels against references, under the sanitizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from maekernels import philox
from maekernels._triton import jit
from maekernels.add_noise import _add_noise, _add_noise_backward, _launch_add_noise, _launch_add_noise_backward
from maekernels.philox import philox_normal, philox_words
from maekernels.random_mask import _launch_random_mask, _random_mask
from tests.ops.mae_oracle import assert_same, assert_within

if TYPE_CHECKING:
    import triton.language as tl


@jit
def words_kernel(seed_ptr, out_ptr, sample, BLOCK: tl.constexpr):
    block = tl.arange(0, BLOCK)
    w0, w1, w2, w3 = philox_words(tl.load(seed_ptr), 6, sample, block)
    tl.store(out_ptr + block * 4 + 0, w0.to(tl.int64))
    tl.store(out_ptr + block * 4 + 1, w1.to(tl.int64))
    tl.store(out_ptr + block * 4 + 2, w2.to(tl.int64))
    tl.store(out_ptr + block * 4 + 3, w3.to(tl.int64))


@jit
def normal_kernel(seed_ptr, out_ptr, sample, BLOCK: tl.constexpr):
    element = tl.arange(0, BLOCK)
    tl.store(out_ptr + element, philox_normal(tl.load(seed_ptr), sample, element))


@pytest.mark.parametrize("sample", [0, 2**32 + 5], ids=["small-sample", "large-sample"])
@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1], ids=lambda seed: f"seed-{seed}")
def test_words_are_the_same_stream(seed, sample):
    out = torch.empty(256, dtype=torch.int64)
    words_kernel[(1,)](torch.tensor(seed), out, sample, BLOCK=64)
    assert_same(out, philox.uint32(seed, 256, samples=torch.tensor([sample]), stream=6)[0])


def test_normals_are_the_same_stream():
    out = torch.empty(1024)
    normal_kernel[(1,)](torch.tensor(7), out, 3, BLOCK=1024)
    torch.testing.assert_close(out, philox.normal(7, 1024, samples=torch.tensor([3]))[0], rtol=0, atol=5e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(3, 5, 16), (2, 7), (3,), (2, 2048), (2, 3, 1501), (0, 4), (2, 0)], ids=str)
def test_add_noise(shape, dtype):
    x0 = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    alpha_bar = torch.tensor([0.6, 0.0, 1.0])[: shape[0]]
    args = (alpha_bar, torch.tensor(2**40 + 5), 2**32 - 1)
    expected = _add_noise(x0.double(), *args)
    assert_within(_launch_add_noise(x0, *args), expected, ulps=64 if dtype == torch.float32 else 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(3, 5, 16), (3,), (2, 5000), (0, 4)], ids=str)
def test_add_noise_backward(shape, dtype):
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    args = (grad, torch.tensor([0.6, 0.0, 1.0])[: shape[0]])
    torch.testing.assert_close(_launch_add_noise_backward(*args), _add_noise_backward(*args))


def grouping(kind: str, length: int) -> torch.Tensor | None:
    token = torch.arange(length)
    tube, block = token % 7 if length >= 7 else token, token // 7
    return {"plain": None, "tube": tube[None], "rectangle": torch.stack([tube, block]).int()}[kind]


@pytest.mark.parametrize("kind", ["plain", "tube", "rectangle"])
@pytest.mark.parametrize(
    ("length", "keep"), [(37, 9), (64, 0), (64, 64), (1, 1), (200, 51), (1568, 314), (4100, 7)], ids=str
)
def test_random_mask(length, keep, kind):
    args = (3, length, keep, torch.tensor(2**40 + 5), 2**32 - 1, grouping(kind, length))
    for found, expected in zip(_launch_random_mask(*args), _random_mask(*args), strict=True):
        assert_same(found, expected)


def test_random_mask_of_nothing():
    for batch, length in ((0, 8), (2, 0)):
        keep, mask = _launch_random_mask(batch, length, 0, torch.tensor(1), 0, None)
        assert (keep.shape, mask.shape) == ((batch, 0), (batch, length))
