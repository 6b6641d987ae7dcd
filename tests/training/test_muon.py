"""Muon beside torch's, and what it leaves alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from diffmavil.training.muon import Muon, orthogonal

SHAPES = [(24, 8), (8, 24), (8, 8), (24, 8)]


def matrices() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def gradients(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1 + step)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def moved(params: list[nn.Parameter], optimizer: torch.optim.Optimizer, steps: int = 4) -> list[Tensor]:
    for step in range(steps):
        for p, grad in zip(params, gradients(step), strict=True):
            p.grad = grad.clone()
        optimizer.step()
    return [p.detach() for p in params]


@pytest.mark.parametrize("ns_steps", [3, 5])
@pytest.mark.parametrize("faster", [False, True], ids=["float32", "bfloat16"])
def test_it_is_torchs(monkeypatch: pytest.MonkeyPatch, ns_steps: int, faster: bool) -> None:
    monkeypatch.setattr("diffmavil.training.muon.has_bf16_units", lambda _: faster)
    ours, theirs, before = matrices(), matrices(), matrices()
    settings = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95, "ns_steps": ns_steps}
    found = moved(ours, Muon(ours, **settings))
    expected = moved(theirs, torch.optim.Muon(theirs, **settings, adjust_lr_fn="match_rms_adamw"))
    for x, y, start in zip(found, expected, before, strict=True):
        # torch's computes in bfloat16 always.
        assert (x - y).norm() < 0.03 * (y - start).norm()


def test_singular_values_are_near_one() -> None:
    x = torch.randn(3, 40, 16, generator=torch.Generator().manual_seed(0))
    found = orthogonal(x, 5)
    assert found.shape == x.shape
    values = torch.linalg.svdvals(found.float())
    assert values.min() > 0.6
    assert values.max() < 1.3
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(found.float().flatten(1), (u @ v).flatten(1)).min() > 0.97


@pytest.mark.parametrize("on_device", [False, True], ids=["host", "device"])
def test_a_step_that_is_not_finite_changes_nothing(on_device: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if on_device:
        monkeypatch.setattr("diffmavil.training.muon._read_by_host", lambda _: False)
    params = matrices()
    optimizer = Muon(params, 0.02, weight_decay=0.1)
    optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]
    moved(params, optimizer, steps=2)
    before, state = [p.detach().clone() for p in params], copy.deepcopy(optimizer.state_dict())
    optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
    for bad in (float("nan"), float("inf")):
        for p in params:
            p.grad = torch.full_like(p, bad)
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    for index, kept in optimizer.state_dict()["state"].items():
        assert torch.equal(kept["momentum_buffer"], state["state"][index]["momentum_buffer"])
    optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]
    told, plain = matrices(), matrices()
    asked = Muon(told, 0.02, weight_decay=0.1)
    asked.found_inf = torch.zeros(())  # type: ignore[attr-defined]
    for x, y in zip(moved(told, asked), moved(plain, Muon(plain, 0.02, weight_decay=0.1)), strict=True):
        torch.testing.assert_close(x, y)


def test_what_has_no_gradient_stays() -> None:
    params = matrices()
    before = [p.detach().clone() for p in params]
    params[0].grad = torch.ones_like(params[0])
    Muon(params, 0.02).step()
    assert not torch.equal(params[0], before[0])
    assert all(torch.equal(p, q) for p, q in zip(params[1:], before[1:], strict=True))


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"params: must be matrices, got one of shape \[3\]"):
        Muon([nn.Parameter(torch.zeros(3))], 0.02)
