"""The command line of fine-tuning: which settings decide where several could."""

from __future__ import annotations

from dataclasses import replace

import pytest

from diffmavil.config import FinetuneConfig
from diffmavil.config.errors import UsageError
from diffmavil.config.finetune_cli import parse_finetune
from diffmavil.config.presets import PRESETS


def parsed(*argv: str) -> FinetuneConfig:
    config = replace(PRESETS["diffmavil-tiny"], train=replace(PRESETS["diffmavil-tiny"].train, steps=7))
    return parse_finetune(["--from", "weights.safetensors", *argv], lambda path: config)[1]


def test_statistics_that_the_weights_do_not_tell_may_be_given():
    audio = parsed("--model.audio.mean", "-5", "--model.audio.std", "4").model.audio
    assert (audio.mean, audio.std) == (-5, 4)


@pytest.mark.parametrize(
    ("flags", "text", "steps", "epochs"),
    [
        ((), "{}", 1000, 30),
        (("--train.steps", "9"), "{}", 9, None),
        (("--train.steps", "9"), "head: {epochs: 5}", 9, None),
        ((), "train: {steps: 8}", 8, None),
        ((), "train: {steps: 8}\nhead: {epochs: 5}", 8, 5),
        (("--head.epochs", "6"), "train: {steps: 8}", 8, 6),
    ],
)
def test_steps_that_are_given_are_not_counted_from_the_epochs_of_a_preset(tmp_path, flags, text, steps, epochs):
    (tmp_path / "settings.yaml").write_text(text)
    config = parsed("--task", "video", "--config", str(tmp_path / "settings.yaml"), *flags)
    assert (config.train.steps, config.head.epochs) == (steps, epochs)


def test_steps_and_epochs_together_are_refused():
    with pytest.raises(UsageError, match=r"--head\.epochs='6': must be left out beside --train\.steps"):
        parsed("--task", "video", "--head.epochs", "6", "--train.steps", "9")
    assert parsed("--task", "video", "--head.epochs", "None", "--train.steps", "9").head.epochs is None


def test_the_preset_nearest_in_size_gives_the_recipe_and_the_weights_the_model():
    config = parsed("--task", "video")
    assert config.model == replace(PRESETS["diffmavil-tiny"].model, modalities="video")
    assert config.head.source == "weights.safetensors"
    assert config.optim.layer_decay == 0.75


def test_an_image_mae_beside_weights_is_refused(capsys):
    with pytest.raises((UsageError, SystemExit)):
        parsed("--task", "video", "--init", "mae.pth")
    assert "train.init='mae.pth': must be None beside" in " ".join(capsys.readouterr().err.split())


def test_where_it_began_is_no_flag_of_its_own(capsys):
    with pytest.raises(SystemExit):
        parsed("--task", "video", "--head.source", "other")
    assert "--head.source" in capsys.readouterr().err
