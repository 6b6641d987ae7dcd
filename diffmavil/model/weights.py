"""Exported weights: one safetensors file that carries its config, normalisation statistics and version."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from diffmavil import __version__
from diffmavil.config import Config
from diffmavil.config.errors import UsageError
from diffmavil.config.files import config_from_yaml, config_to_yaml
from diffmavil.model import DiffMAViL

WEIGHTS_FILE = "model.safetensors"


def export_weights(model: DiffMAViL, config: Config, path: Path) -> None:
    """Write float32 weights; `config.model` with the audio statistics goes into the header."""
    weights = {name: value.detach().float().cpu().contiguous() for name, value in model.state_dict().items()}
    metadata = {"format": "pt", "diffmavil_version": __version__, "config": config_to_yaml(config)}
    partial = path.with_name(f".{path.name}.partial")
    save_file(weights, partial, metadata=metadata)
    partial.rename(path)


def load_weights(path: Path, device: torch.device | str = "cpu") -> tuple[DiffMAViL, Config]:
    """A model in evaluation mode and the config it was trained with.

    Kernels that training forced, and that run on CUDA alone, are not asked for on a CPU.

    Raises:
        UsageError: no such file, or not written by `export_weights`.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: cannot be read as exported weights: {error}") from error
    if "config" not in metadata:
        raise UsageError(f"{path}: holds no config; write it with diffmavil.model.weights.export_weights")
    config = config_from_yaml(metadata["config"])
    wanted = config.model
    if torch.device(device).type == "cpu":
        wanted = replace(wanted, attention="auto", norm="torch")
    model = DiffMAViL(wanted).to(device).eval()
    model.load_state_dict(weights)
    return model, config
