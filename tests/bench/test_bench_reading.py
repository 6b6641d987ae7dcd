"""benchmarks/reading.py: every way of reading a model, the same numbers as the evaluation's where both have them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import attentive, reading
from benchmarks.attentive import attentive_accuracy
from diffmavil.data.sources import split_source
from diffmavil.evaluation.evaluate import evaluate
from diffmavil.evaluation.features import untrained_model
from diffmavil.model.weights import WEIGHTS_FILE, export_weights, load_weights
from tests.runs import very_small


@pytest.fixture(scope="module")
def run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reading")
    config = very_small(cache)
    config = replace(config, model=replace(config.model, encoder=replace(config.model.encoder, depth=2)))
    export_weights(untrained_model(config.model, seed=5), config, folder / WEIGHTS_FILE)
    return folder


def test_every_block_and_pooling_and_what_the_evaluation_says(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(attentive, "LEAST_STEPS", 1)
    out = tmp_path / "reading.jsonl"
    assert reading.main([str(run), "--json", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    found = {tuple(row[name] for name in reading.PLACE): row["top1"] for row in rows}
    ways = {(block, how) for block in ("1", "2", "norm") for how in ("mean", "CLS", "mean and CLS")}
    ways.add(("norm", "attentive"))
    expected = {
        (model, name, *way) for model in ("trained", "untrained") for name in ("audio", "video") for way in ways
    }
    assert set(found) == expected | {("none", name, "input", "mean") for name in ("audio", "video")}
    assert all(row["clips"] == {"train": 24, "heldout": 24} and row["commit"] for row in rows)

    model, config = load_weights(run / WEIGHTS_FILE)
    split = split_source(config.data, "av")
    judged = evaluate(model, config, split.train, split.held_out)
    for name in ("audio", "video"):
        for which in ("trained", "untrained"):
            assert found[which, name, "norm", "mean"] == pytest.approx(judged.results[which][f"probe/{name}"], abs=1e-4)
    told = capsys.readouterr().out
    out.write_text(2 * out.read_text())  # measured again: still one run
    assert reading.main(["table", "--json", str(out)]) == 0
    assert capsys.readouterr().out == told
    assert "no model" in told
    elsewhere = [row | {"set": "elsewhere", "top1": 0.0} for row in rows]
    out.write_text("\n".join(map(json.dumps, [*rows, *elsewhere])))
    assert reading.main(["table", "--json", str(out)]) == 0
    both = capsys.readouterr().out
    assert both.startswith(told.rstrip())  # sets are not averaged
    assert "elsewhere: linear probes" in both


def test_padding_is_not_pooled_and_what_is_not_finite_is_left_out(cache: Path):
    config = very_small(cache)
    model = untrained_model(config.model, seed=0)
    spec, heard = torch.randn(3, 64, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([64, 32, 20])
    pooled, (tokens, real) = reading.read_branch(model.audio, spec, model.audio.reached(heard))
    video = torch.zeros(3, 4, 32, 32, 3, dtype=torch.uint8)
    torch.testing.assert_close(pooled["norm", "mean"], model.features(video, spec, heard).audio)
    assert real.sum(dim=1).tolist() == [1 + 8, 1 + 4, 1 + 4]  # CLS, and two patches of mels for each 16 frames begun
    assert tokens.shape[:2] == real.shape

    found = reading.baselines(config, {"audio": spec, "video": video}, heard)
    alone = reading.baselines(config, {"audio": spec[1:2, :32], "video": video[1:2]}, torch.tensor([32]))
    torch.testing.assert_close(found["audio"][1:2], alone["audio"])

    features = {("none", "audio", "input", "mean"): found["audio"], ("none", "video", "input", "mean"): found["video"]}
    features["none", "video", "input", "mean"][2, 0] = torch.nan
    assert reading.finite(reading.Read(features, {}, torch.arange(3))).tolist() == [True, True, False]


@pytest.mark.parametrize("given", [["table"], ["nothing-there"], ["--batch-size", "0", "."]])
def test_refused(given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / WEIGHTS_FILE).touch()
    with pytest.raises(SystemExit) as stopped:
        reading.parse(given)
    assert stopped.value.code == 2


def test_an_attentive_probe_finds_the_one_token_that_tells_and_does_not_see_padding():
    generator = torch.Generator().manual_seed(0)
    answer = torch.randint(0, 3, (240,), generator=generator)
    tokens = 0.1 * torch.randn(240, 6, 16, generator=generator)
    tokens[torch.arange(240), torch.randint(0, 5, (240,), generator=generator), answer] += 3
    real = torch.arange(6).expand(240, 6) < 5
    target = torch.nn.functional.one_hot(answer).bool()
    learn, judge = slice(0, 180), slice(180, 240)
    scores = []
    for padding in (0.0, 50.0):
        x = tokens.masked_fill(~real[..., None], padding)
        scores.append(
            attentive_accuracy((x[learn], real[learn]), target[learn], (x[judge], real[judge]), target[judge], seed=0)
        )
    assert scores[0] == scores[1] > 0.9
