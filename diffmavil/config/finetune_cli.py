"""Parse the command line of fine-tuning into a resolved `FinetuneConfig`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Literal

from tyro.conf import Suppress, arg

from diffmavil.config import Config, FinetuneConfig, MaskConfig, TeacherConfig, require
from diffmavil.config.cli import RunOptions, config_file, flag, named_preset, parse_flags, resumed_config, shallow
from diffmavil.config.errors import UsageError
from diffmavil.config.presets import FINETUNE_PRESETS, finetune_preset_of

NOTHING = "none"
"""Value of --from for no weights."""
DEFAULT_FINETUNE = "finetune-tiny"


@dataclass(frozen=True)
class FinetuneOptions(RunOptions):
    """What a fine-tuning run starts from."""

    source: Annotated[str | None, arg(name="from")] = None
    """Run folder, its weights or a checkpoint, or owner/name on the Hugging Face Hub; 'none': from scratch."""
    task: Literal["auto", "audio", "video", "av"] = "auto"
    """Modalities to use. auto: those that the weights were trained on."""


@dataclass(frozen=True)
class _FinetuneArguments(FinetuneOptions, FinetuneConfig):
    mask: Annotated[MaskConfig, Suppress] = field(default_factory=MaskConfig)
    teacher: Annotated[TeacherConfig, Suppress] = field(default_factory=TeacherConfig)


def parse_finetune(
    argv: Sequence[str], read_config: Callable[[str], Config]
) -> tuple[str, FinetuneConfig, FinetuneOptions]:
    """`[PRESET] --from RUN [--config FILE] [--task audio] ...` -> (preset name, config, options).

    The model's inputs and size are those of the weights; the recipe is that of the preset nearest in size.

    Args:
        read_config: returns the config of the weights that `--from` names.

    Raises:
        UsageError: no `--from`, unknown preset or setting, or a value that the config does not allow.
        SystemExit: as in `parse_train`.
    """
    argv = list(argv)
    named = named_preset(argv)
    helped = "--help" in argv or "-h" in argv
    try:
        start = resumed_config(argv, named)
        name, source = named, flag(argv, "from")
        if start is None:
            if source is None and not helped:
                raise UsageError("--from is needed: a run folder or its weights to start from, or 'none' for scratch")
            pretrained = read_config(source) if source not in (None, NOTHING) else None
            file = config_file(argv)
            nearest = finetune_preset_of(pretrained.model) if pretrained else DEFAULT_FINETUNE
            name = named or file.preset or nearest
            require(name in FINETUNE_PRESETS, "preset", name, f"one of {', '.join(FINETUNE_PRESETS)}")
            recipe = FINETUNE_PRESETS[name]
            start = file.over(_adapted(recipe, pretrained, flag(argv, "task") or "auto", source or NOTHING))
            if file.sets("train", "steps") and not file.sets("head", "epochs"):
                start = _by_steps(start)
        else:
            start = _begun(start, source, flag(argv, "task"))
        steps, epochs = flag(argv, "train.steps"), flag(argv, "head.epochs")
        one = "left out beside --train.steps: they count the same"
        require(steps is None or epochs in (None, "None"), "--head.epochs", epochs, one)
        if steps is not None:
            start = _by_steps(start)
        args = parse_flags(
            _FinetuneArguments,
            argv,
            prog="python -m diffmavil.finetune [PRESET]",
            description=f"Fine-tune a pretrained model to tell classes.\n\nPRESET: {', '.join(FINETUNE_PRESETS)}",
            default=_FinetuneArguments(**shallow(start)),
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    config = FinetuneConfig(**{f.name: getattr(args, f.name) for f in fields(FinetuneConfig)})
    if config.head.source != NOTHING and config.model.hears and config.model.audio.mean is None:
        raise UsageError("--model.audio.mean and .std: must be given, as the weights, which do not tell, were trained")
    options = FinetuneOptions(**{f.name: getattr(args, f.name) for f in fields(FinetuneOptions)})
    return name or "finetune", config, options


def _begun(start: Config, source: str | None, task: str | None) -> FinetuneConfig:
    """The config of a resumed run. Raises `UsageError` and `ValueError` for settings fixed when it began."""
    if source is not None:
        raise UsageError("--from beside --resume: the run goes on from its own checkpoint; leave it out")
    if not isinstance(start, FinetuneConfig):
        raise UsageError("--run-dir: holds a pretraining run: python -m diffmavil.train goes on with it")
    begun = start.model.modalities
    same = task in (None, "auto", begun)
    require(same, "--task", task, f"{begun!r}, or left out, with --resume: the run has begun")
    return start


def _by_steps(config: FinetuneConfig) -> FinetuneConfig:
    """Drop the preset's epochs: the number of steps was given explicitly."""
    return replace(config, head=replace(config.head, epochs=None))


def _adapted(recipe: FinetuneConfig, pretrained: Config | None, task: str, source: str) -> FinetuneConfig:
    """The recipe, applied to the model of the weights."""
    model = pretrained.model if pretrained else recipe.model
    if task in ("audio", "video", "av"):
        there = pretrained.model.modalities if pretrained else "av"
        require(there in ("av", task), "--task", task, f"{there!r}: the weights have nothing else")
        model = replace(model, modalities=task)
    data = recipe.data if pretrained is None else replace(recipe.data, cache=pretrained.data.cache)
    return replace(recipe, model=model, data=data, head=replace(recipe.head, source=source))
