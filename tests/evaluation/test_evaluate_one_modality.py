"""A model that only hears or only sees, from its weights to the report: that kind of feature, and no retrieval."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from diffmavil.config import Config
from diffmavil.config.files import save_config
from diffmavil.data.sources import split_source
from diffmavil.evaluate import main
from diffmavil.evaluation.features import untrained_model
from diffmavil.evaluation.monitor import FeatureMonitor
from diffmavil.evaluation.result import read_evaluation
from diffmavil.model.weights import export_weights


@pytest.mark.parametrize("kind", ["audio", "video"])
def test_only_that_kind_is_judged(config: Config, tmp_path: Path, kind: Literal["audio", "video"]):
    config = replace(config, model=replace(config.model, modalities=kind))
    save_config(config, tmp_path / "config.yaml")
    export_weights(untrained_model(config.model, seed=11), config, tmp_path / "model.safetensors")
    main(["--run-dir", str(tmp_path), "--crops", "3"])
    found = read_evaluation(tmp_path)
    assert found is not None
    assert all(list(metrics) == [f"probe/{kind}", f"knn/{kind}"] for metrics in found.results.values())
    assert f"Retrieval is left out: the model has {kind} alone." in found.notes
    assert found.headline == f"probe/{kind}"
    assert (found.protocol.video_seconds is None) == (kind == "audio")
    assert (found.protocol.audio_mean is None) == (kind == "video")
    assert "linear probe, " + kind in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("kind", ["audio", "video"])
def test_only_that_kind_is_looked_at_in_the_loop(config: Config, tmp_path: Path, kind: Literal["audio", "video"]):
    config = replace(config, model=replace(config.model, modalities=kind))
    look = FeatureMonitor(untrained_model(config.model, seed=3), config, split_source(config.data), tmp_path)
    names = {f"probe/{what}/{kind}" for what in ("rank", "norm", "dead", "knn")}
    assert look(10).metrics.keys() == names | {"probe/seconds"}
