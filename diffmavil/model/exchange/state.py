"""A file of weights to named tensors, without running anything that stands in it.

safetensors, or what `torch.save` writes, told apart by content and not by the file's name. torch's files are pickles:
nothing is made from them but tensors, plain values and `argparse.Namespace`, which MAE keeps beside its weights.
"""

from __future__ import annotations

import argparse
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

_SHOWN = 6
_HEADER_AT = 8  # of safetensors: the length of the header, then the header, which is JSON
_NESTS = ("model", "module", "state_dict")
"""Under which training code keeps the weights, beside its optimiser."""
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""What weights may be kept in."""
_PIECE = re.compile(r"-\d{5}-of-(?!00001\b)\d{5}")
"""In the name of a file that holds one piece of a model."""
_WRAPPED = "module."
"""What torch's DataParallel puts before every name."""


def refusal(path: Path, why: str, argument: str = "init") -> ValueError:
    """What is raised for a file that cannot be used; `argument` is what named it."""
    return ValueError(f"{argument}={str(path)!r}: {why}")


def described(state: Mapping[Any, Any]) -> str:
    """The first names of `state` and what they stand for, for messages."""
    shown = [f"{name} {_kind(value)}" for name, value in islice(state.items(), _SHOWN)]
    more = len(state) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "") if shown else "nothing"


def _kind(value: object) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else f"({type(value).__name__})"


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Tensors:
    """Tensors of a file, and which of them were taken."""

    def __init__(self, path: Path, argument: str = "init") -> None:
        self.path, self.argument = path, argument
        self.named = read_state(path, argument)
        self.taken: set[str] = set()

    @property
    def left(self) -> list[str]:
        """Keys that were not taken."""
        return [key for key in self.named if key not in self.taken]

    def __contains__(self, key: str) -> bool:
        return key in self.named

    def dim(self, key: str) -> int:
        """Axes of a tensor; 0 where it is not there."""
        return self.named[key].dim() if key in self.named else 0

    def take(self, key: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """float32; `ValueError` if it is not there, of another kind or shape, or not finite."""
        tensor = self.look(key, shape)
        self.taken.add(key)
        return tensor

    def look(self, key: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """What `take` gives; it does not count as taken."""
        if key not in self.named:
            raise self.refusal(f"lacks {key}; found: {described(self.named)}")
        tensor = self.named[key]
        if tensor.dtype not in _FLOATS:
            raise self.refusal(f"{key} is of {_dtype(tensor.dtype)}; must be of {', '.join(map(_dtype, _FLOATS))}")
        if shape is not None and tensor.shape != shape:
            raise self.refusal(f"{key} is {list(tensor.shape)}; must be {list(shape)} beside the other parts")
        if not tensor.isfinite().all():
            raise self.refusal(f"{key} is not finite")
        return tensor.float()

    def take_all(self, keys: Iterable[str], shape: tuple[int, ...]) -> Tensor:
        """Several, one after the other along the first axis, that together have `shape`."""
        keys = list(keys)
        return torch.cat([self.take(key, (shape[0] // len(keys), *shape[1:])) for key in keys])

    def refusal(self, why: str) -> ValueError:
        return refusal(self.path, why, self.argument)


def read_state(path: Path, argument: str = "init") -> dict[str, Tensor]:
    """Name -> tensor on the CPU; of a file that nests them under "model" or the like, as MAE's do, what is inside.

    Raises:
        ValueError: no such file, damaged, neither safetensors nor torch's, no tensors in it, code in it, or one piece
            of a model by its name.
    """
    if _PIECE.search(path.name):
        why = "is one of several pieces of a model; must be all of it: join the pieces, and give the folder"
        raise refusal(path, why, argument)
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER_AT + 8)
    except OSError as error:
        raise refusal(path, f"cannot be read: {error.strerror}", argument) from error
    is_safetensors = head[_HEADER_AT:].startswith(b"{")
    loaded = _read_safetensors(path, argument) if is_safetensors else _read_torch(path, head, argument)
    state = loaded
    if isinstance(loaded, Mapping):
        state = next((loaded[nest] for nest in _NESTS if isinstance(loaded.get(nest), Mapping)), loaded)
    if not isinstance(state, Mapping):
        raise refusal(
            path, f"holds a {type(state).__name__}; must be tensors by name, or these under 'model'", argument
        )
    tensors = {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        raise refusal(path, f"holds no tensors by name, nor under 'model'; found: {described(state)}", argument)
    if all(name.startswith(_WRAPPED) for name in tensors):
        return {name.removeprefix(_WRAPPED): value for name, value in tensors.items()}
    return tensors


def _read_safetensors(path: Path, argument: str) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise refusal(path, f"is damaged: {error}", argument) from error


def _read_torch(path: Path, head: bytes, argument: str) -> object:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            # Whether another protocol can be read shows when it is read.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            # Mapped: of a training checkpoint with an optimiser in it, no more is read than is used.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle may raise any kind
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code:
            # torch's own message advises to load it all the same.
            why = f"holds more than tensors ({code[1]}): code in a file is never run; save its tensors alone"
            raise refusal(path, why, argument) from error
        if "Unsupported operand" in str(error) and head.startswith(
            (b"\x80", b"PK")
        ):  # a pickle, alone or in torch's zip
            why = "is a pickle of a newer protocol than torch reads without running code: torch.save its tensors again"
            raise refusal(path, why, argument) from error
        why = f"is damaged, or neither safetensors nor torch's: it begins with {head!r} ({type(error).__name__})"
        raise refusal(path, why, argument) from error
