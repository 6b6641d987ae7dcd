"""An additional attention function for transformers, for the modules of one model.

transformers selects a function by the name in a module's config. The modules of a patched model see their config
through `SeenConfig`, which returns our function's name where the model asks for "sdpa". The config itself, which is
saved and may be shared with other models, is unchanged. A model that asks for "eager", "flash_attention_2" or another
function gets that one.

Ours differs from transformers' sdpa only in half precision on a CPU, for shapes where it is faster.
"""

from __future__ import annotations

import copy
import operator
import sys
from typing import Any

from torch import Tensor, nn

from maekernels.integrations._recomputed import recomputed_attention, wins

NAME = "maekernels"


class SeenConfig:
    """A config with our attention in place of sdpa. It pickles as the plain config, which loads without our package."""

    def __init__(self, config: Any) -> None:
        self.__dict__["config"] = config

    @property
    def _attn_implementation(self) -> str:
        name = self.config._attn_implementation
        return NAME if name == "sdpa" else name

    def __getattr__(self, name: str) -> Any:
        # Copying and pickling look up attributes before there is a config.
        if name == "config" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.config, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.config, name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> SeenConfig:
        return SeenConfig(copy.deepcopy(self.config, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return operator.getitem, ((self.config,), 0)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """In transformers' layout: query [B, H, N, D] and so on -> [B, N, H, D], and no weights, like its sdpa.

    Calls transformers' own sdpa if ours is not faster or lacks a feature (masks, dropout, causality, another scale).
    """
    if not (wins(query, key) and _plain(module, query, key, value, attention_mask, dropout, scaling, is_causal)):
        sdpa = _functions()["sdpa"]
        args = (module, query, key, value, attention_mask)
        return sdpa(*args, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs)
    return recomputed_attention(query, key, value).transpose(1, 2), None


def _plain(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    is_causal: bool | None,
) -> bool:
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    plain = attention_mask is None and not dropout and not causal and scaling in (None, query.shape[-1] ** -0.5)
    return (
        plain
        and key.shape == value.shape
        and key.shape[1] == query.shape[1]
        and key.dtype == value.dtype == query.dtype
    )


def _functions() -> Any:
    # Already loaded if there is such a model; torch.compile does not trace an import.
    return sys.modules["transformers.modeling_utils"].ALL_ATTENTION_FUNCTIONS


def replace_attention(modules: list[nn.Module]) -> None:
    """Make these transformers modules, which select a function by their config, use ours for sdpa."""
    if NAME not in _functions():
        _functions().register(NAME, attention_forward)
    for module in modules:
        restore_attention(module)  # it may be part of another patched model
        module.__dict__["config"] = SeenConfig(module.config)  # stored as before, bypassing nn.Module.__setattr__


def restore_attention(module: nn.Module) -> None:
    seen = module.__dict__.get("config")
    if isinstance(seen, SeenConfig):
        module.__dict__["config"] = seen.config
