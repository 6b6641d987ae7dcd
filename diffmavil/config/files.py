"""`config.yaml`: a resolved `Config` written, read, and compared."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from diffmavil.config import Config, FinetuneConfig
from diffmavil.config.errors import UsageError

CONFIG_FILE = "config.yaml"


def save_config(config: Config, path: Path) -> None:
    """Write the whole resolved config as YAML."""
    path.write_text(config_to_yaml(config))


def config_to_yaml(config: Config) -> str:
    return yaml.safe_dump(_plain(asdict(config)), sort_keys=False)


def load_config(path: Path) -> Config:
    """What `save_config` wrote, which may be a `FinetuneConfig`. Raises `UsageError` for a missing or damaged file."""
    try:
        return config_from_yaml(path.read_text())
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: not a readable config: {error}") from error


def config_from_yaml(text: str) -> Config:
    data = yaml.safe_load(text)
    if not isinstance(data, dict):
        raise ValueError("a mapping was expected")
    return _build(FinetuneConfig if "head" in data else Config, data, "")


def _build(cls: Any, data: dict[str, Any], where: str) -> Any:
    """Dataclass `cls` from nested dicts; names unknown fields instead of dropping them."""
    known = get_type_hints(cls)
    unknown = set(data) - set(known)
    if unknown:
        raise ValueError(f"unknown setting {where}{sorted(unknown)[0]}; known: {', '.join(known)}")
    values = {}
    for name, value in data.items():
        if is_dataclass(known[name]):
            value = _build(known[name], value, f"{where}{name}.")
        values[name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def differences(old: Config, new: Config) -> list[str]:
    """Dotted settings that differ, as 'name: old -> new' lines."""
    a, b = _flat(asdict(old)), _flat(asdict(new))
    return [f"{name}: {a[name]} -> {b[name]}" for name in a if a[name] != b[name]]


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in data.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return out
