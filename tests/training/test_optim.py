import dataclasses

import pytest
import torch
from torch import nn

from diffmavil.config import OptimConfig
from diffmavil.config.presets import PRESETS
from diffmavil.model import DiffMAViL
from diffmavil.training.optim import (
    LR_SCALE,
    depth_of,
    learning_rate,
    make_optimizers,
    parameter_groups,
    skips_on_device,
)


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
    (optimizer,) = make_optimizers(model, OptimConfig())
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


@pytest.fixture(scope="module")
def tiny() -> DiffMAViL:
    torch.manual_seed(0)
    return DiffMAViL(PRESETS["diffmavil-tiny"].model)


@pytest.mark.parametrize("layer_decay", [1.0, 0.75])
def test_each_parameter_of_the_model_is_in_exactly_one_group(tiny, layer_decay):
    groups = parameter_groups(tiny, 0.05, layer_decay)
    together = [id(p) for group in groups for p in group["params"]]
    assert sorted(together) == sorted(id(p) for p in tiny.parameters())
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    matrices = {id(m.weight) for m in tiny.modules() if isinstance(m, nn.Linear)}
    assert decayed == matrices
    assert len(groups) == (2 if layer_decay == 1 else 2 * 6)  # patch embeddings, 4 blocks, what is above


def test_lower_blocks_learn_slower(tiny):
    scales = {
        id(p): group[LR_SCALE] for group in parameter_groups(tiny, 0.05, layer_decay=0.5) for p in group["params"]
    }
    named = {name: scales[id(p)] for name, p in tiny.named_parameters()}
    assert named["video.encoder.embed.proj.weight"] == named["audio.encoder.embed.cls"] == 0.5**5
    assert [named[f"audio.encoder.blocks.{i}.norm1.bias"] for i in range(4)] == [0.5**4, 0.5**3, 0.5**2, 0.5]
    above = ("video.encoder.norm.weight", "fusion.blocks.0.mlp.0.weight", "video.decoder.blocks.0.norm1.weight")
    assert {named[name] for name in above} == {1.0}
    assert depth_of("fusion.blocks.1.norm1.weight", encoder_depth=4) == 5


def test_muon_takes_the_matrices_of_blocks_and_adamw_the_rest(tiny):
    muon, adamw = make_optimizers(tiny, OptimConfig(name="muon"))
    taken = [[id(p) for group in o.param_groups for p in group["params"]] for o in (muon, adamw)]
    assert sorted(taken[0] + taken[1]) == sorted(id(p) for p in tiny.parameters())
    names = {id(p): name for name, p in tiny.named_parameters()}
    assert all("blocks" in names[p] and names[p].endswith("weight") for p in taken[0])
    assert len(taken[0]) == sum(isinstance(m, nn.Linear) for n, m in tiny.named_modules() if "blocks" in n)
    assert (skips_on_device(muon), skips_on_device(adamw)) == (True, True)


@pytest.mark.parametrize("name", ["apex_adam", "apex_lamb"])
def test_apex_that_is_not_usable_is_an_error_that_names_the_setting(tiny, name, monkeypatch):
    with pytest.raises(ValueError, match=f"optim.name='{name}': NVIDIA apex works on CUDA"):
        make_optimizers(tiny, OptimConfig(name=name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with pytest.raises(ValueError, match=r"not usable here .* built from source.*unrelated"):
        make_optimizers(tiny, OptimConfig(name=name))


def test_apex_norms_that_are_not_usable_are_an_error():
    with pytest.raises(ValueError, match=r"model\.norm='apex'"):
        DiffMAViL(dataclasses.replace(PRESETS["diffmavil-tiny"].model, norm="apex"))
