"""`--config FILE`: some settings over those of a preset, and flags over both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from diffmavil.config.cli import parse_train
from diffmavil.config.errors import UsageError
from diffmavil.config.files import config_to_yaml, save_config
from diffmavil.config.finetune_cli import parse_finetune
from diffmavil.config.presets import FINETUNE_PRESETS, PRESETS

PRETRAINED = replace(
    PRESETS["mavil-small"],
    model=replace(PRESETS["mavil-small"].model, audio=replace(PRESETS["mavil-small"].model.audio, mean=-4.0, std=4.0)),
)
Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Makes a file of the text, and gives its name."""

    def written(text: str) -> str:
        (tmp_path / "recipe.yaml").write_text(text)
        return str(tmp_path / "recipe.yaml")

    return written


def finetune(argv: list[str]):
    return parse_finetune(argv, lambda path: PRETRAINED)


def test_a_file_changes_only_what_it_names(write: Write) -> None:
    file = write(
        """
        preset: mavil-base
        model: {audio: {frames: 496, patch: [8, 16]}, modalities: audio}
        optim: {lr: 1e-3}
        data: {flip: false, eval_root: test.csv}
        batch: {gflop: null}
        """
    )
    name, config, options = parse_train(["--config", file])
    base = PRESETS["mavil-base"]
    audio = replace(base.model.audio, frames=496, patch=(8, 16))
    assert name == "mavil-base"
    assert options.config == Path(file)
    assert config == replace(
        base,
        model=replace(base.model, audio=audio, modalities="audio"),
        optim=replace(base.optim, lr=1e-3),
        data=replace(base.data, flip=False, eval_root="test.csv"),
    )


def test_flags_and_a_named_preset_go_over_the_file(write: Write) -> None:
    file = write("preset: mavil-base\ntrain: {steps: 7, seed: 3}")
    name, config, _ = parse_train(["mavil-small", f"--config={file}", "--train.steps", "9"])
    base = PRESETS["mavil-small"]
    assert name == "mavil-small"
    assert config == replace(base, train=replace(base.train, steps=9, seed=3))


def test_without_preset_it_is_the_default(write: Write) -> None:
    assert parse_train(["--config", write("train: {steps: 7}")])[0] == "diffmavil-tiny"


def test_a_whole_config_is_a_file_too(write: Write) -> None:
    file = write(config_to_yaml(PRESETS["diffmavil-large-fast"]))
    assert parse_train(["--config", file])[1] == PRESETS["diffmavil-large-fast"]


def test_fine_tuning_keeps_the_model_of_the_weights(write: Write) -> None:
    file = write("preset: finetune-tiny\noptim: {lr: 3e-4}\nhead: {epochs: 60, mixup: 0}")
    name, config, _ = finetune(["--from", "run", "--config", file, "--task", "audio", "--head.mixup", "0.2"])
    recipe = FINETUNE_PRESETS["finetune-tiny"]
    assert name == "finetune-tiny"
    assert config == replace(
        recipe,
        model=replace(PRETRAINED.model, modalities="audio"),
        optim=replace(recipe.optim, lr=3e-4),
        head=replace(recipe.head, epochs=60.0, mixup=0.2, source="run"),
    )
    assert finetune(["--from", "run", "--config", write("head: {epochs: 60}")])[0] == "finetune-small"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {stepz: 5}", r"recipe\.yaml: unknown setting train\.stepz; known: steps"),
        ("5: {steps: 5}", r"unknown setting 5; known: model"),
        ("head: {epochs: 5}", r"unknown setting head"),
        ("preset: mavil-huge", r"preset='mavil-huge': must be one of mavil-tiny"),
        ("preset: [a]", r"preset=\['a'\]: must be the name"),
        ("train: 5", r"train=5: must be a mapping"),
        ("- train", r"recipe\.yaml=\['train'\]: must be a mapping"),
        ("", r"None: must be a mapping"),
        ("train: {steps: 0}", r"train\.steps=0: must be >= 1"),
        ("train: {steps: 1.5}", r"train\.steps=1\.5: must be a whole number"),
        ("train: {steps: true}", r"train\.steps=True: must be a whole number"),
        ("optim: {lr: fast}", r"optim\.lr='fast': must be a number"),
        ("optim: {name: adam}", r"optim\.name='adam': must be one of adamw"),
        ("data: {flip: 1}", r"data\.flip=1: must be true or false"),
        ("data: {root: 5}", r"data\.root=5: must be text"),
        ("model: {audio: {patch: 16}}", r"model\.audio\.patch=16: must be a list"),
        ("model: {audio: {patch: [16]}}", r"model\.audio\.patch=\[16\]: must be a list of 2"),
        ("model: {audio: {patch: [a, b]}}", r"model\.audio\.patch='a': must be a whole number"),
        ("model: {views: 2", r"recipe\.yaml: cannot be read"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(text: str, said: str, write: Write) -> None:
    with pytest.raises(UsageError, match=said):
        parse_train(["--config", write(text)])


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--config .*no\.yaml: cannot be read: .*No such file"):
        parse_train(["--config", str(tmp_path / "no.yaml")])
    with pytest.raises(UsageError, match=r"--config .*no\.yaml: cannot be read"):
        finetune(["--from", "none", "--config", str(tmp_path / "no.yaml")])


def test_fine_tuning_refuses_a_preset_of_pretraining(write: Write) -> None:
    with pytest.raises(UsageError, match=r"preset=.mavil-base.: must be one of finetune-tiny"):
        finetune(["--from", "none", "--config", write("preset: mavil-base")])


def test_beside_resume_it_is_refused(tmp_path: Path, write: Write) -> None:
    file = write("train: {steps: 7}")
    save_config(PRESETS["mavil-small"], tmp_path / "config.yaml")
    with pytest.raises(UsageError, match="--config beside --resume"):
        parse_train(["--run-dir", str(tmp_path), "--resume", "--config", file])
    save_config(FINETUNE_PRESETS["finetune-tiny"], tmp_path / "config.yaml")
    with pytest.raises(UsageError, match="--config beside --resume"):
        finetune(["--run-dir", str(tmp_path), "--resume", "--config", file])
