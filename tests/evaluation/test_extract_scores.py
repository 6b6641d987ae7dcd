"""`python -m diffmavil.extract --scores`: what a fine-tuned model says of a set."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffmavil.config.errors import UsageError
from diffmavil.data.clips import ClipSet
from diffmavil.evaluation.embed import load
from diffmavil.evaluation.feature_files import FeatureSet, read_features
from diffmavil.evaluation.features import untrained_model
from diffmavil.extract import main
from diffmavil.model.classifier import Classifier
from diffmavil.model.weights import export_weights


@pytest.fixture
def weights(tuned, tmp_path: Path) -> Path:
    config = replace(tuned, head=replace(tuned.head, classes=("x", "y"), crops=3))
    config = replace(config, train=replace(config.train, precision="fp32"))
    torch.manual_seed(0)
    (tmp_path / "run").mkdir()
    export_weights(Classifier(config.model, config.head), config, tmp_path / "run" / "model.safetensors")
    return tmp_path / "run" / "model.safetensors"


@pytest.fixture
def run(weights: Path, clips: ClipSet, tmp_path: Path) -> Callable[..., FeatureSet]:
    with (tmp_path / "set.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", "labels"))
        table.writerows((clip.path, ";".join({clips.classes[clip.labels[0]], "a"})) for clip in clips.clips)

    def extracted(*flags: str) -> FeatureSet:
        out = tmp_path / "scores"
        main([str(tmp_path / "set.csv"), str(out), "--from", str(weights), "--workers", "0", "--part", "3", *flags])
        return read_features(out)

    return extracted


def test_scores_are_those_of_classify(run, weights: Path, clips: ClipSet, tmp_path: Path, capsys):
    found = run("--scores")
    assert found.answers == ("x", "y")
    assert found.classes == ["a", "b", "c"]
    assert not found.features
    assert list(found.bad) == [2]
    good = [clip.path for i, clip in enumerate(clips.clips) if i != 2]
    theirs = load(weights, device="cpu").classify(good)
    assert found.scores is not None
    torch.testing.assert_close(found.scores, torch.cat([one.windows for one in theirs]), rtol=1e-4, atol=1e-5)
    whole = found.by_clip().scores
    assert whole is not None
    torch.testing.assert_close(whole, torch.stack([one.scores for one in theirs]), rtol=1e-4, atol=1e-5)
    with (tmp_path / "scores" / "predictions.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "start", "labels", "class_1", "score_1", "class_2", "score_2"]
    assert [row[0] for row in rows] == good
    assert [set(row[2].split(";")) for row in rows] == [{"a"}, {"a", "b"}, {"a"}, {"a", "b"}, {"a", "c"}, {"a"}]
    for row, one in zip(rows, theirs, strict=True):
        (first, score), (second, _) = one.top(2)
        assert (row[3], row[5]) == (first, second)
        assert float(row[4]) == pytest.approx(score, abs=1e-4)
    said = capsys.readouterr().out
    assert "2 classes" in said
    assert "predictions.csv" in said


def test_windows_are_the_runs_crops_unless_they_are_told(run, tmp_path: Path):
    assert len(run("--scores")) == 3 * 6
    assert "scores" in json.loads((tmp_path / "scores" / "manifest.json").read_text())["settings"]
    with pytest.raises(UsageError, match="windows=3, now 1"):
        run("--scores", "--windows", "1")
    with pytest.raises(UsageError, match="kinds="):
        run()


@pytest.mark.parametrize("flags", [("--tokens",), ("--layers", "all"), ("--kinds", "audio"), ("--saved", "bfloat16")])
def test_features_are_not_asked_for_beside(run, flags, capsys):
    with pytest.raises(SystemExit) as ended:
        run("--scores", *flags)
    assert ended.value.code == 2
    assert "--scores" in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_pretrained_model_has_no_scores(config, clips: ClipSet, tmp_path: Path):
    path = tmp_path / "pretrained.safetensors"
    export_weights(untrained_model(config.model, seed=0), config, path)
    with pytest.raises(UsageError, match=r"--scores='.*': must be asked of a fine-tuned model"):
        main([str(clips.clips[0].path), str(tmp_path / "out"), "--from", str(path), "--scores"])
    assert not (tmp_path / "out").exists()
