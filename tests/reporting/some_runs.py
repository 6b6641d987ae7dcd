"""Runs as a report reads them, written without training."""

from __future__ import annotations

import json
from pathlib import Path

from diffmavil.config import Config
from diffmavil.config.files import CONFIG_FILE, save_config
from diffmavil.evaluation.features import untrained_model
from diffmavil.model.weights import export_weights
from diffmavil.training.pretraining import loss_names


def write_run(folder: Path, config: Config) -> Path:
    """A run of three records, with weights that have learnt nothing."""
    folder.mkdir()
    save_config(config, folder / CONFIG_FILE)
    losses = [name for name in loss_names(config.model) if name]
    same = {"batch_size": 8, "clips_per_second": 16.0, "gflop_per_second": 9.0, "data_wait": 0.1}
    records = [
        {"step": step, "samples": 8 * step, "lr": 1e-3 / step, **same, **dict.fromkeys(losses, 2.0 / step)}
        for step in range(1, 4)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    export_weights(untrained_model(config.model, seed=1), config, folder / "model.safetensors")
    return folder
