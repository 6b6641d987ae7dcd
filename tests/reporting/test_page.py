"""The pages of runs of every kind: what stands on them, and that they need nothing beside them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diffmavil.config import Config, FinetuneConfig, HeadConfig
from diffmavil.config.files import CONFIG_FILE, save_config
from diffmavil.config.presets import FINETUNE_PRESETS
from diffmavil.evaluation.classification import Classification
from diffmavil.evaluation.features import untrained_model
from diffmavil.model.weights import export_weights
from diffmavil.reporting import figures
from diffmavil.reporting.page import write_report
from diffmavil.training.pretraining import loss_names
from tests.runs import very_small

CURVES = ["Losses", "Curriculum and schedule", "Features while training", "Throughput"]
SCORED = ["Run", "Scores", "Classes", "What is mistaken for what", "Clips", "Learning", "Throughput", "Config"]
KINDS = {"av": ("audio", "video", "fused"), "audio": ("audio",), "video": ("video",)}


def write(folder: Path, config: Config, records: Sequence[dict[str, float | None]]) -> None:
    save_config(config, folder / CONFIG_FILE)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def text_of(folder: Path) -> str:
    """The page without its pictures; checks what holds for every page."""
    path = write_report(folder)
    page = path.read_text()
    assert path.stat().st_size < 5e6
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]*)', page))
    assert all(target.startswith(("#", "data:")) for target in re.findall(r'href="([^"]*)', page))
    text = re.sub(r"data:(image|video|audio)/[^\"]*", "", page)
    assert "http" not in text
    assert "<link" not in text
    assert "@import" not in text
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)
    return text


def headings(text: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", text)


def count(pattern: str, text: str) -> int:
    return len(re.findall(pattern, text))


def common(step: int) -> dict[str, float | None]:
    return {
        "step": step,
        "samples": 8 * step,
        "lr": 1e-3,
        "batch_size": 8,
        "seconds_per_step": 0.5,
        "clips_per_second": 16.0,
        "gflop_per_second": 20.0,
        "data_wait": 0.1,
        "nonfinite_steps": 0,
        "bad_clips": 1,
    }


# Pretraining


def pretraining(cache: Path, modalities: str) -> Config:
    config = very_small(cache)
    model = replace(config.model, modalities=modalities)
    return replace(config, model=model, train=replace(config.train, steps=3))


def told(config: Config) -> list[dict[str, float | None]]:
    """Three records, the second of skipped steps, the last with what a monitor saw."""
    model = config.model
    losses = [name for name in loss_names(model) if name]
    ratios = {f"mask_ratio/{name}": 0.8 for name in KINDS[model.modalities] if name != "fused"}
    values = (2.0, None, 1.0)
    found = [common(step) | dict.fromkeys(losses, value) | ratios for step, value in enumerate(values, 1)]
    found[-1] |= {f"probe/{what}/{kind}": 1.0 for what in ("knn", "rank") for kind in KINDS[model.modalities]}
    return found


@pytest.mark.parametrize("modalities", KINDS)
def test_pretraining_shows_what_the_model_has(cache: Path, tmp_path: Path, modalities: str) -> None:
    config = pretraining(cache, modalities)
    write(tmp_path, config, told(config))
    export_weights(untrained_model(config.model, seed=1), config, tmp_path / "model.safetensors")
    text = text_of(tmp_path)
    found = headings(text)
    assert found[:2] == ["Run", "What the features know"]
    assert all(title.startswith("Held-out clip") for title in found[2:6])
    assert found[6:] == [*CURVES, "Config"]
    there = [name for name in ("video", "audio") if name in KINDS[modalities]]
    for name in ("video", "audio"):
        strips = 4 * 4  # clips, each as original, visible, x_t and reconstruction
        assert count(rf'<img [^>]*alt="{name} of', text) == (strips if name in there else 0)
        assert (tmp_path / f"reconstruction-{name}.png").exists() == (name in there)
        assert (f"<td>{name}</td>" in text) == (name in there)
    assert (">contrast</text>" in text) == (modalities == "av")
    shown = set(re.findall(r">(video|audio|fused)</text>", text))
    assert shown == set(KINDS[modalities])
    assert "3 of 3 (24 samples)" in text
    assert "python -m diffmavil.evaluate" in text


def test_what_older_runs_recorded_of_an_absent_modality_is_not_drawn(cache: Path, tmp_path: Path) -> None:
    config = pretraining(cache, "audio")
    write(tmp_path, config, [record | {"loss/video": 0.0, "loss/inter": 0.0} for record in told(config)])
    assert not re.search(">(video|inter|contrast)</text>", text_of(tmp_path))


# Fine-tuning


def finetuning(classes: Sequence[str], **head) -> FinetuneConfig:
    base = FINETUNE_PRESETS["finetune-tiny"]
    settings = replace(base.head, source="runs/sound", classes=tuple(classes), labels="one", epochs=2)
    model = replace(base.model, modalities="audio", audio=replace(base.model.audio, mean=-6.0, std=4.0))
    return replace(base, model=model, head=replace(settings, **head), train=replace(base.train, steps=4))


def learnt() -> list[dict[str, float | None]]:
    """Validation stands in every second record, a skipped step's loss is missing."""
    found = [common(step) | {"loss": None if step == 2 else 3.0 / step} for step in range(1, 5)]
    for record in found[1::2]:
        record |= {"val/top1": 0.5, "val/top5": 0.9, "val/mAP": 0.6, "val/d_prime": 1.2}
    return found


def scored(classes: Sequence[str], several: bool = False) -> Classification:
    """Class i of n is answered right in i of its n clips, and else taken for the next; class 0 has no clips."""
    n = len(classes)
    metrics = {"mAP": 0.5, "d_prime": 1.5} | ({} if several else {"top1": 0.4, "top5": 0.8})
    intervals = {name: (value - 0.1, value + 0.1) for name, value in metrics.items()}
    rows = [[0] * n for _ in classes]
    for i in range(1, n):
        rows[i][i], rows[i][(i + 1) % n] = i, n - i
    kinds = ("last", "best", "average", "ema")
    return Classification(
        version="0",
        date="2000-01-01T00:00:00+00:00",
        device="cpu",
        versions={},
        task="audio",
        source="runs/sound",
        labels="several" if several else "one",
        classes=list(classes),
        sources={"train": "a folder", "validation": "a tenth of it", "test": "another folder"},
        clips={"train": 90, "validation": 10, "test": {"listed": 52, "used": 50}},
        skipped={"odd/<one>.wav": "no sound", "two.wav": "cut off"},
        audio={"mean": -6.0, "std": 4.0},
        steps=dict.fromkeys(kinds, 4) | {"best": 2},
        results={kind: {"1": metrics, "3": metrics} for kind in kinds},
        intervals={kind: {"1": intervals, "3": intervals} for kind in kinds},
        headline={"weights": "best", "crops": "3", "metric": "mAP" if several else "top1"},
        per_class={name: i / n for i, name in enumerate(classes) if i},
        confusion=None if several else rows,
        chance={"mAP" if several else "top1": 0.05},
    )


def names(n: int) -> list[str]:
    return [f"class-{i:03d}" for i in range(n)]


def bars(text: str) -> list[str]:
    return re.findall(r"<li><span>(.*?)</span>", text)


def test_fine_tuning_shows_scores_classes_mistakes_and_clips(tmp_path: Path) -> None:
    classes = names(12)
    write(tmp_path, finetuning(classes, blocks=1), learnt())
    scored(classes).write(tmp_path)
    text = text_of(tmp_path)
    assert headings(text) == SCORED
    for cell in ("runs/sound", "sound alone", "one for each clip", "the lower 3 of each encoder&#39;s 4", "0.75"):
        assert f"<td>{cell}</td>" in text
    assert "<td>video</td>" not in text
    for kind in ("last", "average", "ema"):
        assert f"<td>{kind}, centre</td>" in text
        assert f"<td>{kind}, 3 crops</td><td>50.0% (40.0 to 60.0)</td><td>1.50 (1.40 to 1.60)</td>" in text
    assert '<tr class="strong"><td>best, 3 crops *</td>' in text
    assert bars(text) == classes[:0:-1]
    assert "8% of 12" in text
    assert "1 of 12 classes are left out" in text
    assert count(">class-003</text>", text) == 2, "a row and a column"
    for line in ("<td>90</td><td>a folder</td>", "<td>50 of 52</td>", "odd/&lt;one&gt;.wav: no sound", "two.wav"):
        assert line in text
    for title in ("loss", "validation", "validation, d-prime", "learning rate", "clips/s", "top-1", "mAP"):
        assert f">{title}</text>" in text


def test_of_many_classes_both_ends_and_the_commonest_mistakes(tmp_path: Path) -> None:
    classes = names(100)
    write(tmp_path, finetuning(classes), learnt())
    scored(classes).write(tmp_path)
    text = text_of(tmp_path)
    assert headings(text) == SCORED
    assert bars(text) == [*classes[:79:-1], *classes[20:0:-1]]
    assert "The 20 best" in text
    assert "<td>class-001</td><td>class-002</td><td>99</td>" in text
    assert count("</text>", text) < 200, "no table of 100 x 100"


def test_several_labels_have_no_table_of_mistakes(tmp_path: Path) -> None:
    classes = names(30)
    write(tmp_path, finetuning(classes, labels="several"), learnt())
    scored(classes, several=True).write(tmp_path)
    text = text_of(tmp_path)
    assert headings(text) == [title for title in SCORED if title != "What is mistaken for what"]
    assert "Average precision" in text
    assert len(bars(text)) == 29


def test_an_unfinished_fine_tuning_has_a_page(tmp_path: Path) -> None:
    write(tmp_path, replace(finetuning([]), head=HeadConfig()), learnt()[:1])
    text = text_of(tmp_path)
    assert headings(text) == ["Run", "Scores", "Learning", "Throughput", "Config"]
    assert "No scores yet" in text


# Any


@pytest.mark.parametrize("missing", [*common(1), "loss", "everything"])
@pytest.mark.parametrize("finetune", [False, True], ids=["pretraining", "fine-tuning"])
def test_records_without_one_of_their_values_are_drawn(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, finetune: bool
) -> None:
    monkeypatch.setattr(figures, "svg", lambda figure, alt: "")  # drawn, but not written: it takes most of the time
    config = finetuning(names(3)) if finetune else pretraining(cache, "video")
    records = learnt() if finetune else told(config)
    for record in records:
        record.pop(missing, None)
    write(tmp_path, config, [] if missing == "everything" else records)
    assert headings(text_of(tmp_path))[0] == "Run"


def test_a_long_curve_is_thinned_and_keeps_its_mean() -> None:
    records = [{"samples": float(i), "loss": math.sin(i)} for i in range(100_000)]
    line = figures.Line("", figures.points(records, "loss"), 0)
    drawn = figures.curves([line], "loss")
    (shown,) = drawn.axes[0].lines
    assert np.shape(shown.get_xydata()) == (1000, 2)
    assert len(figures.svg(drawn, "a loss")) < 100_000
    many = figures.curves([line._replace(colour=i) for i in range(20)], "twenty runs")
    assert [np.shape(one.get_xydata()) for one in many.axes[0].lines] == [(200, 2)] * 20
