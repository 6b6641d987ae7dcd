"""The teacher of a second-stage run: found by what a person calls it, checked, and loaded for reading alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from diffmavil.config import Config, FinetuneConfig, ModelConfig, require
from diffmavil.config.files import CONFIG_FILE, load_config
from diffmavil.config.folders import expand
from diffmavil.evaluation.pretrained import find_weights, fingerprint, open_model
from diffmavil.model import DiffMAViL
from diffmavil.model.teacher import Teacher
from diffmavil.model.weights import read_weights
from diffmavil.training.second_stage import taught


def find_teacher(config: Config) -> tuple[Config, ModelConfig | None]:
    """The config with what a run needs to know of its teacher, and the teacher's own; None in the first stage.

    The config names the weights that were found and their hash, and has the teacher's width and the statistics of its
    sound.

    Raises:
        ValueError: no teacher is named, or none is there; a classifier; other weights than the config tells the hash
            of; or one that sees or hears other inputs than the student.
        UsageError: a file that is not exported weights.
    """
    told = config.teacher
    if told.stage == 1:
        return config, None
    require(told.source is not None, "teacher.source", None, "given in stage 2: --teacher RUN, or --teacher ema")
    assert told.source is not None
    if told.averaged:
        require(told.sha256 is None, "teacher.sha256", told.sha256, "None with --teacher ema, which has no file")
        config = taught(config, None)
        return config, config.model
    path = find_weights(told.source)
    digest = fingerprint(path)
    begun = f"{digest!r}, that of --teacher {told.source}: a run goes on with the teacher it began with"
    require(told.sha256 in (None, digest), "teacher.sha256", told.sha256, begun)
    theirs = _config_of(path)
    allowed = "a pretrained model: these are the weights of a fine-tuned classifier"
    require(not isinstance(theirs, FinetuneConfig), "teacher.source", told.source, allowed)
    config = taught(config, theirs.model)
    here = str(path.resolve()) if expand(told.source).exists() else told.source  # else it is on the Hub
    return replace(config, teacher=replace(told, source=here, sha256=digest)), theirs.model


def load_teacher(config: Config, teacher: ModelConfig, device: torch.device) -> Teacher:
    """The frozen teacher that `find_teacher` found; one that follows the student is empty yet.

    Raises:
        ValueError, UsageError: as of `find_teacher`.
        RunError: a checkpoint that does not fit its own config.
    """
    empty = Teacher(replace(teacher, attention=config.model.attention, norm=config.model.norm))
    if config.teacher.averaged:
        return empty.to(device)
    assert config.teacher.source is not None
    model, _ = open_model(find_weights(config.teacher.source))
    assert isinstance(model, DiffMAViL)  # find_teacher has looked
    return empty.learn_from(model).to(device)


def _config_of(path: Path) -> Config:
    return read_weights(path)[1] if path.is_file() else load_config(path / CONFIG_FILE)


def teacher_note(config: Config) -> str:
    """Who teaches, in a line."""
    told = config.teacher
    if told.averaged:
        first, last = told.decay
        return f"teacher: the average of the student's weights, decay {first:g} to {last:g}"
    line = f"teacher: {told.source}, frozen (sha256 {(told.sha256 or '')[:12]})"
    if told.source and Path(told.source).is_dir():
        line += "; a checkpoint, which its run removes if it goes on: without it this run cannot be resumed"
    return line
