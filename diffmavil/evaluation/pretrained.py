"""Finds weights by what a person calls them: a run, a checkpoint of it, a file, a folder, or a model on the hub."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from diffmavil.config import Config, FinetuneConfig
from diffmavil.config.errors import RunError, UsageError
from diffmavil.config.files import CONFIG_FILE, load_config
from diffmavil.config.folders import expand
from diffmavil.data.durable import digest_of
from diffmavil.evaluation.classification import read_classification, scored_file
from diffmavil.model import DiffMAViL
from diffmavil.model.classifier import Classifier
from diffmavil.model.exchange.hub import fetch, looks_like_hub_id
from diffmavil.model.weights import WEIGHTS_FILE, config_of, load_any, runs_here
from diffmavil.training.checkpoint import checkpoints, complaint, load_model, newest_whole


def find_weights(source: str | Path, revision: str | None = None) -> Path:
    """The file of exported weights, or the folder of a checkpoint, that `source` means.

    Args:
        source: a file; a folder with model.safetensors, as a run's once it has ended; of a fine-tuned run's folder the
            weights whose scores stand in its headline, the best or averaged ones, if they are there unchanged; a run's
            folder without any, of which the newest whole checkpoint is taken; a checkpoint's folder; or "owner/name" on
            the Hugging Face hub, where nothing of that path is here.
        revision: of the hub's model: a branch, tag or commit.

    Raises:
        ValueError: nothing there, or a model that the hub does not give.
    """
    path = expand(source)
    if not path.exists():
        if isinstance(source, str) and looks_like_hub_id(source):
            return _from_hub(source, revision)
        raise ValueError(f"{source}: no such file or folder; weights are a run's folder, a .safetensors, or owner/name")
    if revision is not None:
        raise ValueError(f"revision={revision!r}: must be left out for {source}, which is here and not on the hub")
    if path.is_file():
        return path
    if (path / WEIGHTS_FILE).is_file():
        try:
            tuned = read_classification(path)
        except UsageError as error:
            raise ValueError(f"{error}; or name the file of weights: {path / WEIGHTS_FILE}") from error
        best = scored_file(tuned, path) if tuned else None
        if best is None and checkpoints(path) and isinstance(config_of(path / WEIGHTS_FILE), FinetuneConfig):
            raise ValueError(
                f"{path}: its weights are not scored yet, so that none are the best: python -m diffmavil.evaluate "
                f"--run-dir {path} scores them; or name the file of weights"
            )
        return best or path / WEIGHTS_FILE
    if (path / CONFIG_FILE).is_file() and path.parent.name == "checkpoints":
        if wrong := complaint(path):
            raise ValueError(f"{path}: the checkpoint is damaged: {wrong}")
        return path
    if checkpoints(path):
        try:
            newest, _ = newest_whole(path)
        except RunError as error:
            raise ValueError(str(error)) from error
        assert newest is not None
        return newest
    raise ValueError(f"{source}: holds neither {WEIGHTS_FILE} nor checkpoints: no run has come so far here")


def _from_hub(name: str, revision: str | None) -> Path:
    """The weights of a model on the hub, downloaded if they are not here yet."""
    folder = fetch(name, revision)
    if not (folder / WEIGHTS_FILE).is_file():
        raise ValueError(f"{name!r}: is on the Hub, but holds no {WEIGHTS_FILE}")
    return folder / WEIGHTS_FILE


def open_model(path: Path, device: torch.device | str = "cpu") -> tuple[DiffMAViL | Classifier, Config]:
    """What `find_weights` found, in evaluation mode, and the config it was trained with.

    Raises:
        UsageError: a file that is not exported weights.
        RunError: a checkpoint that does not fit its own config.
    """
    if path.is_file():
        return load_any(path, device)
    config = load_config(path / CONFIG_FILE)
    here = runs_here(config.model, device)
    model = Classifier(here, config.head) if isinstance(config, FinetuneConfig) else DiffMAViL(here)
    load_model(path, model)
    return model.to(device).eval(), config


def fingerprint(path: Path) -> str:
    """SHA-256 of the file that `find_weights` found; of a checkpoint, of those of its files, by their names."""
    if path.is_file():
        return digest_of(path)
    return hashlib.sha256("".join(map(digest_of, sorted(path.iterdir()))).encode()).hexdigest()
