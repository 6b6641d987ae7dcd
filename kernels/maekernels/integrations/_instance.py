"""Replace `forward` on a single module object, and undo it.

The replacement is stored in the object's own `__dict__`: its class, other models of that class and the keys of a
state_dict are unchanged. If the object's `forward` was not the class's own before, the module is refused.

A method in an object's `__dict__` is bound to that object, and copies of the dictionary keep that binding. Therefore
three methods that copying looks up are set along with `forward`: a deep copy and a DataParallel replica get the
replacement bound to themselves; a pickle and a shallow copy do not include it.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MethodType
from typing import Any

from torch import nn

from maekernels._checks import check
from maekernels.integrations._fingerprints import fingerprint, foreign_wrapper

Forward = Callable[..., Any]


def check_parts(parts: Mapping[str, nn.Module], known: Mapping[str, Sequence[str]], versions: str) -> None:
    """Raise `ValueError` unless every method of `known`, named "Part.method", has known code and is not replaced."""
    for name, codes in known.items():
        part, method = name.split(".")
        check_known(type(parts[part]), method, codes, versions)
        check_untouched(parts[part], method)


def check_known(owner: type, method: str, known: Sequence[str], versions: str) -> None:
    """Raise `ValueError` unless `owner.method` is code that the replacement was written for, as in `versions`."""
    function = getattr(owner, method, None)
    allowed = f"code that this patch was written for, as in {versions}"
    check(function is not None, "model", f"{owner.__name__} without {method}", allowed)
    assert function is not None
    wrapper = foreign_wrapper(function)
    check(wrapper is None, "model", f"{owner.__name__}.{method} in a wrapper of {wrapper}", allowed)
    try:
        found = fingerprint(function)
    except OSError as error:
        raise ValueError(f"model={owner.__name__}.{method}: must have its source, to be compared: {error}") from error
    check(found in known, "model", f"{owner.__name__}.{method} of {_package(owner)} (code {found})", allowed)


def _package(owner: type) -> str:
    name = owner.__module__.partition(".")[0]
    return f"{name} {getattr(sys.modules.get(name), '__version__', '')}".strip()


def check_untouched(module: nn.Module, method: str) -> None:
    """Check that nobody else has replaced this method of the module."""
    allowed = "as its package made it" + (": patch it first" if method == "forward" else ", for it would not be called")
    check(not overridden(module, method), "model", f"{type(module).__name__} whose {method} was replaced", allowed)


def overridden(module: nn.Module, *methods: str) -> bool:
    """Whether the object overrides one of these methods of its class."""
    for method in methods:
        own = module.__dict__.get(method)
        # transformers 4.57 leaves the class's own forward there after recording hidden states.
        if own is not None and getattr(own, "__func__", None) is not getattr(type(module), method, None):
            return True
    return False


def replace_forward(module: nn.Module, forward: Forward) -> None:
    """Use `forward(module, ...)` instead of the class's, with its signature, which transformers' Trainer inspects."""

    def replaced(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    replaced.__name__ = replaced.__qualname__ = "forward"
    # Not `functools.wraps`: accelerate follows __wrapped__ to the end when it removes its own wrapper.
    replaced.__signature__ = inspect.signature(type(module).forward)  # type: ignore[attr-defined]
    replaced.__doc__ = type(module).forward.__doc__
    _bind(module, {"forward": _marked(replaced)} | _COPYING)


def restore_forward(module: nn.Module) -> None:
    for name in _replaced(module):
        del module.__dict__[name]


def _marked(function: Forward) -> Forward:
    function.__maekernels__ = function  # type: ignore[attr-defined]
    return function


def _bind(module: nn.Module, functions: Mapping[str, Forward]) -> None:
    module.__dict__.update({name: MethodType(function, module) for name, function in functions.items()})


def _replaced(module: nn.Module) -> dict[str, Forward]:
    """Our functions that are set on the object, unbound."""
    own = {name: value for name, value in vars(module).items() if isinstance(value, MethodType)}
    return {name: value.__func__ for name, value in own.items() if is_ours(value)}


@_marked
def _replicate(self: nn.Module) -> nn.Module:
    replica: nn.Module = type(self)._replicate_for_data_parallel(self)  # type: ignore[operator]
    _bind(replica, _replaced(self))
    return replica


@_marked
def _deepcopy(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
    functions = _replaced(self)
    restore_forward(self)
    try:
        twin = copy.deepcopy(self, memo)
    finally:
        _bind(self, functions)
    _bind(twin, functions)
    return twin


@_marked
def _getstate(self: nn.Module) -> dict[str, Any]:
    ours = _replaced(self)
    return {name: value for name, value in type(self).__getstate__(self).items() if name not in ours}


_COPYING = {"_replicate_for_data_parallel": _replicate, "__deepcopy__": _deepcopy, "__getstate__": _getstate}


def is_ours(forward: Any) -> bool:
    """Whether this is our function itself, not a wrapper, to which `functools.wraps` copies its attributes."""
    function = getattr(forward, "__func__", forward)
    return function is not None and getattr(function, "__maekernels__", None) is function


def check_not_wrapped(module: nn.Module) -> None:
    """Check that nobody has wrapped our `forward` since."""
    own = module.__dict__.get("forward")
    inner = None if is_ours(own) else own
    while inner is not None and not is_ours(inner):
        inner = getattr(inner, "__wrapped__", None)
    allowed = "taken out of its wrapper first (accelerate: unwrap_model(model, keep_fp32_wrapper=False))"
    check(inner is None, "model", f"{type(module).__name__} whose patched forward was wrapped since", allowed)


def has_hooks(*modules: nn.Module) -> bool:
    """Whether one of these modules has hooks, so that they have to be called."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        for module in modules
    )
