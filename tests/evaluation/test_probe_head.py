"""A head that begins as a linear probe: it scores as the probe does, and says what it was fitted to."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffmavil.config import FinetuneConfig
from diffmavil.data.audio import frames_in, make_log_mel
from diffmavil.data.augment import multi_hot
from diffmavil.data.clips import ClipSet
from diffmavil.data.loader import eval_batches
from diffmavil.evaluation import probe_head
from diffmavil.evaluation.probe import fit_probe
from diffmavil.model.classifier import Classifier


@pytest.fixture
def model(tuned: FinetuneConfig) -> Classifier:
    torch.manual_seed(0)
    return Classifier(tuned.model, tuned.head)


@torch.no_grad()
def test_its_scores_are_those_of_the_probe_on_its_features(tuned: FinetuneConfig, clips: ClipSet, model: Classifier):
    tuned = replace(tuned, train=replace(tuned.train, precision="fp32"))
    said = probe_head.start_with_probe(model, tuned, clips, batch_size=4)
    assert said.startswith("the head begins as a linear probe on 6 training clips, l2 ")  # one of seven is no sound
    assert model.training
    (batch,) = eval_batches(tuned, clips, 8)
    heard = frames_in(batch.wave_valid, tuned.model.audio.sample_rate)
    seen = batch.video, make_log_mel(tuned.model)(batch.wave, batch.wave_valid), heard
    x, target = model.features(*seen), multi_hot(batch.labels, 3) > 0
    probe = fit_probe(x, target, "accuracy", seed=tuned.train.seed)
    assert f"l2 {probe.l2:g}" in said
    torch.testing.assert_close(model.scores(*seen).double(), probe(x), rtol=1e-3, atol=1e-4)


def test_a_class_without_a_clip_begins_as_the_least_likely_and_no_less(
    tuned: FinetuneConfig, clips: ClipSet, model: Classifier
):
    """Nothing holds its bias, which would run off to where it is never learnt."""
    kept = replace(clips, clips=[clip for clip in clips.clips if 2 not in clip.labels])
    assert {label for clip in kept.clips for label in clip.labels} == {0, 1}
    probe_head.start_with_probe(model, tuned, kept, batch_size=4)
    assert not model.head.weight[2].any()
    assert model.head.bias[2] == model.head.bias[:2].min()


def test_of_many_clips_some_are_chosen(
    tuned: FinetuneConfig, clips: ClipSet, model: Classifier, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(probe_head, "MOST_CLIPS", 4)
    done: list[int] = []
    said = probe_head.start_with_probe(model, tuned, clips, batch_size=4, progress=done.append)
    assert "on 4 training clips" in said
    assert done == [4]
