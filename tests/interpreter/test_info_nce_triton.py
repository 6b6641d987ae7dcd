"""info_nce: kernels against references, under the sanitizer."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maekernels.info_nce import (
    _contrast,
    _contrast_backward,
    _launch_contrast,
    _launch_contrast_backward,
    _launch_unit,
    _launch_unit_backward,
    _unit_rows,
    _unit_rows_backward,
)
from tests.ops.mae_oracle import assert_within

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [
    pytest.param(5, 5, 0, True, 24, id="one-tile"),
    pytest.param(70, 70, 0, True, 100, id="edges"),
    pytest.param(130, 130, 0, False, 40, id="rows-only"),
    pytest.param(40, 160, 80, False, 24, id="third-of-four-ranks"),
]


def unit_rows(rows: int, dim: int, seed: int, dtype: torch.dtype) -> Tensor:
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 40), (2, 1), (2, 1500)], ids=str)
def test_unit_rows(shape, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    unit, inverse = _unit_rows(x.double())
    found, found_inverse = _launch_unit(x)
    assert_within(found, unit, ulps=2, scale=0.01)
    assert_within(found_inverse, inverse, ulps=8)
    expected = _unit_rows_backward(grad.double(), found.double(), found_inverse.double())
    assert_within(_launch_unit_backward(grad, found, found_inverse), expected, ulps=4, scale=inverse.max().item())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "n", "first", "both", "dim"), SIZES)
def test_contrast(m, n, first, both, dim, dtype):
    q, k = unit_rows(m, dim, 0, dtype), unit_rows(n, dim, 1, dtype)
    found = _launch_contrast(q, k, first, 0.1, both)
    for ours, expected in zip(found, _contrast(q.double(), k.double(), first, 0.1, both), strict=True):
        assert_within(ours, expected, ulps=64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "n", "first", "both", "dim"), SIZES)
def test_contrast_backward(m, n, first, both, dim, dtype):
    q, k = unit_rows(m, dim, 0, dtype), unit_rows(n, dim, 1, dtype)
    _, rows, columns = _contrast(q, k, first, 0.1, both)
    args = (first, 0.1, both)
    found = _launch_contrast_backward(torch.tensor(1.7), q, k, rows, columns, *args)
    wide = (q.double(), k.double(), rows.double(), columns.double())
    expected = _contrast_backward(torch.tensor(1.7), *wide, *args)
    for ours, grad in zip(found, expected, strict=True):
        # The weights are rounded to the type of the rows, then their products.
        assert_within(ours, grad, ulps=64 if dtype == torch.float32 else 4, scale=grad.abs().max().item())


def test_strips(monkeypatch):
    q, k = unit_rows(70, 24, 0, torch.float32), unit_rows(70, 24, 1, torch.float32)
    _, rows, columns = _contrast(q, k, 0, 0.1, True)
    args = (torch.tensor(1.0), q, k, rows, columns, 0, 0.1, True)
    whole = _launch_contrast_backward(*args)
    monkeypatch.setattr(sys.modules["maekernels.info_nce"], "_STRIP", 32 * 70)
    torch.testing.assert_close(_launch_contrast_backward(*args), whole)
