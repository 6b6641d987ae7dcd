"""Whom a student takes as its teacher, and what it takes over from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffmavil.config import Config, TeacherConfig
from diffmavil.config.errors import UsageError
from diffmavil.config.presets import FINETUNE_PRESETS
from diffmavil.evaluation.teachers import find_teacher, load_teacher
from diffmavil.model import DiffMAViL
from diffmavil.model.classifier import Classifier
from diffmavil.model.weights import export_weights, load_weights
from tests.runs import very_small


@pytest.fixture(scope="module")
def teacher_file(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported weights of a teacher twice as wide."""
    config = very_small(cache)
    config = replace(config, model=replace(config.model, encoder=replace(config.model.encoder, width=96)))
    path = tmp_path_factory.mktemp("teacher") / "wide.safetensors"
    torch.manual_seed(0)
    export_weights(DiffMAViL(config.model), config, path)
    return path


def student(cache: Path, teacher: Path | str | None) -> Config:
    """Before it has met its teacher: statistics and width are not known."""
    config = very_small(cache)
    audio = replace(config.model.audio, mean=None, std=None)
    told = TeacherConfig(stage=2, source=None if teacher is None else str(teacher))
    return replace(config, model=replace(config.model, audio=audio), teacher=told)


def test_what_a_student_takes_over_from_its_teacher(cache: Path, teacher_file: Path) -> None:
    config, theirs = find_teacher(student(cache, teacher_file))
    assert theirs is not None
    assert (config.model.target_width, config.model.encoder.width) == (96, 48)
    assert (config.model.audio.mean, config.model.audio.std) == (-6.0, 4.0)
    assert config.teacher.source == str(teacher_file)
    assert config.teacher.sha256 == hashlib.sha256(teacher_file.read_bytes()).hexdigest()
    loaded = load_teacher(config, theirs, torch.device("cpu"))
    source = load_weights(teacher_file)[0].state_dict()
    assert all(torch.equal(value, source[name]) for name, value in loaded.state_dict().items())
    assert find_teacher(config) == (config, theirs)
    assert find_teacher(very_small(cache)) == (very_small(cache), None)


def changed(config: Config, **model: object) -> Config:
    return replace(config, model=replace(config.model, **model))  # type: ignore[arg-type]


BAD: dict[str, tuple[Callable[[Config], Config], str]] = {
    "frames": (
        lambda c: changed(c, video=replace(c.model.video, frames=8)),
        r"model\.video\.frames=8: must be 4, as --teacher .*wide\.safetensors was trained",
    ),
    "patch": (
        lambda c: changed(c, audio=replace(c.model.audio, patch=(8, 16))),
        r"model\.audio\.patch=\(8, 16\): must be \(16, 16\), as --teacher",
    ),
    "window": (
        lambda c: changed(c, video=replace(c.model.video, seconds=2.0)),
        r"model\.video\.seconds=2\.0: must be 4\.0, as --teacher",
    ),
    "statistics": (
        lambda c: changed(c, audio=replace(c.model.audio, mean=-5.0, std=4.0)),
        r"model\.audio\.mean=-5\.0: must be -6\.0, as --teacher",
    ),
    "modalities": (lambda c: changed(c, modalities="audio"), r"model\.modalities='audio': must be 'av', as --teacher"),
    "width": (lambda c: changed(c, target_width=48), r"model\.target_width=48: must be 96, as --teacher"),
    "nobody": (lambda c: replace(c, teacher=TeacherConfig(stage=2)), r"teacher\.source=None: must be given in stage 2"),
    "not there": (
        lambda c: replace(c, teacher=replace(c.teacher, source="no/such/run")),
        "no/such/run: no such file or folder",
    ),
    "other weights": (
        lambda c: replace(c, teacher=replace(c.teacher, sha256="00")),
        r"teacher\.sha256='00': must be .* a run goes on with the teacher it began with",
    ),
}


@pytest.mark.parametrize("case", list(BAD))
def test_a_teacher_that_does_not_fit_is_refused(case: str, cache: Path, teacher_file: Path) -> None:
    change, said = BAD[case]
    with pytest.raises(ValueError, match=said):
        find_teacher(change(student(cache, teacher_file)))


def test_a_classifier_and_a_foreign_file_are_refused(cache: Path, tmp_path: Path) -> None:
    base = FINETUNE_PRESETS["finetune-tiny"]
    config = replace(base, model=very_small(cache).model, head=replace(base.head, classes=("a", "b"), labels="one"))
    export_weights(Classifier(config.model, config.head), config, tmp_path / "classifier.safetensors")
    with pytest.raises(ValueError, match="the weights of a fine-tuned classifier"):
        find_teacher(student(cache, tmp_path / "classifier.safetensors"))
    (tmp_path / "other.bin").write_bytes(b"something else")
    with pytest.raises(UsageError, match="cannot be read as exported weights"):
        find_teacher(student(cache, tmp_path / "other.bin"))


def test_a_teacher_without_statistics_needs_those_of_the_student(cache: Path, tmp_path: Path) -> None:
    config = very_small(cache)
    unknown = changed(config, audio=replace(config.model.audio, mean=None, std=None))
    export_weights(DiffMAViL(config.model), unknown, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.audio\.mean=None: must be given"):
        find_teacher(student(cache, tmp_path))
    given = changed(student(cache, tmp_path), audio=config.model.audio)
    assert find_teacher(given)[0].model.audio == config.model.audio
