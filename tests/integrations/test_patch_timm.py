"""timm's ViT blocks with our attention: the same numbers; what it does not have is left to timm."""

from __future__ import annotations

import contextlib
import importlib.util
import pickle
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from maekernels.integrations import patch, timm_attention, unpatch
from tests.integrations.small_models import assert_alike, assert_same_bits, package, replica


class AnyName(type):
    def __getattr__(cls, name: str) -> str:
        return name


class StandIn(ModuleType):
    """Any name of torchvision: timm's data and norms want some of them, its ViT none."""

    __path__ = ()  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return AnyName(name, (), {})


class Finder(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, *rest: Any) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname.partition(".")[0] == "torchvision" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@pytest.fixture(scope="module", autouse=True)
def without_torchvision() -> None:
    """PyPI's torchvision does not load beside a CPU-only torch: timm gets a stand-in for its import."""
    if importlib.util.find_spec("torchvision") is None:
        finder = Finder()
        sys.meta_path.append(finder)
        try:
            # Tests of a stand-in run without timm, others skip where they ask for it.
            with contextlib.suppress(pytest.skip.Exception):
                package("timm.models.vision_transformer")
        finally:
            sys.meta_path.remove(finder)
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[name]


def make(**settings: Any) -> nn.Module:
    vision = package("timm.models.vision_transformer")
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
    return vision.VisionTransformer(**sizes | settings)


def run(model: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    model.zero_grad()
    out = model(torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)))
    out.square().sum().backward()
    return {"out": out}, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


class InFloat32(nn.LayerNorm):
    """As autocast computes it on CUDA."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.float())


def test_norms_of_queries_and_keys_under_autocast():
    model = make(qk_norm=True, norm_layer=InFloat32)
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(x)
        patch(model)
        torch.testing.assert_close(model(x), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("settings", [{}, {"qk_norm": True}, {"qkv_bias": False}], ids=["plain", "qk-norm", "no bias"])
def test_outputs_and_gradients(settings):
    model = make(**settings)
    expected = run(model)
    patch(model)
    for mine, theirs in zip(run(model), expected, strict=True):
        assert_alike(mine, theirs)
    unpatch(model)
    for mine, theirs in zip(run(model), expected, strict=True):
        assert_same_bits(mine, theirs)


def test_one_block():
    """What a fork of MAE built of timm's blocks has."""
    block = package("timm.models.vision_transformer").Block(32, 4, qkv_bias=True)
    x = torch.randn(2, 7, 32)
    expected = block(x)
    assert_alike({"x": patch(block)(x)}, {"x": expected})


@pytest.mark.parametrize("settings", [{"attn_drop_rate": 0.5}, {"fused": False}], ids=["dropout", "not fused"])
def test_left_to_timm(settings):
    fused = settings.pop("fused", True)
    model = make(**settings).train()
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    found = []
    for _ in range(2):
        torch.manual_seed(4)
        found.append(run(model)[0])
        if len(found) == 1:
            patch(model)
    assert_same_bits(found[1], found[0])


def test_masks_are_left_to_timm():
    attention = package("timm.models.vision_transformer").Attention(32, 4)
    x, mask = torch.randn(2, 7, 32), torch.rand(7, 7) < 0.7
    mask.fill_diagonal_(True)
    expected = attention(x, mask)
    assert_same_bits({"x": patch(attention)(x, mask)}, {"x": expected})


class WithoutCausality(nn.Module):
    """What timm's Attention takes in 1.0.16 to 1.0.25."""

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None) -> tuple[Any, ...]:
        return x, attn_mask


def test_a_mask_for_a_timm_without_causality():
    x, mask = torch.zeros(1, 2, 3), torch.ones(2, 2)
    found = timm_attention._forward(WithoutCausality(), x, mask)
    assert [id(part) for part in found] == [id(x), id(mask)]


class Plain(nn.Module):
    """What the replacement reads of timm's Attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.fused_attn = heads, dim // heads, True
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.q_norm = self.k_norm = self.attn_drop = self.proj_drop = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("batch", [2, 0], ids=["two samples", "empty"])
def test_a_batch_of_any_size(batch):
    """An empty one too, as the last of a filtered set may be."""
    module, x = Plain(8, 2).eval(), torch.randn(batch, 5, 8)
    torch.testing.assert_close(timm_attention._forward(module, x), module(x))


def test_attention_is_all_there_is_to_patch():
    with pytest.raises(ValueError, match="attention=False: must be True for a model of timm"):
        patch(make(), attention=False)


def test_pickled_it_is_timm_s_own():
    model = make()
    expected = run(model)
    found = pickle.loads(pickle.dumps(patch(model)))
    assert not any("forward" in vars(module) for module in found.modules())
    for mine, theirs in zip(run(found), expected, strict=True):
        assert_same_bits(mine, theirs)


def test_a_replica_computes_with_its_own_weights():
    model = make()
    x = torch.randn(3, 3, 16, 16)
    expected = replica(model)(x)
    assert_alike({"x": replica(patch(model))(x)}, {"x": expected})
