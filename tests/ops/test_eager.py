"""Ops called past torch.library's Python layer: the same bits, gradients and errors as the registered op gives."""

from typing import Any

import pytest
import torch

from maekernels import _eager, gather_tokens, masked_mse, scatter_tokens
from maekernels._native import ABSENT
from maekernels.masked_mse import _masked_mse
from maekernels.scatter_tokens import _scatter_tokens

IDS = torch.tensor([[3, 0], [1, 4]])


def tokens():
    return torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()


def test_scatter_equals_the_registered_op():
    row = torch.ones(3, requires_grad=True)
    values = tokens()
    found = scatter_tokens(values, IDS, 5, row)
    expected = _scatter_tokens(values, IDS, 5, 0.0, row)
    assert torch.equal(found, expected)
    weight = torch.arange(30.0).view(2, 5, 3)
    for ours, theirs in zip(
        torch.autograd.grad(found, (values, row), weight),
        torch.autograd.grad(expected, (values, row), weight),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


def test_without_gradients_nothing_is_recorded():
    with torch.no_grad():
        assert scatter_tokens(tokens(), IDS, 5).grad_fn is None
    assert gather_tokens(tokens().detach(), IDS % 2).grad_fn is None


def test_torch_library_s_layer_is_not_gone_through(monkeypatch):
    if ABSENT:
        assert not _eager._ABLE
        return
    monkeypatch.setattr(type(_scatter_tokens), "__call__", lambda *args: pytest.fail("the registered op was called"))
    scatter_tokens(tokens(), IDS, 5).sum().backward()


@pytest.mark.filterwarnings("ignore")  # torch says that tracing is old, and that checked values are constants
def test_a_trace_has_the_registered_op(tmp_path):
    traced: Any = torch.jit.trace(lambda x: scatter_tokens(x, IDS, 5), (tokens(),))
    traced.save(str(tmp_path / "traced.pt"))
    assert "maekernels::scatter_tokens" in str(traced.graph)


def test_a_torch_without_the_private_names_goes_through_it(monkeypatch):
    monkeypatch.setattr(_eager, "_ABLE", False)
    monkeypatch.setattr(_eager, "_BelowAutograd", None)
    values = tokens()
    assert torch.equal(gather_tokens(scatter_tokens(values, IDS, 5), IDS), values)


def test_a_second_derivative_goes_through_both_ops():
    values = tokens()
    out = gather_tokens(scatter_tokens(values, IDS, 5), IDS)
    (first,) = torch.autograd.grad(out.square().sum(), values, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), values)
    assert torch.equal(second, torch.full_like(values, 2.0))


@pytest.mark.parametrize("op", ["public", "registered"])
def test_a_loss_without_a_second_derivative_says_so(op):
    pred, x = torch.zeros(1, 2, 4, requires_grad=True), torch.rand(1, 4, 2, 1)
    ids = torch.tensor([[0, 1]])
    if op == "public":
        loss = masked_mse(pred, x, ids, (2, 2), [0.0], [1.0], False)
    else:
        loss = _masked_mse(pred, x, ids, [2, 2], [0.0], [1.0], 0, False)
    (first,) = torch.autograd.grad(loss, pred, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        torch.autograd.grad(first.sum(), pred)
