"""Exported weights: one safetensors file that carries its config, normalisation statistics and version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from diffmavil import __version__
from diffmavil.config import Config, FinetuneConfig, ModelConfig
from diffmavil.config.errors import UsageError
from diffmavil.config.files import config_from_yaml, config_to_yaml
from diffmavil.model import DiffMAViL
from diffmavil.model.classifier import Classifier

WEIGHTS_FILE = "model.safetensors"
EMA_FILE = "ema.safetensors"
"""Of an average of the weights along the run."""
NO_DECODER = "decoder"
"""A note in a file: its decoders begin at random, since the weights that it was made from have none."""
_OWN_METADATA = ("format", "diffmavil_version", "config")


def export_weights(model: nn.Module, config: Config, path: Path, notes: Mapping[str, str] | None = None) -> None:
    """Write float32 weights of a `DiffMAViL`, or of a `Classifier` and its `FinetuneConfig`; the config, in which are
    the audio statistics, goes into the header, and `notes` too.
    """
    weights = {name: value.detach().float().cpu().contiguous() for name, value in model.state_dict().items()}
    metadata = {"format": "pt", "diffmavil_version": __version__, "config": config_to_yaml(config), **(notes or {})}
    partial = path.with_name(f".{path.name}.partial")
    partial.touch()
    mode = partial.stat().st_mode
    save_file(unshared(weights), partial, metadata=metadata)
    partial.chmod(mode)  # safetensors makes files that nobody else can read
    partial.rename(path)


def unshared(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same, with memory of its own for each name, as safetensors asks: who reads one branch needs no other."""
    seen: set[int] = set()
    found = {}
    for name, value in tensors.items():
        place = value.untyped_storage().data_ptr()
        found[name] = value.clone() if place in seen else value
        seen.add(place)
    return found


def load_weights(path: Path, device: torch.device | str = "cpu") -> tuple[DiffMAViL, Config]:
    """A pretrained model in evaluation mode and the config it was trained with.

    Kernels that training forced, and that run on CUDA alone, are not asked for on a CPU.

    Raises:
        UsageError: no such file, or not written by `export_weights`, or a classifier's.
    """
    weights, config = read_weights(path, device)
    if isinstance(config, FinetuneConfig):
        raise UsageError(f"{path}: holds a fine-tuned classifier, where a pretrained model is needed")
    return _filled(DiffMAViL(runs_here(config.model, device)), weights, path, device), config


def load_classifier(path: Path, device: torch.device | str = "cpu") -> tuple[Classifier, FinetuneConfig]:
    """A fine-tuned classifier in evaluation mode and its config; errors as of `load_weights`."""
    weights, config = read_weights(path, device)
    if not isinstance(config, FinetuneConfig):
        raise UsageError(f"{path}: holds a pretrained model, where a fine-tuned classifier is needed")
    return _filled(Classifier(runs_here(config.model, device), config.head), weights, path, device), config


def load_any(path: Path, device: torch.device | str = "cpu") -> tuple[DiffMAViL | Classifier, Config]:
    """What `load_weights` or `load_classifier` gives, as the file has it; errors as of theirs."""
    weights, config = read_weights(path, device)
    if isinstance(config, FinetuneConfig):
        return _filled(Classifier(runs_here(config.model, device), config.head), weights, path, device), config
    return _filled(DiffMAViL(runs_here(config.model, device)), weights, path, device), config


M = TypeVar("M", bound=nn.Module)


def _filled(model: M, weights: dict[str, torch.Tensor], path: Path, device: torch.device | str) -> M:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UsageError(f"{path}: its weights are not those of its config: {error}") from error
    return model.to(device).eval()


def runs_here(model: ModelConfig, device: torch.device | str) -> ModelConfig:
    """A model without kernels that training forced and that run on CUDA alone, where that is not."""
    return replace(model, attention="auto", norm="torch") if torch.device(device).type == "cpu" else model


def is_ours(path: Path) -> bool:
    """Whether a file was written by `export_weights`; False for one that cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return "diffmavil_version" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def notes_of(path: Path) -> dict[str, str]:
    """The notes that `export_weights` was given. Raises `UsageError` for a file that cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: text for name, text in (file.metadata() or {}).items() if name not in _OWN_METADATA}
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: cannot be read as exported weights: {error}") from error


def read_weights(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, torch.Tensor], Config]:
    """What `export_weights` wrote.

    Raises:
        UsageError: no such file, or another kind of file.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: cannot be read as exported weights: {error}") from error
    return weights, _config_in(metadata, path)


def config_of(path: Path) -> Config:
    """The config in a file of `export_weights`, without its tensors; errors as of `read_weights`."""
    try:
        with safe_open(path, framework="pt") as file:
            return _config_in(file.metadata() or {}, path)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: cannot be read as exported weights: {error}") from error


def _config_in(metadata: dict[str, str], path: Path) -> Config:
    if "config" not in metadata:
        raise UsageError(f"{path}: holds no config; write it with diffmavil.model.weights.export_weights")
    try:
        return config_from_yaml(metadata["config"])
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: the config in it cannot be read: {error}") from error
