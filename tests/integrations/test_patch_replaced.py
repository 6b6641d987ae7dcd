"""What was replaced in a model after it was patched, and what the ops do not have, is computed by transformers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from maekernels.integrations import patch, unpatch, video_mae, vit_mae
from tests.integrations.small_models import (
    NAMES,
    assert_alike,
    make_case,
    run,
)

BOTH = pytest.mark.parametrize("name", NAMES)


class Adapted(nn.Module):
    """A projection in another's place, as peft's LoRA: without a convolution's attributes."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.base(x)


def rounded(conv: nn.Module) -> nn.Module:
    """A projection of another class with its weights, as in training for quantisation."""
    base = type(conv)

    class Rounded(base):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return (4 * super().forward(input)).round() / 4

    conv.__class__ = Rounded
    return conv


def doubled(conv: nn.Module) -> nn.Module:
    conv.forward = lambda x: 2 * type(conv).forward(conv, x)
    return conv


@BOTH
@pytest.mark.parametrize("change", [Adapted, rounded, doubled], ids=["another module", "a subclass", "its forward"])
def test_a_projection_that_was_replaced_since(name, change):
    case = make_case(name)
    found = []
    for model in (patch(case.make()), case.make()):
        embed = model.get_input_embeddings()
        embed.projection = change(embed.projection)
        found.append(run(model, case.inputs))
    for mine, theirs in zip(*found, strict=True):
        assert_alike(mine, theirs)


@BOTH
def test_a_patch_embedding_that_was_replaced_since(name):
    case = make_case(name)
    model = patch(case.make())
    owner = getattr(model, "vit", None) or model.videomae
    base = type(owner.embeddings.patch_embeddings)

    class Zeros(base):
        def forward(self, *args, **kwargs):
            return 0 * super().forward(*args, **kwargs)

    owner.embeddings.patch_embeddings.__class__ = Zeros
    found = model(**case.inputs)
    assert_alike(found, unpatch(model)(**case.inputs))
    assert not torch.equal(found.logits, case.make()(**case.inputs).logits)


@pytest.mark.parametrize(("part", "method"), [("", "patchify"), ("vit.embeddings", "random_masking")])
def test_a_method_that_was_replaced_since_is_called(part, method):
    case = make_case("vit_mae")
    model = patch(case.make())
    owner, calls = model.get_submodule(part), []
    own = getattr(owner, method)
    setattr(owner, method, lambda *args, **kwargs: calls.append(1) or own(*args, **kwargs))
    assert_alike(model(**case.inputs), case.make()(**case.inputs))
    assert calls


@pytest.mark.parametrize(
    ("device", "dtype"), [("cuda", torch.float64), ("meta", torch.float32), ("cpu", torch.int64)], ids=str
)
def test_what_the_ops_do_not_have_is_not_theirs(device, dtype):
    """Float64 on CUDA, and devices that are neither: tensors without values stand for them."""
    embeds = [make_case(name).make().get_input_embeddings() for name in NAMES]
    with FakeTensorMode():
        pictures, clips = (
            torch.empty(3, *shape, dtype=dtype, device=device) for shape in ((3, 24, 24), (4, 3, 24, 24))
        )
        mask = torch.empty(3, 72, dtype=torch.bool, device=device)
        assert not vit_mae._fits(embeds[0], pictures)
        assert not video_mae._ours(embeds[1], clips, mask)
        assert vit_mae._fits(embeds[0], torch.empty(3, 3, 24, 24, device="cuda"))
        assert video_mae._ours(embeds[1], torch.empty(3, 4, 3, 24, 24, device="cuda"), mask)


class Theirs(nn.Module):
    def forward(self, hidden_states, ids_restore):
        return "theirs"


def test_a_decoder_on_what_the_ops_do_not_have():
    with FakeTensorMode():
        hidden, ids = torch.empty(2, 5, 8, dtype=torch.float64, device="cuda"), torch.empty(2, 12, device="cuda").long()
        assert vit_mae._decoder_forward(Theirs(), hidden, ids) == "theirs"


def test_on_another_device_nothing_is_ours(monkeypatch):
    """A whole model on `meta`, which computes shapes alone."""
    for op in ("embed_patches", "scatter_tokens", "gather_tokens", "masked_mse"):
        monkeypatch.delattr(vit_mae, op)
    case = make_case("vit_mae")
    model = patch(case.make()).to("meta")
    found = model(**{key: x.to("meta") for key, x in case.inputs.items()})
    assert found.logits.shape == (3, 36, 48)
