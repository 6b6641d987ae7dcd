"""transformers' ViTMAE and VideoMAE give what they gave before, patched and unpatched again."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from maekernels.integrations import _attention, _recomputed, patch, unpatch
from maekernels.integrations._attention import SeenConfig, attention_forward
from tests.integrations.small_models import (
    NAMES,
    assert_alike,
    assert_same_bits,
    make_case,
    run,
)

BOTH = pytest.mark.parametrize("name", NAMES)
VARIANTS = {
    "plain": {},
    "raw pixels": {"norm_pix_loss": False},
    "eager attention": {"attn_implementation": "eager"},
    "no biases": {"qkv_bias": False},
    "dropout, evaluated": {"attention_probs_dropout_prob": 0.5, "hidden_dropout_prob": 0.5},
}


@BOTH
@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_and_gradients(name, variant):
    case = make_case(name, **VARIANTS[variant])
    model = case.make().train(variant != "dropout, evaluated")
    expected, expected_grads = run(model, case.inputs, output_hidden_states=True)
    patch(model)
    found, grads = run(model, case.inputs, output_hidden_states=True)
    assert type(found) is type(expected)
    assert_alike(found, expected)
    assert_alike(grads, expected_grads)


@BOTH
@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels(name, channels):
    case = make_case(name, num_channels=channels)
    model = case.make()
    expected = run(model, case.inputs)
    for mine, theirs in zip(run(patch(model), case.inputs), expected, strict=True):
        assert_alike(mine, theirs)


def test_the_number_of_masked_tokens_given():
    case = make_case("video_mae")
    model = case.make()
    expected = run(model, case.inputs)
    patch(model, masked=case.masked)
    for mine, theirs in zip(run(model, case.inputs), expected, strict=True):
        assert_alike(mine, theirs)
    wrong = case.inputs["bool_masked_pos"].clone()
    wrong[0] = False
    with pytest.raises(ValueError, match=r"mask=\[0, 50, 50\] masked tokens: must be masked=50 of every sample"):
        model(case.inputs["pixel_values"], wrong)


def test_masks_of_unequal_numbers_are_refused():
    case = make_case("video_mae")
    mask = case.inputs["bool_masked_pos"].clone()
    mask[1, mask[1].nonzero()[0]] = False
    with pytest.raises(ValueError, match=r"mask=49 to 50 masked tokens: must be as many in every sample"):
        patch(case.make())(case.inputs["pixel_values"], mask)


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_types(name, dtype):
    """float64 to its own precision; bfloat16 to its own, where both round differently, against float32."""
    case = make_case(name)
    inputs = {key: x.to(dtype) if key == "pixel_values" else x for key, x in case.inputs.items()}
    model = case.make().to(dtype)
    expected, expected_grads = run(model, inputs)
    found, grads = run(patch(model), inputs)
    assert_alike(found, expected, 1e-12 if dtype == torch.float64 else 0.03)
    if dtype == torch.float64:
        assert_alike(grads, expected_grads, 1e-11)


@BOTH
def test_gradients_of_attention_in_half_precision(name, monkeypatch):
    """By matrix products, with the weights made again: as close to float32 as transformers' own way is."""
    case = make_case(name)
    exact = run(case.make(), case.inputs)[1]
    inputs = {key: x.bfloat16() if key == "pixel_values" else x for key, x in case.inputs.items()}
    model = case.make().bfloat16()
    theirs = run(model, inputs)[1]
    calls = []
    product = _attention.recomputed_attention
    monkeypatch.setattr(_recomputed, "FEW_WEIGHTS", 0)
    monkeypatch.setattr(_attention, "recomputed_attention", lambda *qkv: calls.append(1) or product(*qkv))
    ours = run(patch(model), inputs)[1]
    assert len(calls) == 4  # layers of encoder and decoder

    for key, right in exact.items():
        off, their_off = ((grads[key].double() - right.double()).norm() for grads in (ours, theirs))
        assert off < 2 * their_off + 0.02 * right.double().norm(), key


@BOTH
def test_autocast(name):
    case = make_case(name)
    model = case.make()
    exact = model(**case.inputs).loss
    with torch.autocast("cpu", torch.bfloat16):
        expected = run(model, case.inputs)[0]
        found = run(patch(model), case.inputs)[0]
    assert found.loss.dtype == expected.loss.dtype == torch.float32
    assert found.logits.dtype == expected.logits.dtype
    assert abs(found.loss - exact) <= 2 * abs(expected.loss - exact) + 2e-3
    torch.testing.assert_close(found.logits, expected.logits, rtol=0.05, atol=0.05)


@BOTH
def test_gradient_of_the_pixels(name):
    """The encoder's side of it: transformers' target is a function of the pixels too for ViTMAE, and ours is data."""
    case = make_case(name)
    model = case.make()
    grads = []
    for _ in range(2):
        pixels = case.inputs["pixel_values"].clone().requires_grad_()
        grads += torch.autograd.grad(model(**case.inputs | {"pixel_values": pixels}).logits.square().mean(), pixels)
        if len(grads) == 1:
            patch(model)
    assert_alike({"pixels": grads[1]}, {"pixels": grads[0]})


@BOTH
def test_unpatched_it_is_what_it_was(name):
    case = make_case(name)
    model = case.make()
    before = run(model, case.inputs)
    config = model.config.to_dict()
    own = {key: sorted(vars(module)) for key, module in model.named_modules()}
    unpatch(patch(model))
    for mine, theirs in zip(run(model, case.inputs), before, strict=True):
        assert_same_bits(mine, theirs)
    assert {key: sorted(vars(module)) for key, module in model.named_modules()} == own
    assert model.config.to_dict() == config


def test_a_seed_gives_the_masks_that_it_gave():
    case = make_case("vit_mae")
    model = case.make()
    pixels = case.inputs["pixel_values"]
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(model(pixels))
        if len(found) == 1:
            patch(model)
    assert torch.equal(found[0].ids_restore, found[1].ids_restore)
    assert torch.equal(found[0].mask, found[1].mask)


@BOTH
def test_attention_left_as_it_is(name):
    case = make_case(name)
    model = case.make()
    expected = run(model, case.inputs)
    patch(model, attention=False)
    assert not any(isinstance(getattr(module, "config", None), SeenConfig) for module in model.modules())
    for mine, theirs in zip(run(model, case.inputs), expected, strict=True):
        assert_alike(mine, theirs)
    unpatch(model)


@BOTH
def test_attention_weights_come_from_eager_attention(name):
    """As without the patch: asked for, they are there where attention is "eager"."""
    case = make_case(name, attn_implementation="eager")
    model = case.make().eval()
    expected = model(**case.inputs, output_attentions=True)
    found = patch(model)(**case.inputs, output_attentions=True)
    assert len(found.attentions) == 2
    assert_alike(found, expected)


@BOTH
def test_attention_asked_for_later_is_respected(name):
    case = make_case(name)
    model = patch(case.make()).eval()
    assert model(**case.inputs).attentions is None
    model.set_attn_implementation("eager")
    assert len(model(**case.inputs, output_attentions=True).attentions) == 2


@BOTH
def test_tuples(name):
    case = make_case(name)
    model = case.make()
    expected = model(**case.inputs, return_dict=False)
    found = patch(model)(**case.inputs, return_dict=False)
    assert isinstance(found, tuple)
    assert len(found) == len(expected)
    assert_alike(dict(enumerate(found)), dict(enumerate(expected)))


@BOTH
def test_dropout_of_attention_is_transformers_own(name):
    case = make_case(name, attention_probs_dropout_prob=0.5)
    model = case.make().train()
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(run(model, case.inputs)[0])
        if len(found) == 1:
            patch(model)
    assert_alike(found[1], found[0])


def test_what_attention_does_not_have_goes_to_sdpa():
    case = make_case("vit_mae")
    module = next(m for m in case.make().modules() if type(m).__name__.endswith("Attention") and hasattr(m, "config"))
    q, k, v = torch.randn(3, 2, 4, 6, 8).unbind(0)
    mask = torch.zeros(2, 1, 6, 6).masked_fill_(torch.rand(2, 1, 6, 6) < 0.3, -1e4)
    sdpa = nn.functional.scaled_dot_product_attention
    torch.testing.assert_close(attention_forward(module, q, k, v, None)[0], sdpa(q, k, v).transpose(1, 2))
    found = attention_forward(module, q, k, v, None, scaling=0.3)[0]
    torch.testing.assert_close(found, sdpa(q, k, v, scale=0.3).transpose(1, 2))
    found = attention_forward(module, q, k, v, None, is_causal=True)[0]
    torch.testing.assert_close(found, sdpa(q, k, v, is_causal=True).transpose(1, 2))
    torch.testing.assert_close(attention_forward(module, q, k, v, mask)[0], sdpa(q, k, v, mask).transpose(1, 2))


@BOTH
def test_the_forward_says_what_it_takes(name):
    """transformers' Trainer drops the columns of a set that are not in the signature."""
    model = make_case(name).make()
    expected = inspect.signature(model.forward)
    assert inspect.signature(patch(model).forward) == expected


# Calls that are left to transformers


@BOTH
def test_a_hook_on_the_patch_embedding_is_called(name):
    case = make_case(name)
    model = patch(case.make())
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, out: seen.append(out.shape))
    hooked = run(model, case.inputs)[0]
    assert seen
    assert_alike(hooked, run(case.make(), case.inputs)[0])


def test_another_size_with_interpolated_positions():
    case = make_case("vit_mae")
    model = case.make()
    pictures, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 64)
    options = {"noise": noise, "interpolate_pos_encoding": True}
    expected = model(pictures, **options)
    assert_alike(patch(model)(pictures, **options), expected)


@BOTH
@pytest.mark.parametrize("shape", [(3, 20, 24), (2, 24, 24)], ids=["size", "channels"])
def test_wrong_pixels_are_told_by_transformers(name, shape):
    case = make_case(name)
    frames = () if name == "vit_mae" else (4,)
    inputs = case.inputs | {"pixel_values": torch.randn(3, *frames, *shape)}
    with pytest.raises(ValueError, match=r"Make sure|doesn't match model"):
        patch(case.make())(**inputs)


def test_a_clip_without_a_mask_is_told_by_transformers():
    case = make_case("video_mae")
    with pytest.raises(ValueError, match="boolean mask"):
        patch(case.make())(case.inputs["pixel_values"], None)
