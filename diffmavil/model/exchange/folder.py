"""A model as a folder: model.safetensors, and config.json, by which others know what it is.

The header of the weights has the whole config besides, so that the file alone is enough for us.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from diffmavil import __version__
from diffmavil.config import Config, FinetuneConfig
from diffmavil.config.files import section_to
from diffmavil.model.exchange.locate import CONFIG_JSON
from diffmavil.model.weights import WEIGHTS_FILE, export_weights

MODEL_TYPE = "diffmavil"
PRETRAINED, CLASSIFIER = "DiffMAViLModel", "DiffMAViLForClassification"


def config_json(config: Config) -> dict[str, Any]:
    """What config.json tells: the settings of the model, with the statistics of sound; of a classifier its head too."""
    tuned = isinstance(config, FinetuneConfig)
    told: dict[str, Any] = {
        "model_type": MODEL_TYPE,
        "architectures": [CLASSIFIER if tuned else PRETRAINED],
        "diffmavil_version": __version__,
        "settings": section_to(config.model),
    }
    return {**told, "head": asdict(config.head)} if tuned else told


def write_folder(model: nn.Module, config: Config, folder: Path, notes: Mapping[str, str] | None = None) -> None:
    """Write both files of a `DiffMAViL`, or of a `Classifier` and its `FinetuneConfig`.

    notes: as of `export_weights`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    export_weights(model, config, folder / WEIGHTS_FILE, notes)
    (folder / CONFIG_JSON).write_text(json.dumps(config_json(config), indent=2) + "\n")
