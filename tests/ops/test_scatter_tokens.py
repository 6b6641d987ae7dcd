"""scatter_tokens against writing rows one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maekernels import gather_tokens, scatter_tokens
from maekernels.scatter_tokens import _fill_grad, _scatter_tokens
from tests.ops.mae_oracle import assert_same, assert_within, random_ids

SHAPES = [(3, 17, 40, 5), (2, 8, 1, 8), (1, 1, 7, 1), (2, 9, 16, 0), (0, 9, 16, 2)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make(batch: int, keep: int, dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, keep, dim, generator=torch.Generator().manual_seed(0)).to(dtype)


def oracle(values: Tensor, ids: Tensor, length: int, fill: float | Tensor) -> Tensor:
    row = fill if isinstance(fill, Tensor) else torch.full((values.shape[2],), fill, dtype=values.dtype)
    samples = []
    for sample, places in zip(values, ids.tolist(), strict=True):
        rows = [sample[places.index(n)] if n in places else row for n in range(length)]
        samples.append(torch.stack(rows))
    return torch.stack(samples) if samples else values.new_empty(0, length, values.shape[2])


@pytest.mark.parametrize("fill", [0.0, -1.5, "row"], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "length", "dim", "keep"), SHAPES, ids=str)
def test_forward(batch, length, dim, keep, dtype, fill):
    values, ids = make(batch, keep, dim, dtype), random_ids(batch, length, keep)
    fill = torch.randn(dim).to(dtype) if fill == "row" else fill
    out = scatter_tokens(values, ids, length, fill)
    assert_same(out, oracle(values, ids, length, fill))
    assert_same(scatter_tokens(values, ids, length, fill, backend="torch"), out)


def test_undoes_gather():
    x, ids = make(3, 8, 5), random_ids(3, 8, 8)
    assert_same(scatter_tokens(gather_tokens(x, ids), ids, 8), x)


def test_gradients():
    values, fill, ids = make(3, 5, 7).requires_grad_(), torch.randn(7, requires_grad=True), random_ids(3, 11, 5)
    weight = torch.randn(3, 11, 7)
    found = torch.autograd.grad(scatter_tokens(values, ids, 11, fill), (values, fill), weight)
    wide = [t.detach().double().requires_grad_() for t in (values, fill)]
    expected = torch.autograd.grad(oracle(wide[0], ids, 11, wide[1]), wide, weight.double())
    assert_same(found[0].double(), expected[0])
    assert_within(found[1], expected[1], ulps=4, scale=5)


def test_fill_of_another_type_keeps_its_gradient():
    """Under autocast the values are bfloat16 and the mask token float32."""
    values, fill, ids = make(2, 3, 4, torch.bfloat16), torch.randn(4, requires_grad=True), random_ids(2, 6, 3)
    out = scatter_tokens(values, ids, 6, fill)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert fill.grad is not None
    assert_same(fill.grad, torch.full((4,), 6.0))


def test_gradcheck():
    values = make(2, 3, 4).double().requires_grad_()
    fill = torch.randn(4, dtype=torch.float64, requires_grad=True)
    ids = random_ids(2, 6, 3)
    assert torch.autograd.gradcheck(lambda v, f: scatter_tokens(v, ids, 6, f), (values, fill))


@pytest.mark.parametrize("view", [lambda x: x.mT, lambda x: x[:, ::2], lambda x: x[..., 1:]], ids=["mT", "rows", "cut"])
def test_strided(view):
    values = view(make(3, 12, 12))
    ids = random_ids(3, 20, values.shape[1], torch.int64)
    assert_same(scatter_tokens(values, ids, 20), oracle(values, ids, 20, 0.0))


def test_opcheck():
    values, row, ids = make(2, 3, 4).requires_grad_(), torch.randn(4, requires_grad=True), random_ids(2, 6, 3)
    torch.library.opcheck(_scatter_tokens, (values, ids, 6, 0.0, row))
    torch.library.opcheck(_scatter_tokens, (values, ids, 6, 1.0, None))
    torch.library.opcheck(_fill_grad, (torch.randn(2, 6, 4), ids))


def test_compile():
    def loss(values, fill, ids):
        return scatter_tokens(values, ids, 9, fill).square().sum()

    args = make(2, 3, 4).requires_grad_(), torch.randn(4, requires_grad=True)
    ids = random_ids(2, 9, 3)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(*(torch.autograd.grad(f(*args, ids), args) for f in (compiled, loss)), strict=True):
        assert_same(a, b)


def test_export():
    class Scatter(torch.nn.Module):
        def forward(self, values, ids):
            return scatter_tokens(values, ids, 9, 0.5)

    values, ids = make(2, 3, 4), random_ids(2, 9, 3)
    exported = torch.export.export(Scatter(), (values, ids)).module()
    assert_same(exported(values + 1, ids), oracle(values + 1, ids, 9, 0.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.zeros(2, 3)}, r"values=float32\[2, 3\] on cpu: .*\[B, K, D\]"),
        ({"ids": torch.zeros(2, 4, dtype=torch.int32)}, r"ids=int32\[2, 4\].*\[B, K\] of values=float32\[2, 3, 4\]"),
        ({"ids": torch.full((2, 3), 9)}, r"ids=values in \[9, 9\]: must be in \[0, 9\)"),
        ({"length": 2}, r"length=2: must be at least the K=3"),
        ({"fill": torch.zeros(5)}, r"fill=float32\[5\] on cpu: must be a number or a float tensor \[4\]"),
        ({"fill": torch.zeros(4, dtype=torch.int64)}, r"fill=int64"),
    ],
    ids=["rank", "count", "range", "length", "fill-size", "fill-type"],
)
def test_bad_input(change, message):
    args = {"values": torch.zeros(2, 3, 4), "ids": random_ids(2, 9, 3), "length": 9} | change
    with pytest.raises(ValueError, match=message):
        scatter_tokens(**args)
