"""Copies, pickles, replicas and parts of patched models of transformers: whose code they run, on whose weights."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from maekernels.integrations import patch, unpatch
from maekernels.integrations._attention import SeenConfig
from tests.integrations.small_models import (
    NAMES,
    assert_alike,
    assert_same_bits,
    make_case,
    replica,
    run,
    scattered,
)

BOTH = pytest.mark.parametrize("name", NAMES)


@BOTH
def test_only_this_model_is_changed(name):
    """Two models of one config: the other keeps its forward, its attention and the config that they share."""
    case = make_case(name)
    model = case.make()
    other = type(model)(model.config)
    forward = type(model).forward
    patch(model)
    assert type(model).forward is forward
    assert model.config is other.config
    assert model.config._attn_implementation == "sdpa"
    assert not any("forward" in vars(module) for module in other.modules())
    assert {type(m.config) for m in other.modules() if hasattr(m, "config")} == {type(model.config)}


@BOTH
def test_a_copy_is_patched_too(name):
    case = make_case(name)
    model = patch(case.make())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert_alike(run(twin, case.inputs)[0], run(patch(case.make()), case.inputs)[0])
    unpatch(twin)
    assert_same_bits(run(twin, case.inputs)[0], run(case.make(), case.inputs)[0])


@BOTH
def test_a_pickle_is_not_patched(name):
    """Wholly: it is read without this package, computes as before, and can be patched again."""
    case = make_case(name)
    expected = run(case.make(), case.inputs)
    model = patch(case.make())
    whole = pickle.dumps(model)
    assert b"maekernels" not in whole
    found = pickle.loads(whole)
    for (_, own), (key, module) in zip(case.make().named_modules(), found.named_modules(), strict=True):
        assert sorted(vars(module)) == sorted(vars(own)), key
    counts = [len({id(x.config) for x in m.modules() if hasattr(x, "config")}) for m in (found, case.make())]
    assert counts[0] == counts[1]  # as many configs, held in as many places
    assert not any(isinstance(getattr(module, "config", None), SeenConfig) for module in found.modules())
    for mine, theirs in zip(run(found, case.inputs), expected, strict=True):
        assert_same_bits(mine, theirs)
    for again in (patch(found), model):
        for mine, theirs in zip(run(again, case.inputs), expected, strict=True):
            assert_alike(mine, theirs)
        unpatch(again)


@BOTH
def test_a_shallow_copy_computes_with_what_is_its_own(name):
    """Its parts are the original's and so are patched; what it is given in place of one is used."""
    case = make_case(name)
    model = patch(case.make())
    twin = copy.copy(model)
    assert_alike(twin(**case.inputs), model(**case.inputs))
    (key,) = {"vit", "videomae"} & set(dict(model.named_children()))
    twin._modules = model._modules | {key: scattered(copy.deepcopy(getattr(model, key)))}
    expected = unpatch(copy.deepcopy(twin))(**case.inputs)
    assert_alike(twin(**case.inputs), expected)


@BOTH
def test_a_part_of_another_patched_model(name):
    """Its attention is patched before: once is enough, and `unpatch` takes it away."""
    case = make_case(name)
    models = [patch(case.make()), case.make()]
    parts = [next(layers for layers in m.modules() if isinstance(layers, nn.ModuleList)) for m in models]
    parts[1][0] = parts[0][0]
    patch(models[1])
    seen = [module.config for module in models[1].modules() if isinstance(getattr(module, "config", None), SeenConfig)]
    assert len(seen) == 4
    assert not any(isinstance(config.config, SeenConfig) for config in seen)
    unpatch(models[1])
    assert not any(isinstance(getattr(module, "config", None), SeenConfig) for module in models[1].modules())


@BOTH
def test_a_replica_computes_with_its_own_weights(name):
    case = make_case(name)
    model = case.make()
    expected = replica(model)(**case.inputs)
    assert_alike(replica(patch(model))(**case.inputs), expected)
