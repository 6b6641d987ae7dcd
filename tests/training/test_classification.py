"""The task of fine-tuning: what a batch becomes, weights of classes and clips, means of the weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from diffmavil.config import FinetuneConfig, HeadConfig
from diffmavil.config.presets import FINETUNE_PRESETS
from diffmavil.data.clips import Clip, ClipSet
from diffmavil.data.dataset import Batch
from diffmavil.training.averages import Averages
from diffmavil.training.classification import Classification, class_weights, clip_weights
from diffmavil.training.distributed import World
from diffmavil.training.planner import plan
from diffmavil.training.step import TrainStep

CLIPS = ClipSet([Clip(str(i), labels=labels) for i, labels in enumerate([(0,), (0,), (0,), (1,)])], ["many", "one"])
SEVERAL = ClipSet([Clip(str(i), labels=labels) for i, labels in enumerate([(0,), (0, 1), (0,), (0, 2)])], list("abc"))


def config(**head: Any) -> FinetuneConfig:
    base = FINETUNE_PRESETS["finetune-tiny"]
    audio = replace(base.model.audio, frames=64, mels=32, mean=-5.0, std=4.0)
    small = replace(base.model, audio=audio, encoder=replace(base.model.encoder, depth=1, width=48), modalities="audio")
    settings = HeadConfig(**{"classes": ("many", "one"), "labels": "one", **head})
    return replace(base, model=small, head=settings)


def batch(first: int = 0) -> Batch:
    """Four clips, the second half as long as the window."""
    samples = config().model.audio.samples
    wave = torch.randn(4, samples, generator=torch.Generator().manual_seed(0))
    valid = torch.tensor([samples, samples // 2, samples, samples])
    wave[1, samples // 2 :] = 0
    labels = [(0,), (1,), (0,), (0,)]
    position = torch.arange(first, first + 4)
    return Batch(torch.zeros(4, 0, 0, 0, 3, dtype=torch.uint8), wave, valid, labels, position, list("abcd"))


def task(**head: Any) -> Classification:
    return Classification(config(**head), torch.device("cpu"), clips=CLIPS)


def test_classes_weigh_by_the_inverse_of_their_clips():
    assert class_weights(CLIPS, several=False).tolist() == pytest.approx([2 / 3, 2])  # mean over the clips: 1
    assert class_weights(SEVERAL, several=True).tolist() == pytest.approx([1 / 3, 4 / 3, 4 / 3])  # over classes: 1
    assert clip_weights(CLIPS) == pytest.approx((1 / 3, 1 / 3, 1 / 3, 1))
    assert clip_weights(SEVERAL) == pytest.approx((1 / 4, 5 / 4, 1 / 4, 5 / 4))


@pytest.mark.parametrize(("modalities", "scales"), [("av", {0.5, 1.0}), ("video", {1.0}), ("audio", {1.0})])
def test_the_rate_of_the_video_encoder_is_one_beside_the_audio_encoder(modalities, scales):
    wanted = config(lr_video=0.5)
    wanted = replace(
        wanted, model=replace(wanted.model, modalities=modalities), optim=replace(wanted.optim, layer_decay=1)
    )
    alone = World(0, 1, torch.device("cpu"))
    step = TrainStep(Classification(wanted, alone.device, clips=CLIPS), wanted, alone)
    assert {group["lr_scale"] for optimizer in step.optimizers for group in optimizer.param_groups} == scales


def test_the_loss_of_a_balanced_run_is_given_these_weights():
    now = plan(config(), 0)
    assert task().arguments(now, 0)["weights"] is None
    weights = task(balance="loss").arguments(now, 0)["weights"]
    assert weights.tolist() == pytest.approx([2 / 3, 2])


def test_mixed_clips_are_heard_until_the_longer_sound_ends():
    _, spec, heard, targets = task(mixup=0.5).inputs(batch())
    assert heard.tolist() == [64, 64, 64, 64]
    assert targets.sum(1).tolist() == pytest.approx([1] * 4)
    assert 0 < targets[0, 1] < 0.5
    _, plain, heard, targets = task(mixup=0).inputs(batch())
    assert heard.tolist() == [64, 31, 64, 64]
    assert targets.tolist() == [[1, 0], [0, 1], [1, 0], [1, 0]]
    assert not torch.equal(spec[:2], plain[:2])


def test_a_roll_leaves_padding_behind_the_sound():
    """What is pooled in training is then what is pooled in evaluation."""
    rolled, still = task(mixup=0), task(mixup=0)
    still._augment.config = replace(still.config.data.augment, roll=False)
    assert rolled.config.data.augment.roll
    (_, a, heard, _), (_, b, _, _) = rolled.inputs(batch(5)), still.inputs(batch(5))
    assert torch.equal(a[1, 31:], b[1, 31:])
    for i, end in enumerate(heard.tolist()):
        assert not torch.equal(a[i], b[i])
        assert any(torch.equal(torch.roll(b[i, :end], shift, 0), a[i, :end]) for shift in range(end))


def test_inputs_belong_to_their_position():
    first, again, later = (task(mixup=0.5).inputs(batch(at)) for at in (8, 8, 12))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], later[1])


def test_initial_weights_belong_to_the_seed():
    one, two = task().model.state_dict(), task().model.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


# Means of the weights


def averaged(steps: int, *, decay: float = 0.0, share: float = 0.0) -> dict[str, float]:
    """The mean weight after `steps` steps, whose weights are 1, 2, 3, ..."""
    model = nn.Linear(1, 1, bias=False)
    averages = Averages(model, decay=decay, share=share, steps=steps)
    for done in range(1, steps + 1):
        nn.init.constant_(model.weight, done)
        averages.after_step(done)
    return {name: mean.module.get_parameter("weight").item() for name, mean in averages.models.items()}


@pytest.mark.parametrize(("steps", "share", "mean"), [(8, 0.25, 7.5), (8, 0.5, 6.5), (3, 0.25, 3.0), (1, 0.9, 1.0)])
def test_the_average_is_over_the_last_share_of_the_steps(steps, share, mean):
    assert averaged(steps, share=share) == {"average": pytest.approx(mean)}


@pytest.mark.parametrize(("steps", "mean"), [(8, 6.5), (6, 5.5)], ids=["all of its end", "what is left of it"])
def test_the_average_of_a_run_that_was_made_longer_is_of_its_new_end(steps, mean):
    model = nn.Linear(1, 1, bias=False)
    first, longer = Averages(model, decay=0, share=0.5, steps=4), Averages(model, decay=0, share=0.5, steps=steps)
    for averages, begin, end in ((first, 1, 4), (longer, 5, steps)):
        for name, value in first.state.items():
            longer.state[name].data.copy_(value)
        for done in range(begin, end + 1):
            nn.init.constant_(model.weight, done)
            averages.after_step(done)
    assert longer.models["average"].module.get_parameter("weight").item() == pytest.approx(mean)


def test_the_exponential_mean():
    mean = 1.0
    for value in (2, 3, 4):
        mean = 0.9 * mean + 0.1 * value
    assert averaged(4, decay=0.9) == {"ema": pytest.approx(mean)}
    assert averaged(4) == {}


def test_a_mean_goes_on_from_its_state():
    """As a checkpoint gives it back: tensors filled in place."""
    model = nn.Linear(1, 1, bias=False)

    def go(averages: Averages, first: int, last: int) -> dict[str, float]:
        for done in range(first, last + 1):
            nn.init.constant_(model.weight, done)
            averages.after_step(done)
        return {name: mean.module.get_parameter("weight").item() for name, mean in averages.models.items()}

    whole, begun, resumed = (Averages(model, decay=0.9, share=0.5, steps=8) for _ in range(3))
    go(begun, 1, 6)
    for name, value in begun.state.items():
        resumed.state[name].data.copy_(value)
    assert go(resumed, 7, 8) == go(whole, 1, 8)
