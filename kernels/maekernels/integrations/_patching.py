"""`patch` and `unpatch`: identify the model and apply its patch."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from maekernels._checks import check
from maekernels.integrations import timm_attention, video_mae, vit_mae
from maekernels.integrations._attention import replace_attention, restore_attention
from maekernels.integrations._instance import check_not_wrapped, is_ours, restore_forward

Model = TypeVar("Model", bound=nn.Module)
VIT, VIDEO = (vit_mae.MODULE, "ViTMAEForPreTraining"), (video_mae.MODULE, "VideoMAEForPreTraining")


def patch(model: Model, *, masked: int | None = None, attention: bool = True) -> Model:
    """Make an existing model compute with our ops, with the same results.

    Modifies the object only: its class, config, weights and their names are unchanged. Patch before DDP, torch.compile
    or accelerate wraps the model.

    Args:
        model: transformers' ViTMAEForPreTraining or VideoMAEForPreTraining (or a subclass that does not override their
            methods), or any model with timm's ViT blocks.
        masked: VideoMAE: the number of masked tokens per clip. If given, nothing waits for the device, and a mask with
            another number is an error; None reads the number from each mask.
        attention: False leaves attention unchanged. In half precision on a CPU, ours is faster and less accurate
            (docs/integrations.md).

    Returns:
        The model.

    Raises:
        ValueError: the model, or its version, is not supported; nothing was changed.
    """
    check(
        not any(is_ours(m.__dict__.get("forward")) for m in model.modules()), "model", _name(model), "not yet patched"
    )
    origin = {(base.__module__, base.__qualname__) for base in type(model).__mro__}
    check(masked is None or VIDEO in origin, "masked", masked, f"None for {_name(model)}: it is VideoMAE's")
    if VIT in origin or VIDEO in origin:
        modules = vit_mae.replace(model) if VIT in origin else video_mae.replace(model, masked)
        if attention:
            replace_attention(modules)
    else:
        known = f"{VIT[1]} or {VIDEO[1]} of transformers, not yet wrapped, or a model with timm's Attention"
        check(bool(timm_attention.blocks(model)), "model", _name(model), known)
        check(attention, "attention", attention, "True for a model of timm: it is all that is patched there")
        timm_attention.replace(model)
    return model


def unpatch(model: Model) -> Model:
    """Undo `patch`: the model computes as its package defines it, bit for bit. `ValueError` if it is not patched."""
    for module in model.modules():
        check_not_wrapped(module)
    ours = [module for module in model.modules() if is_ours(module.__dict__.get("forward"))]
    check(bool(ours), "model", _name(model), "patched")
    for module in ours:
        restore_forward(module)
    for module in model.modules():
        restore_attention(module)
    return model


def _name(model: nn.Module) -> str:
    return f"{type(model).__module__}.{type(model).__qualname__}"
