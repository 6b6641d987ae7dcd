"""One stack of encoder blocks for sound and picture: what is trained, written, resumed, taken over and exported."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffmavil.config import Config, HeadConfig
from diffmavil.evaluation.beginning import begin_with
from diffmavil.model import DiffMAViL
from diffmavil.model.classifier import Classifier, start_from
from diffmavil.model.flops import count_parameters, forward_flops
from diffmavil.model.teacher import Teacher
from diffmavil.model.weights import export_weights, load_weights
from diffmavil.training.optim import make_optimizers
from tests.runs import losses, very_small

Either = DiffMAViL | Classifier | Teacher


def shared(cache: Path) -> Config:
    config = very_small(cache)
    return replace(config, model=replace(config.model, shared_encoder=True))


def is_one(model: Either) -> bool:
    return model.audio.encoder.blocks[0] is model.video.encoder.blocks[0]


@pytest.fixture(scope="module")
def weights_file(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = shared(cache)
    path = tmp_path_factory.mktemp("weights") / "shared.safetensors"
    export_weights(DiffMAViL(config.model), config, path)
    return path


def test_blocks_are_one_and_embeddings_two(cache: Path) -> None:
    one, two = DiffMAViL(shared(cache).model), DiffMAViL(very_small(cache).model)
    assert is_one(one)
    assert not is_one(two)
    assert one.audio.encoder.embed.proj is not one.video.encoder.embed.proj
    assert count_parameters(two) - count_parameters(one) == count_parameters(two.video.encoder.blocks)
    assert forward_flops(one, 4, 4) == forward_flops(two, 4, 4)


def test_one_modality_shares_nothing(cache: Path) -> None:
    config = replace(shared(cache).model, modalities="audio")
    assert count_parameters(DiffMAViL(config)) == count_parameters(DiffMAViL(replace(config, shared_encoder=False)))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_an_optimiser_has_each_parameter_once(cache: Path, name: str) -> None:
    config = shared(cache)
    model = DiffMAViL(config.model)
    optimizers = make_optimizers(model, replace(config.optim, name=name, layer_decay=0.5))
    given = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, given)) == sorted(map(id, model.parameters()))


def test_a_file_has_both_names_and_gives_the_same_model(cache: Path, weights_file: Path) -> None:
    model, config = load_weights(weights_file)
    assert config.model.shared_encoder
    assert is_one(model)
    apart = DiffMAViL(very_small(cache).model)
    apart.load_state_dict(model.state_dict())
    clips = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8), torch.randn(2, 64, 32)
    with torch.no_grad():
        torch.testing.assert_close(apart.features(*clips), model.features(*clips), rtol=0, atol=0)


def test_what_begins_with_it_takes_over_all(cache: Path, weights_file: Path) -> None:
    source = str(weights_file)
    theirs = load_weights(weights_file)[0].state_dict()
    config = shared(cache)
    student = DiffMAViL(config.model)
    begin_with(student, source)
    classifier = Classifier(config.model, HeadConfig(classes=("a", "b"), labels="one"))
    start_from(classifier, theirs)
    teacher = Teacher(config.model).learn_from(load_weights(weights_file)[0])
    alone = Classifier(replace(config.model, modalities="video"), HeadConfig(classes=("a", "b"), labels="one"))
    start_from(alone, theirs)
    for model in (student, classifier, teacher):
        assert is_one(model)
    for model in (student, classifier, teacher, alone):
        blocks = {name: value for name, value in model.state_dict().items() if ".encoder." in name}
        assert len(blocks) > 10
        for name, value in blocks.items():
            assert value.equal(theirs[name]), name


def test_weights_of_one_modality_fill_the_blocks_of_both(cache: Path, tmp_path: Path) -> None:
    sound = very_small(cache)
    sound = replace(sound, model=replace(sound.model, modalities="audio"))
    export_weights(DiffMAViL(sound.model), sound, tmp_path / "sound.safetensors")
    model = DiffMAViL(shared(cache).model)
    report = begin_with(model, str(tmp_path / "sound.safetensors"))
    assert not any("encoder.blocks" in part for part in report.new), report.new
    assert any("video.encoder.embed" in part for part in report.new)


def test_a_resume_does_not_make_one_encoder_of_two(whole_run: Path, train) -> None:
    refused = train(whole_run, "--resume", "--model.shared-encoder", "--train.steps", "9", preset=None, code=2)
    assert "model.shared_encoder=True: must be False, or left out, with --resume" in refused.stderr


def test_a_classifier_does_not_make_one_encoder_of_two(cache: Path, weights_file: Path) -> None:
    head = HeadConfig(classes=("a", "b"), labels="one")
    apart = DiffMAViL(very_small(cache).model).state_dict()
    with pytest.raises(ValueError, match=r"shared_encoder=True: must be --model\.no-shared-encoder: the weights have"):
        start_from(Classifier(shared(cache).model, head), apart)
    start_from(Classifier(replace(shared(cache).model, modalities="video"), head), apart)


@pytest.mark.parametrize("nproc", [1, 2])
def test_a_run_is_resumed_as_if_nothing_had_been(nproc: int, train, tmp_path: Path) -> None:
    """With Muon and averaged weights."""
    flags = ("--model.shared-encoder", "--optim.name", "muon", "--train.ema", "0.5", "--train.checkpoint-every", "4")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(whole, *flags, nproc=nproc)
    train(cut, *flags, nproc=nproc)
    shutil.rmtree(cut / "checkpoints" / "step-00000008")
    (cut / "model.safetensors").unlink()
    train(cut, "--resume", preset=None, nproc=nproc)
    assert losses(cut) == losses(whole)
    for file in ("model.safetensors", "ema.safetensors"):
        ours, theirs = load_weights(cut / file)[0], load_weights(whole / file)[0]
        assert is_one(ours)
        for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            assert a.equal(b), name
