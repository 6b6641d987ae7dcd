"""From a command line to a resolved `Config`; and from a run folder back to it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import tyro
import yaml

from diffmavil.config import Config
from diffmavil.presets import DEFAULT_PRESET, PRESETS, preset

CONFIG_FILE = "config.yaml"


class UsageError(Exception):
    """A mistake of the user's: printed without a traceback, exit code 2."""


class RunError(Exception):
    """The run cannot go on (bad data, divergence): printed without a traceback, exit code 1."""


@dataclass(frozen=True)
class RunOptions:
    """Where a run lives and whether it goes on."""

    run_dir: Path | None = None
    """Run folder: config.yaml, metrics.jsonl, checkpoints, report.html. Default: runs/PRESET-DATE-TIME."""
    resume: bool = False
    """Continue from the newest checkpoint in --run-dir, with its config; start anew if there is none yet."""


@dataclass(frozen=True)
class _Arguments(RunOptions, Config):
    pass


def run_main(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Run a command's `main`, turning its mistakes into messages and exit codes 2 (usage) and 1 (run)."""
    try:
        main(sys.argv[1:])
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


def parse_train(argv: Sequence[str]) -> tuple[str, Config, RunOptions]:
    """`[PRESET] [--run-dir D] [--resume] [--data.root DIR] ...` -> (preset's name, config, options).

    Raises:
        UsageError: unknown preset, or a value that the config does not allow.
        SystemExit: code 2, after tyro printed what is wrong with the flags; code 0 after --help.
    """
    argv = list(argv)
    named = argv.pop(0) if argv and not argv[0].startswith("-") else None
    try:
        base = preset(named or DEFAULT_PRESET)
        start = _resumed_config(argv)
        if start is not None and named is not None:
            raise UsageError(f"preset {named!r} beside --resume: the run folder's config.yaml decides; leave it out")
        default = _Arguments(**_shallow(start or base))
        args = tyro.cli(
            _Arguments,
            prog=f"python -m diffmavil.train [PRESET={DEFAULT_PRESET}]",
            description=f"Pretrain an audio-video masked autoencoder.\n\nPRESET: {', '.join(PRESETS)}",
            args=argv,
            default=default,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    config = Config(**{f.name: getattr(args, f.name) for f in fields(Config)})
    return named or DEFAULT_PRESET, config, RunOptions(run_dir=args.run_dir, resume=args.resume)


def _resumed_config(argv: list[str]) -> Config | None:
    """The saved config of the run that `--resume` names, before the other flags are parsed over it."""
    if "--resume" not in argv:
        return None
    inline = [a.split("=", 1)[1] for a in argv if a.startswith("--run-dir=")]
    spaced = [argv[i + 1] for i, a in enumerate(argv[:-1]) if a == "--run-dir"]
    if not inline + spaced:
        raise UsageError("--resume needs --run-dir: which run is to go on?")
    path = Path((inline + spaced)[-1]) / CONFIG_FILE
    return load_config(path) if path.exists() else None


def save_config(config: Config, path: Path) -> None:
    """Write the whole resolved config as YAML."""
    path.write_text(config_to_yaml(config))


def config_to_yaml(config: Config) -> str:
    return yaml.safe_dump(_plain(asdict(config)), sort_keys=False)


def load_config(path: Path) -> Config:
    """Read what `save_config` wrote. Raises `UsageError` for a missing or damaged file."""
    try:
        return config_from_yaml(path.read_text())
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: not a readable config: {error}") from error


def config_from_yaml(text: str) -> Config:
    data = yaml.safe_load(text)
    if not isinstance(data, dict):
        raise ValueError("a mapping was expected")
    return _build(Config, data, "")


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


def _shallow(config: Config) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in fields(config)}


def differences(old: Config, new: Config) -> list[str]:
    """Dotted settings that differ, as 'name: old -> new' lines."""
    a, b = _flat(asdict(old)), _flat(asdict(new))
    return [f"{name}: {a[name]} -> {b[name]}" for name in a if a[name] != b[name]]


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in data.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return out
