"""gather_tokens and scatter_tokens: kernels against references, under the sanitizer."""

from __future__ import annotations

import pytest
import torch
from sanitizer import unbacked_zeros
from torch import Tensor

from maekernels._tokens import launch_inverse
from maekernels.gather_tokens import _gather_tokens, _launch_gather
from maekernels.scatter_tokens import (
    _fill_grad,
    _launch_fill_grad,
    _launch_scatter,
    _scatter_tokens,
)
from tests.ops.mae_oracle import assert_same, assert_within, random_ids

SHAPES = [(3, 17, 40, 5), (2, 8, 1, 8), (2, 9, 16, 0), (2, 70, 192, 33), (1, 1100, 64, 1030), (2, 5, 1536, 2)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
EVERY = pytest.mark.parametrize(("batch", "length", "dim", "keep"), SHAPES, ids=str)


def make(batch: int, length: int, dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, length, dim, generator=torch.Generator().manual_seed(0)).to(dtype)


@EVERY
def test_inverse(batch, length, dim, keep):
    ids = random_ids(batch, length, keep)
    inverse = launch_inverse(ids, length)
    for row, places in zip(inverse.tolist(), ids.tolist(), strict=True):
        expected = {n: k for k, n in enumerate(places)}
        assert row == [expected.get(n, -1) for n in range(length)]


def test_an_id_that_is_none_writes_nowhere():
    """The sanitizer knows where each argument ends; a neighbouring sample's row would have the wrong place in it."""
    ids = torch.tensor([[0, 5, 2], [-1, 3, 1], [4, 7, -6]], dtype=torch.int32)
    assert launch_inverse(ids, 5).tolist() == [[0, -1, 2, -1, -1], [-1, 2, -1, 1, -1], [-1, -1, -1, -1, 0]]


def test_what_is_gathered_by_an_id_that_is_none_is_nan():
    x, ids = make(2, 5, 40), torch.tensor([[0, 5, 2], [-1, 3, 2**31 - 1]], dtype=torch.int32)
    found, wrong = _launch_gather(x, ids), (ids < 0) | (ids >= 5)
    assert found[wrong].isnan().all()
    assert_same(found[~wrong], x[[0, 0, 1], [0, 2, 3]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@EVERY
def test_gather(batch, length, dim, keep, dtype):
    x, ids = make(batch, length, dim, dtype), random_ids(batch, length, keep)
    assert_same(_launch_gather(x, ids), _gather_tokens(x, ids))


@pytest.mark.parametrize("fill", [0.0, -1.5, None], ids=["zero", "number", "row"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@EVERY
def test_scatter(batch, length, dim, keep, dtype, fill):
    values, ids = make(batch, keep, dim, dtype), random_ids(batch, length, keep)
    row = torch.randn(dim).to(dtype) if fill is None else None
    args = (values, ids, length, fill or 0.0, row)
    assert_same(_launch_scatter(*args), _scatter_tokens(*args))


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@EVERY
def test_fill_grad(batch, length, dim, keep, dtype):
    grad, ids = make(batch, length, dim, dtype), random_ids(batch, length, keep)
    assert_within(_launch_fill_grad(grad, ids), _fill_grad(grad.double(), ids), ulps=4, scale=length)


def test_float64_keeps_its_digits():
    """A number, and the sum of a gradient, that float32 does not hold."""
    values, ids = torch.randn(2, 3, 16, dtype=torch.float64), torch.tensor([[0, 2, 5], [1, 2, 3]], dtype=torch.int32)
    for fill in (0.1, 1e39):
        assert_same(_launch_scatter(values, ids, 8, fill, None), _scatter_tokens(values, ids, 8, fill, None))
    grad = torch.randn(2, 8, 16, dtype=torch.float64)
    torch.testing.assert_close(_launch_fill_grad(grad, ids), _fill_grad(grad, ids), rtol=1e-14, atol=1e-14)


def test_fill_grad_of_many_parts():
    """More rows than one part of the sum takes."""
    grad, ids = make(8, 5000, 64), random_ids(8, 5000, 100)
    assert_within(_launch_fill_grad(grad, ids), _fill_grad(grad.double(), ids), ulps=16, scale=200)


@pytest.mark.parametrize("view", [lambda x: x.mT, lambda x: x[:, ::2], lambda x: x[..., 1:]], ids=["mT", "rows", "cut"])
def test_strided(view):
    x = view(make(3, 12, 12))
    ids = random_ids(3, x.shape[1], 4, torch.int64)
    assert_same(_launch_gather(x, ids), _gather_tokens(x, ids))
    places = random_ids(3, 20, x.shape[1])
    assert_same(_launch_scatter(x, places, 20, 0.0, None), _scatter_tokens(x, places, 20, 0.0, None))
    torch.testing.assert_close(_launch_fill_grad(x, ids), _fill_grad(x, ids))


def test_empty():
    x, ids = make(0, 9, 16), random_ids(0, 9, 2)
    assert _launch_gather(x, ids).shape == (0, 2, 16)
    assert _launch_scatter(x[:, :2], ids, 9, 0.0, None).shape == (0, 9, 16)
    assert_same(_launch_fill_grad(x, ids), torch.zeros(16))


def test_addresses_beyond_32_bits():
    x = unbacked_zeros(3, 2**20, 1024, dtype=torch.bfloat16)
    x[2, -1] = 1
    ids = torch.tensor([[0], [1], [2**20 - 1]])
    out = _launch_gather(x, ids)
    assert out.sum(dim=(1, 2)).tolist() == [0, 0, 1024]
