"""Scores of clips: which row is whose, crops, what cannot be used, and the best weights in a run."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from diffmavil.config.errors import RunError
from diffmavil.data import dataset
from diffmavil.data.library import BadClip
from diffmavil.evaluation.classify import Predictions, predict
from diffmavil.evaluation.validation import BEST_FILE, Validation, read_best
from diffmavil.model.classifier import Classifier
from diffmavil.model.weights import load_classifier


class Loudness(nn.Module):
    """In place of a classifier: a score from the mean of the spectrogram alone, and how much of it is sound."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def scores(self, video: Tensor, spec: Tensor, heard: Tensor) -> Tensor:
        loud = (self.factor * spec.mean((1, 2))).sigmoid()
        return torch.stack([loud, heard / 1000, 1 - loud], dim=1)


def as_models(**factors: float) -> dict[str, Classifier]:
    return {name: cast(Classifier, Loudness(factor)) for name, factor in factors.items()}


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("crops", [1, 3])
def test_rows_are_clips_in_order_without_the_bad_one(tuned, clips, crops, batch_size):
    seen: list[int] = []
    found = predict(as_models(one=1.0), tuned, clips, batch_size=batch_size, crops=crops, progress=seen.append)
    good = [clip for i, clip in enumerate(clips.clips) if i != 2]
    assert found.paths == [clip.path for clip in good]
    assert [row.nonzero().flatten().tolist() for row in found.target] == [list(clip.labels) for clip in good]
    assert list(found.bad) == [clips.clips[2].path]
    loud = found.scores["one"][1:, 0]
    assert (loud.diff() > 0).all(), "scores belong to other clips"
    assert found.scores["one"][0, 1] < 0.05  # the short one
    assert seen == sorted(seen)
    assert seen[-1] == 7


def test_scores_are_the_mean_over_windows_evenly_spaced_in_time(tuned, clips):
    """Of a sound that grows louder: the centre crop, and the mean of beginning, middle and end."""
    one, three = (predict(as_models(x=3.0), tuned, clips, batch_size=5, crops=crops).scores["x"] for crops in (1, 3))
    assert not torch.equal(one[1:], three[1:])
    assert torch.allclose(one[0], three[0])  # shorter than the window
    alone = [
        predict(as_models(x=3.0), tuned, replace(clips, clips=[clip]), batch_size=1, crops=3).scores["x"]
        for clip in clips.clips[3:]
    ]
    assert torch.allclose(torch.cat(alone), three[2:])


def test_of_an_odd_number_of_crops_one_is_the_centre(tuned, clips):
    three, two, one = (predict(as_models(x=3.0), tuned, clips, batch_size=4, crops=crops) for crops in (3, 2, 1))
    assert three.centre is not None
    assert torch.equal(three.centre.scores["x"], one.scores["x"])
    assert (three.centre.paths, three.centre.bad) == (one.paths, one.bad)
    assert two.centre is one.centre is None


def test_a_clip_of_which_one_crop_fails_is_used(tuned, clips, monkeypatch):
    decoded, path = dataset.decode_clip, clips.clips[4].path

    def fails(source, *arguments, crop, **named):
        if source == path and crop[0] == 1:
            raise BadClip(path, "the disk is tired")
        return decoded(source, *arguments, crop=crop, **named)

    monkeypatch.setattr(dataset, "decode_clip", fails)
    found = predict(as_models(x=3.0), tuned, clips, batch_size=4, crops=3)
    assert path in found.paths
    assert list(found.bad) == [clips.clips[2].path]
    assert found.centre is not None
    assert found.centre.bad == {clips.clips[2].path: found.bad[clips.clips[2].path], path: "the disk is tired"}


def test_several_models_see_the_same_clips(tuned, clips):
    both = predict(as_models(x=1.0, y=-2.0), tuned, clips, batch_size=4, crops=2).scores
    for name, factor in (("x", 1.0), ("y", -2.0)):
        assert torch.equal(both[name], predict(as_models(n=factor), tuned, clips, batch_size=4, crops=2).scores["n"])


def test_nothing_to_judge_by_ends_the_run_with_a_message(tuned):
    found = Predictions(
        {"x": torch.rand(2, 3)}, torch.tensor([[True, False, False]] * 2), ["a", "b"], None, {"c": "why"}
    )
    with pytest.raises(RunError, match="2 clips cannot be scored, 1 could not be used: target="):
        found.judge("x", tuned, seed=0)
    broken = replace(found, scores={"x": torch.full((2, 3), torch.nan)})
    with pytest.raises(RunError, match="NaN"):
        broken.judge("x", tuned, seed=0)


# Validation in a run


def test_the_first_of_the_best_weights_is_kept(tuned, clips, tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = Classifier(tuned.model, tuned.head).train()
    scores = iter([0.2, 0.5, 0.5, 0.3, 0.6])

    class Judged:
        def __init__(self) -> None:
            self.metrics = {"top1": next(scores), "mAP": 0.0}

    monkeypatch.setattr(Predictions, "judge", lambda *_, **__: Judged())
    watch = Validation(model, tuned, clips, tmp_path, done=0, batch_size=4)
    kept = []
    for step, score in ((2, 0.2), (4, 0.5), (6, 0.5), (8, 0.3)):
        with torch.no_grad():
            model.head.bias.fill_(step)
        assert watch(step).metrics == {"val/top1": score, "val/mAP": 0}
        assert model.training
        kept.append(read_best(tmp_path / BEST_FILE))
    assert kept == [(2, 0.2), (4, 0.5), (4, 0.5), (4, 0.5)]
    best, told = load_classifier(tmp_path / BEST_FILE)
    assert best.head.bias.tolist() == [4, 4, 4]
    assert told.head == tuned.head
    assert Validation(model, tuned, clips, tmp_path, done=4, batch_size=4).best == 0.5
    forgotten = Validation(model, tuned, clips, tmp_path, done=3, batch_size=4)  # killed, and resumed from before
    assert forgotten.best == float("-inf")
    forgotten(4)
    assert read_best(tmp_path / BEST_FILE) == (4, 0.6)


def test_no_weights_yet(tmp_path):
    assert read_best(tmp_path / BEST_FILE) == (0, float("-inf"))
