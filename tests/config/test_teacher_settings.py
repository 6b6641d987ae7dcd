"""Settings of the second stage: short flags, presets, and nothing of them in the files of the first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from diffmavil.config import FinetuneConfig, TeacherConfig
from diffmavil.config.cli import parse_train
from diffmavil.config.errors import UsageError
from diffmavil.config.files import config_from_yaml, config_to_yaml, flat_settings
from diffmavil.config.finetune_cli import parse_finetune
from diffmavil.config.presets import FINETUNE_PRESETS, PRESETS, STAGE_2


def test_the_flags_are_short_for_settings_that_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (["--stage", "2", "--teacher", "runs/one"], ["--teacher.stage=2", "--teacher.source=runs/one"]):
        _, config, _ = parse_train(["mavil-tiny", *flags])
        assert (config.teacher.stage, config.teacher.source) == (2, "runs/one")
        assert config_from_yaml(config_to_yaml(config)) == config
    with pytest.raises(SystemExit):
        parse_train(["--help"])
    said = capsys.readouterr().out
    assert "--stage {1,2}, --teacher.stage {1,2}" in said
    assert "--teacher STR, --teacher.source STR" in said


def test_every_preset_has_a_second_stage_with_its_savings() -> None:
    first = [name for name in PRESETS if not name.endswith(STAGE_2)]
    assert {f"{name}{STAGE_2}" for name in first} == set(PRESETS) - set(first)
    for name in first:
        second = PRESETS[f"{name}{STAGE_2}"]
        assert second.teacher.stage == 2
        assert replace(second, teacher=TeacherConfig()) == PRESETS[name]


@pytest.mark.parametrize("config", [PRESETS["diffmavil-base-fast"], FINETUNE_PRESETS["finetune-tiny"]])
def test_files_of_the_first_stage_are_as_they_were(config) -> None:
    """Before there was a second one, no file had these."""
    text = config_to_yaml(config)
    assert not any(word in text for word in ("teacher", "target_width", "stage"))
    assert config_from_yaml(text) == config
    assert config_from_yaml(text).teacher == TeacherConfig()
    assert flat_settings(config)["teacher.stage"] == 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["mavil-tiny", "--teacher", "runs/one"], "teacher.source='runs/one': must be None in stage 1: add --stage 2"),
        (["mavil-tiny", "--model.target-width", "8"], "model.target_width=8: must be None in stage 1"),
        (["mavil-tiny-stage2", "--model.target-width", "0"], "model.target_width=0: must be positive"),
        (["--stage", "3"], "'3'"),
        (["mavil-tiny-stage2", "--teacher.decay", "0.9", "1.0"], "teacher.decay=(0.9, 1.0)"),
        (["mavil-tiny-stage2", "--teacher.decay-ramp", "2"], "teacher.decay_ramp=2.0: must be in [0, 1]"),
    ],
    ids=["a teacher in stage 1", "a width in stage 1", "width", "stage", "decay", "ramp"],
)
def test_what_cannot_be_is_refused(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((UsageError, SystemExit)) as stopped:
        parse_train(argv)
    words = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert said in f"{stopped.value} {words}"


def test_fine_tuning_has_no_teacher() -> None:
    with pytest.raises(ValueError, match=r"teacher\.stage=2: must be 1 in fine-tuning"):
        replace(FINETUNE_PRESETS["finetune-tiny"], teacher=TeacherConfig(stage=2))


def test_a_student_is_fine_tuned_as_any_other_model() -> None:
    config = PRESETS["mavil-tiny-stage2"]
    student = replace(config, model=replace(config.model, target_width=192))
    _, found, _ = parse_finetune(["--from", "run", "--task", "video"], lambda path: student)
    assert isinstance(found, FinetuneConfig)
    assert found.model == replace(student.model, modalities="video")
    assert config_from_yaml(config_to_yaml(found)) == found
