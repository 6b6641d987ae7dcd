"""Where the weights lie: a file, or a folder as transformers and the Hub have it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffmavil.model.exchange.state import refusal

CONFIG_JSON, PREPROCESSOR_JSON = "config.json", "preprocessor_config.json"
WEIGHTS = "model.safetensors"
_WEIGHTS = (WEIGHTS, "pytorch_model.bin")
_TOLD = ("image_mean", "image_std", "do_normalize", "do_rescale", "rescale_factor")


@dataclass(frozen=True)
class Found:
    """A file of weights, and what config.json and preprocessor_config.json beside it tell."""

    weights: Path
    told: Mapping[str, Any]


def locate(path: Path) -> Found:
    """Raises `ValueError`: nothing there, a folder without weights or with weights in pieces, an unreadable config."""
    weights = path
    if path.is_dir():
        there = [path / name for name in _WEIGHTS if (path / name).is_file()]
        if not there:
            names = sorted(one.name for one in path.iterdir())
            pieces = (
                " (weights in several pieces: join them first)" if any("index.json" in one for one in names) else ""
            )
            found = f"found: {', '.join(names[:6]) or 'nothing'}{' ...' if len(names) > 6 else ''}"
            raise refusal(path, f"a folder with none of {', '.join(_WEIGHTS)}{pieces}; {found}", "IN")
        weights = there[0]
    elif not path.exists():
        raise refusal(path, "no such file or folder", "IN")
    told = _read(weights.with_name(CONFIG_JSON))
    pixels = _read(weights.with_name(PREPROCESSOR_JSON))
    return Found(weights, told | {name: pixels[name] for name in _TOLD if name in pixels})


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; nothing where there is no such file."""
    if not path.exists():
        return {}
    try:
        told = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise refusal(path, f"cannot be read as JSON: {error}", "IN") from error
    if not isinstance(told, dict):
        raise refusal(path, f"holds a {type(told).__name__}; must be an object", "IN")
    return told
