"""Another `forward` for one module object, and the way back.

The replacement lives in the object's own `__dict__`: its class, and other models of it, stay as they are, and so do the
names of a state_dict. What was there before is the class's own `forward`, or the module is refused.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

from torch import nn

from maekernels._checks import check
from maekernels.integrations._fingerprints import fingerprint

Forward = Callable[..., Any]


def check_known(owner: type, method: str, known: Sequence[str], versions: str) -> None:
    """`owner.method` is code that the replacement was written for, as in `versions` of its package, or `ValueError`."""
    function = getattr(owner, method, None)
    allowed = f"code that this patch was written for, as in {versions}"
    check(function is not None, "model", f"{owner.__name__} without {method}", allowed)
    assert function is not None
    try:
        found = fingerprint(function)
    except OSError as error:
        raise ValueError(f"model={owner.__name__}.{method}: must have its source, to be compared: {error}") from error
    check(found in known, "model", f"{owner.__name__}.{method} of {_package(owner)} (code {found})", allowed)


def _package(owner: type) -> str:
    name = owner.__module__.partition(".")[0]
    return f"{name} {getattr(sys.modules.get(name), '__version__', '')}".strip()


def check_untouched(module: nn.Module) -> None:
    """Nobody else replaced the module's `forward`."""
    own = module.__dict__.get("forward")
    # transformers 4.57 leaves the class's own forward there after it has recorded hidden states.
    ok = own is None or getattr(own, "__func__", None) is type(module).forward
    check(ok, "model", f"{type(module).__name__} whose forward was replaced", "as its package made it: patch it first")


def replace_forward(module: nn.Module, forward: Forward) -> None:
    """`forward(module, ...)` instead of the class's, with its signature, which transformers' Trainer reads."""

    def replaced(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    replaced.__name__ = replaced.__qualname__ = "forward"
    # Not `functools.wraps`: accelerate follows __wrapped__ to the end when it takes its own wrapper off.
    replaced.__signature__ = inspect.signature(type(module).forward)  # type: ignore[attr-defined]
    replaced.__doc__ = type(module).forward.__doc__
    replaced.__maekernels__ = replaced  # type: ignore[attr-defined]
    module.forward = MethodType(replaced, module)


def is_ours(forward: Any) -> bool:
    """Ours itself, not what was wrapped around it, to which `functools.wraps` gives its attributes."""
    function = getattr(forward, "__func__", forward)
    return function is not None and getattr(function, "__maekernels__", None) is function


def check_not_wrapped(module: nn.Module) -> None:
    """Nobody wrapped our `forward` since."""
    own = module.__dict__.get("forward")
    inner = None if is_ours(own) else own
    while inner is not None and not is_ours(inner):
        inner = getattr(inner, "__wrapped__", None)
    allowed = "taken out of its wrapper first (accelerate: unwrap_model(model, keep_fp32_wrapper=False))"
    check(inner is None, "model", f"{type(module).__name__} whose patched forward was wrapped since", allowed)


def has_hooks(*modules: nn.Module) -> bool:
    """Whether somebody watches one of these modules, which then have to be called."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        for module in modules
    )
