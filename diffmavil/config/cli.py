"""Parse a command line into a resolved `Config`."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NoReturn, TypeVar, Union, get_args

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from diffmavil.config import Config, FinetuneConfig
from diffmavil.config.errors import RunError, UsageError
from diffmavil.config.files import CONFIG_FILE, ConfigFile, load_config
from diffmavil.config.folders import expand, expanded
from diffmavil.config.presets import DEFAULT_PRESET, PRESETS, preset


@dataclass(frozen=True)
class RunOptions:
    """Where a run is stored and whether to resume it."""

    run_dir: Path | None = None
    """Run folder. Default: runs/PRESET-DATE-TIME. Holds config.yaml, metrics.jsonl, checkpoints and report.html."""
    resume: bool = False
    """Resume from the newest checkpoint in --run-dir, with its config; start from scratch if there is none yet."""
    config: Path | None = None
    """YAML file of settings that differ from the preset's, named as in config.yaml; other flags override them. Its key
    'preset' names the preset, unless the command line does."""


@dataclass(frozen=True)
class _Arguments(RunOptions, Config):
    pass


T = TypeVar("T")
_REGISTRY = tyro.constructors.ConstructorRegistry()
# tyro clears its caches, which all threads share, at the end of every call.
_ONE_AT_A_TIME = threading.Lock()


@_REGISTRY.primitive_rule
def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """`X | None` accepts what X accepts and is shown as X in --help; the word None is parsed as None.

    tyro itself would show `{None}|X`.
    """
    inner = [kind for kind in get_args(info.type) if kind is not NoneType]
    if info.type_origin not in (Union, UnionType) or len(inner) != 1 or NoneType not in get_args(info.type):
        return None
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(inner[0], info.markers))
    if not isinstance(spec, PrimitiveConstructorSpec):
        return None
    return replace(
        spec,
        instance_from_str=lambda words: None if words == ["None"] else spec.instance_from_str(words),
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: ["None"] if value is None else spec.str_from_instance(value),
        choices=None,
    )


def parse_flags(
    kind: type[T], argv: Sequence[str], *, prog: str, description: str | None = None, default: T | None = None
) -> T:
    """Parse flags into an instance of the dataclass `kind`, on top of `default` if given; expand `~` in paths.

    Raises:
        ValueError: values that the dataclass rejects.
        SystemExit: code 2, after tyro has printed what is wrong with the flags; code 0 after --help.
    """
    given: Any = {} if default is None else {"default": default}
    with _ONE_AT_A_TIME:
        values = tyro.cli(kind, prog=prog, description=description, args=list(argv), registry=_REGISTRY, **given)
    return expanded(values)


def run_main(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Run a command's `main`, turning its errors into messages and exit codes 2 (usage) and 1 (run).

    One of several processes exits immediately on an error, without tearing anything down: torchrun then ends its
    peers, which may be waiting for it.
    """
    code = 0
    try:
        main(sys.argv[1:])
    except (UsageError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2 if isinstance(error, UsageError) else 1
    except Exception:
        if not _one_of_several():
            raise
        traceback.print_exc()
        code = 1
    if code and _one_of_several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _one_of_several() -> bool:
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def parse_train(argv: Sequence[str]) -> tuple[str, Config, RunOptions]:
    """`[PRESET] [--config FILE] [--run-dir D] [--resume] [--data.root DIR] ...` -> (preset name, config, options).

    Raises:
        UsageError: unknown preset or setting, or a value that the config does not allow.
        SystemExit: code 2, after tyro has printed what is wrong with the flags; code 0 after --help.
    """
    argv = list(argv)
    named = named_preset(argv)
    try:
        start = resumed_config(argv, named)
        file = config_file(argv)
        name = named or file.preset or DEFAULT_PRESET
        base = file.over(preset(name))
        if isinstance(start, FinetuneConfig):
            raise UsageError("--run-dir: holds a fine-tuning run: python -m diffmavil.finetune goes on with it")
        default = _Arguments(**shallow(start or base))
        args = parse_flags(
            _Arguments,
            argv,
            prog=f"python -m diffmavil.train [PRESET={DEFAULT_PRESET}]",
            description=f"Pretrain an audio-video masked autoencoder.\n\nPRESET: {', '.join(PRESETS)}",
            default=default,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    config = Config(**{f.name: getattr(args, f.name) for f in fields(Config)})
    return name, config, RunOptions(**{f.name: getattr(args, f.name) for f in fields(RunOptions)})


def named_preset(argv: list[str]) -> str | None:
    """Remove the preset from the front of `argv` and return it, if one is named."""
    return argv.pop(0) if argv and not argv[0].startswith("-") else None


def flag(argv: Sequence[str], name: str) -> str | None:
    """The last value given for a flag, before tyro parses it."""
    inline = [a.split("=", 1)[1] for a in argv if a.startswith(f"--{name}=")]
    spaced = [argv[i + 1] for i, a in enumerate(argv[:-1]) if a == f"--{name}"]
    return (inline + spaced or [None])[-1]


def config_file(argv: Sequence[str]) -> ConfigFile:
    """The file that `--config` names, or one that changes nothing. Raises `ValueError` as `ConfigFile.read` does."""
    path = flag(argv, "config")
    return ConfigFile() if path is None else ConfigFile.read(expand(path))


def resumed_config(argv: list[str], named: str | None) -> Config | None:
    """The saved config of the run to resume, on top of which the other flags are parsed; None if there is none."""
    if "--resume" not in argv:
        return None
    folder = flag(argv, "run-dir")
    if folder is None:
        raise UsageError("--resume needs --run-dir: which run is to go on?")
    path = expand(folder) / CONFIG_FILE
    if not path.exists():
        return None
    if named is not None:
        raise UsageError(f"preset {named!r} beside --resume: the run folder's config.yaml decides; leave it out")
    if flag(argv, "config") is not None:
        raise UsageError("--config beside --resume: the run folder's config.yaml decides; leave it out")
    return load_config(path)


def shallow(config: Config) -> dict[str, Any]:
    """Field name -> value, nested dataclasses unchanged."""
    return {f.name: getattr(config, f.name) for f in fields(config)}
