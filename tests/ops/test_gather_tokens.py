"""gather_tokens against torch.gather with repeated indices."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

from maekernels import gather_tokens
from maekernels.gather_tokens import _gather_tokens
from tests.ops.mae_oracle import assert_same, gather, random_ids

SHAPES = [(3, 17, 40, 5), (2, 8, 1, 8), (1, 1, 7, 1), (2, 9, 16, 0), (0, 9, 16, 2)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def make(batch: int, length: int, dim: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(batch, length, dim, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "length", "dim", "keep"), SHAPES, ids=str)
def test_forward_and_gradient(batch, length, dim, keep, dtype):
    x, ids = make(batch, length, dim, dtype).requires_grad_(), random_ids(batch, length, keep)
    out, expected = gather_tokens(x, ids), gather(x, ids)
    assert_same(out, expected)
    weight = torch.randn_like(out)
    assert_same(*(torch.autograd.grad(y, x, weight)[0] for y in (out, expected)))
    assert_same(gather_tokens(x, ids, backend="torch"), out)


def test_gradcheck():
    x = make(2, 5, 3, torch.float64).requires_grad_()
    ids = random_ids(2, 5, 3)
    assert torch.autograd.gradcheck(lambda x: gather_tokens(x, ids), x)
    assert torch.autograd.gradgradcheck(lambda x: gather_tokens(x, ids).square(), x)


@pytest.mark.parametrize("view", [lambda x: x.mT, lambda x: x[:, ::2], lambda x: x[..., 1:]], ids=["mT", "rows", "cut"])
def test_strided(view):
    x = view(make(3, 12, 12))
    ids = random_ids(3, x.shape[1], 4, torch.int64)
    assert_same(gather_tokens(x, ids), gather(x, ids))


def test_strided_gradient():
    x, ids = make(2, 6, 4).requires_grad_(), random_ids(2, 6, 3)
    grad = torch.randn(2, 4, 3).mT
    assert_same(*(torch.autograd.grad(f(x, ids), x, grad)[0] for f in (gather_tokens, gather)))


def test_autocast_keeps_the_type():
    with torch.autocast("cpu", torch.bfloat16):
        assert gather_tokens(make(2, 6, 4), random_ids(2, 6, 3)).dtype == torch.float32


def test_opcheck():
    torch.library.opcheck(_gather_tokens, (make(2, 6, 4).requires_grad_(), random_ids(2, 6, 3)))


def test_compile():
    x, ids = make(2, 6, 4).requires_grad_(), random_ids(2, 6, 3)
    compiled = torch.compile(gather_tokens, fullgraph=True, backend="aot_eager")
    assert_same(compiled(x, ids), gather(x, ids))
    assert_same(*(torch.autograd.grad(f(x, ids).square().sum(), x)[0] for f in (compiled, gather)))


def test_export():
    class Gather(torch.nn.Module):
        def forward(self, x, ids):
            return gather_tokens(x, ids)

    x, ids = make(2, 6, 4), random_ids(2, 6, 3)
    assert_same(torch.export.export(Gather(), (x, ids)).module()(x + 1, ids), gather(x + 1, ids))


@pytest.mark.parametrize(
    ("x", "ids", "message"),
    [
        (torch.zeros(2, 6), torch.zeros(2, 3, dtype=torch.int32), r"x=float32\[2, 6\] on cpu: .*\[B, N, D\]"),
        (torch.zeros(2, 6, 4, dtype=torch.int32), torch.zeros(2, 3, dtype=torch.int32), r"x=int32"),
        (torch.zeros(2, 6, 4), torch.zeros(3, 3, dtype=torch.int32), r"ids=int32\[3, 3\] on cpu: .*B=2"),
        (torch.zeros(2, 6, 4), torch.zeros(2, 3), r"ids=float32"),
        (torch.zeros(2, 6, 4), torch.full((2, 1), 6), r"ids=values in \[6, 6\]: must be in \[0, 6\)"),
    ],
    ids=["rank", "dtype", "batch", "float-ids", "range"],
)
def test_bad_input(x, ids, message):
    with pytest.raises(ValueError, match=message):
        gather_tokens(x, ids)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torch.func.jvp itself
def test_forward_mode_is_refused_and_not_silently_nothing():
    x, ids = make(2, 6, 4), random_ids(2, 6, 3)
    with pytest.raises(NotImplementedError, match="forward-mode derivatives"):
        torch.func.jvp(lambda x: gather_tokens(x, ids), (x,), (x,))
    with forward_ad.dual_level():
        assert_same(gather_tokens(x, ids), gather(x, ids))
        with pytest.raises(NotImplementedError, match="forward-mode derivatives"):
            gather_tokens(forward_ad.make_dual(x, x), ids)
