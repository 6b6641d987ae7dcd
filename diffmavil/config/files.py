"""Write, read and compare `config.yaml`, a resolved `Config`; read `--config` files, which hold a part of one."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from diffmavil.config import Config, FinetuneConfig, require
from diffmavil.config.errors import UsageError

CONFIG_FILE = "config.yaml"
_KINDS = {float: "a number", int: "a whole number", str: "text", bool: "true or false"}
C = TypeVar("C", bound=Config)
S = TypeVar("S")


@dataclass(frozen=True)
class ConfigFile:
    """Settings that differ from a preset's, nested and named as in config.yaml; `preset:` may name the preset."""

    path: Path | None = None
    """None: no file, nothing is changed."""
    preset: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> ConfigFile:
        """Read `path`. Raises `ValueError` for a file that cannot be read or holds no mapping."""
        try:
            data = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"--config {path}: cannot be read: {error}") from error
        require(isinstance(data, dict), f"--config {path}", data, "a mapping of settings")
        name = data.pop("preset", None)
        require(name is None or isinstance(name, str), f"--config {path}: preset", name, "the name of a preset")
        return cls(path, name, data)

    def sets(self, section: str, name: str) -> bool:
        """Whether the file sets `section.name`."""
        return name in (self.settings.get(section) or {})

    def over(self, config: C) -> C:
        """`config` with these settings applied. Raises `ValueError` for one that is unknown or not allowed."""
        try:
            return _build(type(config), self.settings, "", config)
        except ValueError as error:
            raise ValueError(f"--config {self.path}: {error}") from error


def save_config(config: Config, path: Path) -> None:
    """Write the whole resolved config as YAML."""
    path.write_text(config_to_yaml(config))


def config_to_yaml(config: Config) -> str:
    return yaml.safe_dump(_plain(config), sort_keys=False)


def load_config(path: Path) -> Config:
    """Read what `save_config` wrote, maybe a `FinetuneConfig`. Raises `UsageError` for a missing or damaged file."""
    try:
        return config_from_yaml(path.read_text())
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: not a readable config: {error}") from error


def config_from_yaml(text: str) -> Config:
    data = yaml.safe_load(text)
    if not isinstance(data, dict):
        raise ValueError("a mapping was expected")
    return _build(FinetuneConfig if "head" in data else Config, data, "")


def section_from(kind: type[S], data: dict[str, Any]) -> S:
    """A section of a config, such as a `ModelConfig`, from plain values. Raises `ValueError` for unknown settings."""
    return _build(kind, data, "")


def section_to(section: Any) -> dict[str, Any]:
    """The reverse of `section_from`, without `OMITTED` settings that have their defaults."""
    return _plain(section)


def _build(cls: Any, data: Any, where: str, base: Any = None) -> Any:
    """Dataclass `cls` from nested dicts, on top of `base` if given; unknown fields are errors, not dropped."""
    require(isinstance(data, dict), where.removesuffix(".") or "config", data, "a mapping of settings")
    known = get_type_hints(cls)
    unknown = sorted(str(name) for name in data if name not in known)
    if unknown:
        raise ValueError(f"unknown setting {where}{unknown[0]}; known: {', '.join(known)}")
    values = {}
    for name, value in data.items():
        if is_dataclass(known[name]):
            values[name] = _build(known[name], value, f"{where}{name}.", base and getattr(base, name))
        else:
            values[name] = _typed(known[name], value, f"{where}{name}")
    return replace(base, **values) if base else cls(**values)


def _typed(kind: Any, value: Any, name: str) -> Any:
    """A value from YAML as the type of its setting. Raises `ValueError` if it has another type."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return None if value is None else _typed(next(k for k in inner if k is not NoneType), value, name)
    if origin is Literal:
        require(value in inner, name, value, f"one of {', '.join(map(str, inner))}")
        return value
    if origin is tuple:
        require(isinstance(value, list), name, value, "a list")
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        require(len(value) == len(kinds), name, value, f"a list of {len(kinds)}")
        return tuple(_typed(kind, one, name) for kind, one in zip(kinds, value, strict=True))
    if kind is float and type(value) in (int, str):
        with suppress(ValueError):
            return float(value)  # YAML reads a number without a point, such as 1e-3, as text
    require(type(value) is kind, name, value, _KINDS[kind])
    return value


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        named = ((one, getattr(value, one.name)) for one in fields(value))
        return {one.name: _plain(x) for one, x in named if not (one.metadata.get("omitted") and x == _default(one))}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _default(setting: Field[Any]) -> Any:
    return setting.default if setting.default_factory is MISSING else setting.default_factory()


def differences(old: Config, new: Config) -> list[str]:
    """Dotted settings that differ, as 'name: old -> new' lines."""
    a, b = flat_settings(old), flat_settings(new)
    return [f"{name}: {a[name]} -> {b[name]}" for name in a if a[name] != b[name]]


def flat_settings(config: Config) -> dict[str, Any]:
    """Dotted name -> value of every setting."""
    return _flat(asdict(config))


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in data.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return out
