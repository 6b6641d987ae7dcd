"""`patch` and `unpatch`: which model is known, and by whom it is patched."""

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
    """Let a model of somebody else compute by our ops, with the same results.

    Works on the object: its class, config, weights and their names stay as they are. Patch before DDP, torch.compile or
    accelerate wraps the model.

    Args:
        model: transformers' ViTMAEForPreTraining or VideoMAEForPreTraining (a subclass that leaves their methods alone
            is one too), or any model with timm's ViT blocks.
        masked: VideoMAE: how many tokens of each clip are hidden. With it nothing waits for the device, and a mask that
            hides another number is an error; None reads their number from each mask.
        attention: False leaves attention as it is. In half precision on a CPU ours is faster and less accurate
            (docs/integrations.md).

    Returns:
        The model.

    Raises:
        ValueError: a model, or a version of it, that this was not written for; nothing was changed.
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
    """Undo `patch`: the model computes as its package made it, bit for bit. `ValueError` where it is not patched."""
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
