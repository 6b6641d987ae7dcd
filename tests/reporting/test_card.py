"""A model's card: what it tells, and that the Hub's own package reads it."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import replace
from typing import Any

import pytest
import yaml

from diffmavil.config import Config, DataConfig, FinetuneConfig, HeadConfig
from diffmavil.reporting.card import Card
from tests.evaluation.test_evaluate import evaluation
from tests.model.small import SMALL
from tests.reporting.test_page import scored

MODEL = replace(SMALL, audio=replace(SMALL.audio, mean=-4.0, std=3.0))
PRETRAINED = Config(model=MODEL, data=DataConfig(root="/data/sets/vggsound.csv", more=("s3://bucket/audioset",)))
TUNED = FinetuneConfig(model=MODEL, head=HeadConfig(classes=("cat", "dog|wolf", "owl"), labels="one"))


def front(card: Card) -> dict[str, Any]:
    return yaml.safe_load(card.text().split("---\n")[1])


def test_a_pretrained_model_with_its_evaluation() -> None:
    card = Card("me/base", PRETRAINED, 12_300_000, evaluation=evaluation(), license="apache-2.0")
    text = card.text()
    told = front(card)
    assert (told["license"], told["pipeline_tag"]) == ("apache-2.0", "feature-extraction")
    assert {"audio", "video", "audio-visual"} <= set(told["tags"])
    for line in (
        "| parameters | 12.3 M |",
        "log-mel 64x32, mean -4, std 3",
        "Trained on `vggsound.csv`, `audioset`",
        'model = diffmavil.load("me/base")',
        'clip = model.embed("clip.mp4")  # .audio, .video, .fused',
        'model = AutoModel.from_pretrained("me/base")',
        "make_log_mel(model.config.model_config), which normalises it",
        "| linear probe, fused |",
        "audio to video, recall@1",
        "held-out clips",
    ):
        assert line in text, line
    assert "/data/sets" not in text
    (result,) = told["model-index"][0]["results"]
    trained = evaluation().results["trained"]
    assert {metric["name"]: metric["value"] for metric in result["metrics"]} == {
        name: value for name, value in trained.items() if "rank" not in name
    }
    assert result["dataset"]["name"] == "others"


def test_a_classifier_with_its_scores() -> None:
    card = Card("me/tuned", TUNED, 1_000_000, classification=scored(["cat", "dog", "owl"]))
    text = card.text()
    assert "| classes | cat, dog\\|wolf, owl |" in text
    assert "50 held-out clips, 3 classes." in text
    assert 'print(model.classify("clip.mp4").top(5))' in text
    assert "AutoModelForVideoClassification" in text
    assert "No licence was given" in text
    metrics = front(card)["model-index"][0]["results"][0]["metrics"]
    assert {"mAP": 0.5, "top1": 0.4}.items() <= {metric["name"]: metric["value"] for metric in metrics}.items()


def test_the_card_of_a_classifier_tells_no_folders() -> None:
    found = scored(["cat", "dog", "owl"])
    found = replace(found, sources={**found.sources, "validation": "200 clips of /home/someone/secret/validation.csv"})
    text = Card("me/tuned", TUNED, 1_000_000, classification=found).text()
    assert "secret" not in text
    assert "chosen by validation.csv" in text
    alone = replace(found, sources={**found.sources, "validation": None})
    text = Card("me/tuned", TUNED, 1_000_000, classification=alone).text()
    assert "no clips were held back to choose by" in text


def test_metrics_are_of_the_kind_that_their_names_say() -> None:
    found = evaluation()
    results = {**found.results, "trained": {**found.results["trained"], "vggsounder_av/mAP": 0.5, "x/f1@1": 0.4}}
    card = Card("me/base", PRETRAINED, 1_000_000, evaluation=replace(found, results=results))
    kinds = {one["name"]: one["type"] for one in front(card)["model-index"][0]["results"][0]["metrics"]}
    assert (kinds["vggsounder_av/mAP"], kinds["x/f1@1"], kinds["probe/audio"]) == ("mAP", "f1", "accuracy")
    assert kinds["audio_to_video/recall@1"] == "recall"


def test_weights_of_others_say_where_they_come_from_and_nothing_else() -> None:
    text = Card("me/mae", PRETRAINED, 1, source="mae_pretrain_vit_base.pth").text()
    assert "converted from `mae_pretrain_vit_base.pth`" in text
    assert "The weights do not tell what they were trained on." in text
    assert "vggsound" not in text
    assert "Not evaluated." in text
    assert "model-index" not in text


@pytest.mark.skipif(importlib.util.find_spec("huggingface_hub") is None, reason="huggingface_hub is not installed")
def test_the_hubs_own_package_reads_the_scores() -> None:
    hub = importlib.import_module("huggingface_hub")
    card = hub.ModelCard(Card("me/base", PRETRAINED, 1, evaluation=evaluation()).text())
    found = {one.metric_name: one.metric_value for one in card.data.eval_results}
    assert found["probe/fused"] == evaluation().results["trained"]["probe/fused"]
