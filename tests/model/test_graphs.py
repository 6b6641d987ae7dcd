"""Encoders and features as graphs give what the model gives, for other batches than they were made with."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from diffmavil.config import Config, FinetuneConfig, HeadConfig, Modalities, ModelConfig
from diffmavil.convert import main
from diffmavil.model import DiffMAViL
from diffmavil.model.classifier import Classifier
from diffmavil.model.exchange.graphs import EncoderGraph, FeaturesGraph, Kind, export_graphs
from diffmavil.model.weights import export_weights, load_classifier
from tests.model.foreign import close
from tests.model.small import SMALL
from tests.model.test_foreign_settings import bare

ONNX = importlib.util.find_spec("onnxscript") is not None and importlib.util.find_spec("onnxruntime") is not None


def model_of(config: ModelConfig) -> DiffMAViL:
    torch.manual_seed(0)
    return DiffMAViL(config).eval()


def inputs(batch: int) -> tuple[Tensor, Tensor]:
    """uint8 frames, spectrogram."""
    generator = torch.Generator().manual_seed(1)
    video = torch.randint(256, (batch, 4, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return video, torch.randn(batch, 64, 32, generator=generator)


@pytest.mark.parametrize("config", [SMALL, bare(SMALL, "stored")], ids=["ours", "without cls"])
def test_the_graphs_modules_compute_what_the_model_does(config: ModelConfig) -> None:
    model, (video, spec) = model_of(config), inputs(3)
    features = model.features(video, spec)
    with torch.no_grad():
        tokens, pooled = EncoderGraph(model.video, config)(video / 255)
        audio, seen, fused = FeaturesGraph(model)(video / 255, spec)
    close(tokens[:, int(config.encoder.cls) :], features.video_tokens)
    for ours, expected in ((pooled, "video"), (audio, "audio"), (seen, "video"), (fused, "fused")):
        close(ours, getattr(features, expected))


def test_torch_export_runs_without_this_project(tmp_path: Path) -> None:
    model = model_of(SMALL)
    report = export_graphs(model, Config(model=SMALL), tmp_path, "torch-export")
    assert [row.theirs for row in report.rows] == ["audio_encoder.pt2", "video_encoder.pt2", "features.pt2"]
    video, spec = inputs(3)  # made with two clips
    features = model.features(video, spec)
    torch.save((video / 255, spec), tmp_path / "inputs.pt")
    code = (
        "import sys, torch\n"
        "video, spec = torch.load('inputs.pt')\n"
        "found = torch.export.load('features.pt2').module()(video=video, spec=spec)\n"
        "one = torch.export.load('audio_encoder.pt2').module()(x=spec[:1])\n"
        "assert not any(name.startswith(('diffmavil', 'maekernels')) for name in sys.modules)\n"
        "torch.save((*found, *one), 'outputs.pt')\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env={"OMP_NUM_THREADS": "1"})
    audio, seen, fused, tokens, pooled = torch.load(tmp_path / "outputs.pt")
    for ours, expected in ((audio, features.audio), (seen, features.video), (fused, features.fused)):
        close(ours, expected)
    close(tokens[:, 1:], features.audio_tokens[:1])
    close(pooled, features.audio[:1])


@pytest.mark.skipif(not ONNX, reason="onnxscript and onnxruntime are not installed: make test-transformers has them")
def test_onnx_in_onnxruntime(tmp_path: Path) -> None:
    runtime: Any = pytest.importorskip("onnxruntime")
    model = model_of(SMALL)
    export_graphs(model, Config(model=SMALL), tmp_path, "onnx")
    video, spec = inputs(3)
    features = model.features(video, spec)
    session = runtime.InferenceSession(tmp_path / "features.onnx")
    names = [output.name for output in session.get_outputs()]
    assert names == ["audio_features", "video_features", "fused_features"]
    found = session.run(None, {"video": (video / 255).numpy(), "spec": spec.numpy()})
    for ours, expected in zip(found, (features.audio, features.video, features.fused), strict=True):
        close(torch.from_numpy(ours), expected)
    session = runtime.InferenceSession(tmp_path / "video_encoder.onnx")
    tokens, pooled = session.run(["tokens", "pooled"], {"x": (video[:1] / 255).numpy()})
    close(torch.from_numpy(tokens)[:, 1:], features.video_tokens[:1])
    close(torch.from_numpy(pooled), features.video[:1])
    head = HeadConfig(classes=("cat", "dog"), labels="one")
    tuned = Classifier(SMALL, head).eval()
    export_graphs(tuned, FinetuneConfig(model=SMALL, head=head), tmp_path / "tuned", "onnx")
    session = runtime.InferenceSession(tmp_path / "tuned" / "scores.onnx")
    (scores,) = session.run(["scores"], {"video": (video / 255).numpy(), "spec": spec.numpy()})
    with torch.no_grad():
        close(torch.from_numpy(scores), tuned.scores(video, spec, torch.full((3,), spec.shape[1])))


def test_onnx_without_its_packages_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find: Any = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    kind: Kind = "onnx"
    with pytest.raises(ValueError, match=r"--to='onnx': must be another, or with .*onnxscript: pip install"):
        export_graphs(model_of(SMALL), Config(model=SMALL), tmp_path, kind)


@pytest.mark.parametrize("modalities", ["av", "audio", "video"])
@pytest.mark.parametrize("labels", ["one", "several"])
def test_a_classifier_is_its_scores(tmp_path: Path, modalities: Modalities, labels: Literal["one", "several"]) -> None:
    head = HeadConfig(classes=("cat", "dog", "owl"), labels=labels)
    config = FinetuneConfig(model=replace(SMALL, modalities=modalities), head=head)
    torch.manual_seed(0)
    model = Classifier(config.model, head).eval()
    torch.nn.init.normal_(model.head.weight)
    weights = tmp_path / "run" / "model.safetensors"
    weights.parent.mkdir()
    export_weights(model, config, weights)
    main([str(weights.parent), str(tmp_path / "out"), "--to", "torch-export"])
    assert (tmp_path / "out" / "classes.txt").read_text().split() == ["cat", "dog", "owl"]
    video, spec = inputs(3)
    given = {"video": video / 255, "spec": spec}
    given = {name: x for name, x in given.items() if modalities in ("av", "audio" if name == "spec" else "video")}
    with torch.no_grad():
        found = torch.export.load(tmp_path / "out" / "scores.pt2").module()(**given)
        expected = model.scores(video, spec, torch.full((3,), spec.shape[1]))
    close(found, expected)
    main([str(weights.parent), str(tmp_path / "plain"), "--to", "safetensors"])
    copied, _ = load_classifier(tmp_path / "plain" / "model.safetensors")
    assert torch.equal(copied.head.weight, model.head.weight)


def test_a_branch_alone_has_one_graph(tmp_path: Path) -> None:
    config = replace(SMALL, modalities="audio")
    report = export_graphs(model_of(config), Config(model=config), tmp_path, "torch-export")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audio_encoder.pt2"]
    assert report.left == ["audio.decoder: features need none"]
