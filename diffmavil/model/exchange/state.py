"""A file of weights to named tensors, without running anything that stands in it.

safetensors, or what `torch.save` writes, told apart by content and not by the file's name. torch's files are pickles:
nothing is made from them but tensors, plain values and `argparse.Namespace`, which MAE keeps beside its weights.
"""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

_SHOWN = 6
_HEADER_AT = 8  # of safetensors: the length of the header, then the header, which is JSON


def refusal(path: Path, why: str) -> ValueError:
    """What is raised for a file that cannot be used."""
    return ValueError(f"init={str(path)!r}: {why}")


def described(state: Mapping[Any, Any]) -> str:
    """The first names of `state` and what they stand for, for messages."""
    shown = [f"{name} {_kind(value)}" for name, value in islice(state.items(), _SHOWN)]
    more = len(state) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "") if shown else "nothing"


def _kind(value: object) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else f"({type(value).__name__})"


def read_state(path: Path) -> dict[str, Tensor]:
    """Name -> tensor on the CPU; of a file that nests them under "model", as MAE's do, what is inside.

    Raises:
        ValueError: no such file, damaged, neither safetensors nor torch's, no tensors in it, or code in it.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER_AT + 8)
    except OSError as error:
        raise refusal(path, f"cannot be read: {error.strerror}") from error
    loaded = _read_safetensors(path) if head[_HEADER_AT:].startswith(b"{") else _read_torch(path, head)
    state = loaded
    if isinstance(loaded, Mapping) and isinstance(loaded.get("model"), Mapping):
        state = loaded["model"]
    if not isinstance(state, Mapping):
        raise refusal(path, f"holds a {type(state).__name__}; must be tensors by name, or these under 'model'")
    tensors = {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        raise refusal(path, f"holds no tensors by name, nor under 'model'; found: {described(state)}")
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise refusal(path, f"is damaged: {error}") from error


def _read_torch(path: Path, head: bytes) -> object:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Mapped: of a training checkpoint with an optimiser in it, no more is read than is used.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle may raise any kind
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code:
            # torch's own message advises to load it all the same.
            why = f"holds more than tensors ({code[1]}): code in a file is never run; save its tensors alone"
            raise refusal(path, why) from error
        why = f"is damaged, or neither safetensors nor torch's: it begins with {head!r} ({type(error).__name__})"
        raise refusal(path, why) from error
