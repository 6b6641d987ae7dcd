"""transformers' Auto classes give what our own model gives, in the transformers that is installed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from diffmavil.config import Config, DiffusionConfig, FinetuneConfig, HeadConfig, ModelConfig
from diffmavil.model import DiffMAViL
from diffmavil.model.classifier import Classifier
from diffmavil.model.exchange.folder import write_folder
from tests.model.peers import transformers
from tests.model.small import SMALL
from tests.model.test_foreign_settings import bare
from tests.model.test_graphs import inputs

VARIANTS = {
    "diffused": replace(SMALL, diffusion=DiffusionConfig()),
    "mask tokens": SMALL,
    "sequence": bare(SMALL),
    "stored": bare(SMALL, "stored"),
}


@pytest.fixture
def auto() -> Any:
    """transformers, with our classes registered, twice."""
    package = transformers()
    from diffmavil.model.auto import register_auto_classes

    register_auto_classes()
    register_auto_classes()
    return package


def read(read_it: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():  # of transformers' own
        warnings.simplefilter("ignore")
        return read_it()


def same(ours: torch.nn.Module, theirs: torch.nn.Module) -> bool:
    """Parameters and buffers, those too that no file holds."""
    for kind in ("named_parameters", "named_buffers"):
        one, other = dict(getattr(ours, kind)()), dict(getattr(theirs, kind)())
        if one.keys() != other.keys() or not all(torch.equal(one[name], other[name]) for name in one):
            return False
    return True


@pytest.mark.parametrize("config", list(VARIANTS.values()), ids=list(VARIANTS))
def test_auto_model(auto: Any, tmp_path: Path, config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = DiffMAViL(config).eval()
    if config.encoder.positions == "stored":
        model.video.encoder.embed.positions.normal_()
    write_folder(model, Config(model=config), tmp_path / "ours")
    found = read(lambda: auto.AutoModel.from_pretrained(tmp_path / "ours"))
    assert same(model, found.model)
    video, spec = inputs(2)
    features = model.features(video, spec)
    with torch.no_grad():
        out = found(video=video, spec=spec)
    for name, value in features._asdict().items():
        assert torch.equal(value, out[name])
    found.save_pretrained(tmp_path / "theirs")
    assert same(model, read(lambda: auto.AutoModel.from_pretrained(tmp_path / "theirs")).model)


def test_one_modality_needs_no_other_input(auto: Any, tmp_path: Path) -> None:
    config = replace(SMALL, modalities="audio")
    model = DiffMAViL(config).eval()
    write_folder(model, Config(model=config), tmp_path)
    found = read(lambda: auto.AutoModel.from_pretrained(tmp_path))
    _, spec = inputs(2)
    out = found(spec=spec)
    assert out.video is None
    assert out.fused is None
    assert torch.equal(out.audio, model.features(torch.empty(2, 0, 0, 0, 3), spec).audio)
    with pytest.raises(ValueError, match="video, spec: both None"):
        found()


def classifier(auto: Any, folder: Path, labels: Literal["one", "several"] = "one", depth: int = 1) -> Any:
    """A classifier as `AutoModelForVideoClassification` reads it, and our own."""
    config = FinetuneConfig(
        model=SMALL, head=HeadConfig(classes=("cat", "dog", "owl"), labels=labels, fusion_depth=depth)
    )
    torch.manual_seed(0)
    model = Classifier(SMALL, config.head).eval()
    write_folder(model, config, folder)
    return read(lambda: auto.AutoModelForVideoClassification.from_pretrained(folder)), model


def test_features_of_a_classifier_have_all_of_its_fusion(auto: Any, tmp_path: Path) -> None:
    depth = SMALL.fusion_depth + 1
    _, model = classifier(auto, tmp_path, depth=depth)
    found = read(lambda: auto.AutoModel.from_pretrained(tmp_path))
    assert len(found.model.fusion.blocks) == depth
    for name, value in found.model.fusion.named_parameters():
        assert torch.equal(value, dict(model.fusion.named_parameters())[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision(auto: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = DiffMAViL(SMALL).eval()
    write_folder(model, Config(model=SMALL), tmp_path)
    found = read(lambda: auto.AutoModel.from_pretrained(tmp_path)).to(dtype)
    video, spec = inputs(2)
    with torch.no_grad():
        fused = found(video=video, spec=spec).fused
    torch.testing.assert_close(fused.float(), model.features(video, spec).fused, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("labels", ["one", "several"])
def test_a_classifier(auto: Any, tmp_path: Path, labels: Literal["one", "several"]) -> None:
    found, model = classifier(auto, tmp_path, labels)
    assert found.classes == ("cat", "dog", "owl")
    for told in (found.config, auto.AutoConfig.from_pretrained(tmp_path)):
        assert told.id2label == {0: "cat", 1: "dog", 2: "owl"}
        assert told.label2id == {"cat": 0, "dog": 1, "owl": 2}
        assert told.num_labels == 3
        assert told.problem_type == {"one": "single", "several": "multi"}[labels] + "_label_classification"
    video, spec = inputs(2)
    with torch.no_grad():
        scores = model.scores(video, spec, torch.tensor([64, 64]))
        logits = found(video=video, spec=spec).logits
        torch.testing.assert_close(logits.softmax(dim=1) if labels == "one" else logits.sigmoid(), scores)


def test_from_config_starts_as_ours(auto: Any, tmp_path: Path) -> None:
    config = VARIANTS["diffused"]
    write_folder(DiffMAViL(config), Config(model=config), tmp_path)
    told = auto.AutoConfig.from_pretrained(tmp_path)
    torch.manual_seed(3)
    ours = DiffMAViL(config)
    torch.manual_seed(3)
    assert same(ours, read(lambda: auto.AutoModel.from_config(told)).model)


def test_a_config_without_settings_is_that_of_the_defaults(auto: Any) -> None:
    kind = type(auto.AutoConfig.for_model("diffmavil"))
    assert kind().model_config == ModelConfig()
