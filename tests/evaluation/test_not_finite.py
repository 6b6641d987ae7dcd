"""Clips whose features are not finite are left out and named: whatever is compared with NaN counts as right."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from diffmavil.config import Config
from diffmavil.config.errors import RunError
from diffmavil.data.sources import split_source
from diffmavil.evaluation.evaluate import evaluate
from diffmavil.evaluation.features import extract, untrained_model
from diffmavil.model import DiffMAViL


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[DiffMAViL, slice], None]:
    """Makes a model give NaN for these rows of each batch."""

    def apply(model: DiffMAViL, rows: slice) -> None:
        features = model.features

        def spoiled(video: torch.Tensor, spec: torch.Tensor, heard: torch.Tensor):
            found = features(video, spec, heard)
            audio = found.audio.clone()
            audio[rows, 0] = torch.nan
            return found._replace(audio=audio)

        monkeypatch.setattr(model, "features", spoiled)

    return apply


def test_such_clips_are_left_out_and_named(config: Config, spoil: Callable[[DiffMAViL, slice], None]) -> None:
    split = split_source(config.data)
    model = untrained_model(config.model, seed=1)
    spoil(model, slice(0, 2))
    found = evaluate(model, config, split.train, split.held_out, batch_size=24)
    named = [clip.path for clip in (*split.train.clips[:2], *split.held_out.clips[:2])]
    assert found.skipped == dict.fromkeys(named, "its features are not finite")
    assert {name: (counts.used, counts.skipped) for name, counts in found.clips.items()} == {
        "train": (22, 2),
        "heldout": (22, 2),
    }
    assert "4 clips are left out since their features are not finite" in found.note()
    assert "could not be decoded" not in found.note()
    for metrics in found.results.values():
        assert all(0 <= value <= 1 for name, value in metrics.items() if not name.endswith("median_rank"))
    assert found.results["chance"]["audio_to_video/recall@1"] == pytest.approx(1 / 22, abs=1e-6)


def test_a_model_that_gives_nothing_else_is_an_error(config: Config, spoil: Callable[[DiffMAViL, slice], None]) -> None:
    clips = split_source(config.data).held_out
    models = {name: untrained_model(config.model, seed=1) for name in ("trained", "untrained")}
    spoil(models["trained"], slice(None))
    with pytest.raises(RunError, match="the trained model gives no finite features of any of 24 clips"):
        extract(models, config, clips)
