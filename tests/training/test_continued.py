"""Runs that begin with weights of ours: other clips, a longer window, or a teacher's features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffmavil.config import Config, EncoderConfig
from diffmavil.config.files import load_config
from diffmavil.config.presets import FINETUNE_PRESETS
from diffmavil.evaluation.beginning import begin_with, check_beginning
from diffmavil.model import DiffMAViL
from diffmavil.model.classifier import Classifier
from diffmavil.model.weights import NO_DECODER, export_weights, load_weights
from tests.runs import losses, very_small

STILL = ("--train.steps", "1", "--optim.lr", "1e-12")


@pytest.fixture(scope="module")
def weights_file(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = very_small(cache)
    path = tmp_path_factory.mktemp("weights") / "ours.safetensors"
    torch.manual_seed(3)
    export_weights(DiffMAViL(config.model), config, path)
    return path


def started(cache: Path, source: object, **model: object) -> Config:
    """Statistics of the sound are not known yet."""
    config = very_small(cache)
    audio = replace(config.model.audio, mean=None, std=None)
    begun = replace(config, model=replace(config.model, **{"audio": audio, **model}))
    return replace(begun, train=replace(begun.train, init=str(source)))


def begun(config: Config) -> tuple[DiffMAViL, str]:
    model = DiffMAViL(config.model)
    return model, "\n".join(begin_with(model, config.train.init or "").lines())


def same(model: DiffMAViL, source: Path, part: str) -> bool:
    theirs = load_weights(source)[0].state_dict()
    own = {name: value for name, value in model.state_dict().items() if name.startswith(part)}
    return bool(own) and all(name in theirs and torch.equal(value, theirs[name]) for name, value in own.items())


def test_a_run_goes_on_from_the_weights_of_another(whole_run: Path, train, tmp_path: Path) -> None:
    """In two processes that learn next to nothing; the statistics of the sound come with the weights."""
    folder = tmp_path / "more"
    done = train(folder, "--init", str(whole_run), *STILL, nproc=2)
    assert done.stdout.count("init: ") == 1
    assert f"init: {whole_run}, weights of ours" in done.stdout
    model, config = load_weights(folder / "model.safetensors")
    for name, value in load_weights(whole_run / "model.safetensors")[0].state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=1e-6)
    old = load_config(whole_run / "config.yaml").model
    assert (config.model.audio.mean, config.model.audio.std) == (old.audio.mean, old.audio.std)
    assert config.train.init == str(whole_run)
    assert losses(folder)[1][0] < losses(whole_run)[1][0]
    resumed = train(folder, "--resume", "--train.steps", "2", preset=None)
    assert "init:" not in resumed.stdout
    refused = train(folder, "--resume", "--init", "other", preset=None, code=2)
    assert f"error: train.init='other': must be '{whole_run}', or left out" in refused.stderr


def test_a_student_may_begin_as_its_teacher(whole_run: Path, train, tmp_path: Path) -> None:
    flags = ("--stage", "2", "--teacher", str(whole_run), "--init", str(whole_run), *STILL)
    said = train(tmp_path / "student", *flags).stdout
    assert "  new: audio.decoder.head (2), video.decoder.head (2)" in said
    model, _ = load_weights(tmp_path / "student" / "model.safetensors")
    theirs = load_weights(whole_run / "model.safetensors")[0].state_dict()
    torch.testing.assert_close(
        model.state_dict()["audio.encoder.blocks.0.attn.qkv.weight"],
        theirs["audio.encoder.blocks.0.attn.qkv.weight"],
        rtol=0,
        atol=1e-6,
    )


def test_all_is_taken_where_all_fits(cache: Path, weights_file: Path) -> None:
    config = check_beginning(started(cache, weights_file))
    assert (config.model.audio.mean, config.model.audio.std) == (-6.0, 4.0)
    model, said = begun(config)
    assert same(model, weights_file, "")
    assert "new:" not in said
    assert "left over" not in said


def test_a_longer_window_and_other_sizes_are_taken(cache: Path, weights_file: Path) -> None:
    model = very_small(cache).model
    longer = started(
        cache,
        weights_file,
        video=replace(model.video, frames=8, size=48),
        audio=replace(model.audio, frames=128, mean=-5.0, std=3.0),
        fusion_depth=2,
        audio_decoder=replace(model.audio_decoder, attention="self"),
    )
    config = check_beginning(longer)
    assert (config.model.audio.mean, config.model.audio.std) == (-5.0, 3.0), "given ones stay"
    model_, said = begun(config)
    for part in ("video.encoder", "audio.encoder", "video.decoder", "fusion.blocks.0"):
        assert same(model_, weights_file, part), part
    left, new = said.partition("  left over: ")[2].splitlines()
    assert "audio.decoder.blocks" in left
    assert "fusion.blocks (12)" in new, "the second block alone"
    assert "audio.decoder.blocks (12)" in new
    assert "encoder" not in new


def test_what_means_something_else_there_is_not_taken(cache: Path, tmp_path: Path) -> None:
    """Other heads cut the same matrices otherwise, and patches may have as many values as a teacher's features."""
    config = very_small(cache)
    patch = replace(config.model.audio, mels=24, patch=(16, 3))  # 48 values, as wide as the encoder
    config = replace(config, model=replace(config.model, audio=patch))
    path = tmp_path / "ours.safetensors"
    export_weights(DiffMAViL(config.model), config, path)
    video_decoder = replace(config.model.video_decoder, heads=2)
    model = DiffMAViL(replace(config.model, target_width=48, video_decoder=video_decoder))
    said = "\n".join(begin_with(model, str(path)).lines())
    assert same(model, path, "audio.decoder.blocks")
    assert not same(model, path, "audio.decoder.head.weight")
    assert "video.decoder:" not in said


def test_decoders_that_begin_at_random_are_not_taken(cache: Path, tmp_path: Path) -> None:
    """As weights converted from encoders alone have them: each run begins with its own."""
    config, path = very_small(cache), tmp_path / "converted.safetensors"
    export_weights(DiffMAViL(config.model), config, path, {NO_DECODER: "it begins at random"})
    model, said = begun(started(cache, path, audio=config.model.audio))
    assert same(model, path, "audio.encoder")
    assert "decoder:" not in said
    assert "new: " in said


def test_statistics_of_the_sound_are_told_where_they_differ_or_asked_for(cache: Path, tmp_path: Path) -> None:
    config, path = very_small(cache), tmp_path / "silent.safetensors"
    untold = replace(config, model=replace(config.model, audio=replace(config.model.audio, mean=None, std=None)))
    export_weights(DiffMAViL(untold.model), untold, path)
    with pytest.raises(ValueError, match=r"model.audio.mean=None: must be given, with std, as the weights"):
        check_beginning(started(cache, path))
    _, said = begun(check_beginning(started(cache, path, audio=config.model.audio)))
    assert "mean and std of the sound are (-6.0, 4.0) here, and (None, None) as the weights were trained" in said


def test_one_modality_of_both_is_taken(cache: Path, weights_file: Path) -> None:
    model, said = begun(check_beginning(started(cache, weights_file, modalities="audio")))
    assert same(model, weights_file, "audio.")
    left = said.partition("  left over: ")[2]
    assert "video.encoder.blocks" in left
    assert "audio." not in left
    assert "new:" not in said


BAD: dict[str, tuple[Callable[[Config], Config], str]] = {
    "width": (
        lambda c: replace(c, model=replace(c.model, encoder=EncoderConfig(depth=1, width=96, heads=3))),
        r"model.encoder.width=96: must be as --init .*ours.safetensors was trained: --model.encoder.width 48$",
    ),
    "patch": (
        lambda c: replace(c, model=replace(c.model, audio=replace(c.model.audio, patch=(8, 16)))),
        r"model.audio.patch=\(8, 16\): must be as --init .* was trained: --model.audio.patch 16 16$",
    ),
    "colours": (
        lambda c: replace(c, model=replace(c.model, video=replace(c.model.video, mean=(0.5, 0.5, 0.5)))),
        r"model.video.mean=\(0.5, 0.5, 0.5\): must be as .* was trained: --model.video.mean 0.485 0.456 0.406$",
    ),
    "several": (
        lambda c: replace(c, model=replace(c.model, encoder=EncoderConfig(depth=2, width=48, heads=3, cls=False))),
        r"model.encoder.depth=2, model.encoder.cls=False: must be .*: --model.encoder.depth 1 --model.encoder.cls$",
    ),
    "shared": (
        lambda c: replace(c, model=replace(c.model, shared_encoder=True)),
        r"model.shared_encoder=True: must be as --init .* was trained: --model.no-shared-encoder$",
    ),
    "nothing": (
        lambda c: replace(c, train=replace(c.train, init="no/such.safetensors")),
        r"init='no/such.safetensors': cannot be read: No such file or directory",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused(name: str, cache: Path, weights_file: Path) -> None:
    change, said = BAD[name]
    with pytest.raises(ValueError, match=said):
        check_beginning(change(started(cache, weights_file)))


def test_no_common_modality_is_refused(cache: Path, tmp_path: Path) -> None:
    sound = very_small(cache)
    sound = replace(sound, model=replace(sound.model, modalities="audio"))
    export_weights(DiffMAViL(sound.model), sound, tmp_path / "sound.safetensors")
    with pytest.raises(ValueError, match=r"model.modalities='video': must be one with a modality in common: .* audio"):
        check_beginning(started(cache, tmp_path / "sound.safetensors", modalities="video"))
    model, said = begun(check_beginning(started(cache, tmp_path / "sound.safetensors")))
    assert same(model, tmp_path / "sound.safetensors", "audio.encoder")
    assert "new: " in said
    assert "video.encoder" in said


def test_a_classifier_and_a_folder_without_weights_are_refused(cache: Path, tmp_path: Path) -> None:
    tuned = FINETUNE_PRESETS["finetune-tiny"]
    tuned = replace(tuned, model=very_small(cache).model, head=replace(tuned.head, classes=("a", "b"), labels="one"))
    export_weights(Classifier(tuned.model, tuned.head), tuned, tmp_path / "tuned.safetensors")
    with pytest.raises(
        ValueError, match="must be a pretrained model: these are the weights of a fine-tuned classifier"
    ):
        check_beginning(started(cache, tmp_path / "tuned.safetensors"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: holds neither model.safetensors nor checkpoints"):
        check_beginning(started(cache, tmp_path / "empty"))
