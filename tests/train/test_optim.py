import pytest
import torch
from torch import nn

from diffmavil.config import OptimConfig
from diffmavil.optim import learning_rate, make_optimizer, parameter_groups


def test_learning_rate_warms_up_to_the_peak_and_falls_to_the_end():
    config = OptimConfig(lr=1.0, min_lr=0.1, warmup=0.1)
    assert learning_rate(config, 0.05) == pytest.approx(0.5)
    assert learning_rate(config, 0.1) == pytest.approx(1.0)
    assert learning_rate(config, 0.55) == pytest.approx(0.55)
    assert learning_rate(config, 1.0) == pytest.approx(0.1)


def test_no_warmup_starts_at_the_peak():
    assert learning_rate(OptimConfig(lr=1.0, warmup=0.0), 0.0) == pytest.approx(1.0)


def test_only_matrices_decay_and_each_parameter_is_in_one_group():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    model.register_parameter("cls", nn.Parameter(torch.zeros(1, 1, 4)))
    decay, exempt = parameter_groups(model, 0.05)
    assert [p is model[0].weight for p in decay["params"]] == [True]
    assert decay["weight_decay"] == 0.05
    assert exempt["weight_decay"] == 0.0
    together = [id(p) for group in (decay, exempt) for p in group["params"]]
    assert sorted(together) == sorted(id(p) for p in model.parameters())


def test_found_inf_leaves_parameters_and_moments_untouched():
    """The step relies on this contract between torch's GradScaler and its fused optimisers."""
    model = nn.Linear(3, 3)
    optimizer = make_optimizer(model, OptimConfig())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    before = [p.detach().clone() for p in model.parameters()]
    moments = [s["exp_avg"].clone() for s in optimizer.state.values()]
    steps = [s["step"].clone() for s in optimizer.state.values()]
    model.weight.grad = torch.full((3, 3), torch.nan)
    optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.step()
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, new)
    for old, state in zip(moments, optimizer.state.values(), strict=True):
        assert torch.equal(old, state["exp_avg"])
    for old, state in zip(steps, optimizer.state.values(), strict=True):
        assert torch.equal(old, state["step"])
