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


def check_known(owner: type, method: str, known: Sequence[str], what: str) -> None:
    """`owner.method` is code that the replacement was written for, or `ValueError`."""
    function = getattr(owner, method, None)
    check(function is not None, what, f"{owner.__name__} without {method}", "of a version with it")
    assert function is not None
    try:
        found = fingerprint(function)
    except OSError as error:
        raise ValueError(f"{what}={owner.__name__}.{method}: its source must be there to be compared: {error}") from error
    of = f"{owner.__name__}.{method} of {_package(owner)} ({found})"
    check(found in known, what, of, f"code that this patch was written for ({', '.join(known)})")


def _package(owner: type) -> str:
    name = owner.__module__.partition(".")[0]
    return f"{name} {getattr(sys.modules.get(name), '__version__', '')}".strip()


def check_untouched(module: nn.Module, name: str) -> None:
    """Nobody else replaced the module's `forward`."""
    own = module.__dict__.get("forward")
    # transformers 4.57 leaves the class's own forward there after it has recorded hidden states.
    ok = own is None or getattr(own, "__func__", None) is type(module).forward
    check(ok, name, f"{type(module).__name__} whose forward was replaced", "as its package made it: patch it first")


def replace_forward(module: nn.Module, forward: Forward) -> None:
    """`forward(module, ...)` instead of the class's, with its signature, which transformers' Trainer reads."""

    def replaced(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    replaced.__name__ = replaced.__qualname__ = "forward"
    # Not `functools.wraps`: accelerate follows __wrapped__ to the end when it takes its own wrapper off.
    replaced.__signature__ = inspect.signature(type(module).forward)  # type: ignore[attr-defined]
    replaced.__doc__ = type(module).forward.__doc__
    replaced.__maekernels__ = True  # type: ignore[attr-defined]
    module.forward = MethodType(replaced, module)


def is_ours(forward: Any) -> bool:
    return hasattr(getattr(forward, "__func__", forward), "__maekernels__")


def check_not_wrapped(module: nn.Module, name: str) -> None:
    """Nobody wrapped our `forward` since."""
    own = module.__dict__.get("forward")
    inner = None if is_ours(own) else own
    while inner is not None and not is_ours(inner):
        inner = getattr(inner, "__wrapped__", None)
    allowed = "taken out of its wrapper first (accelerate: unwrap_model(model, keep_fp32_wrapper=False))"
    check(inner is None, name, f"{type(module).__name__} whose patched forward was wrapped since", allowed)


def has_hooks(*modules: nn.Module) -> bool:
    """Whether somebody watches one of these modules, which then have to be called."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        for module in modules
    )
