"""The command and its file: what is judged, what is left out and why, and what is written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import diffmavil.evaluation.judge as judging
from diffmavil import __version__
from diffmavil.config import Config
from diffmavil.config.errors import UsageError
from diffmavil.config.files import load_config, save_config
from diffmavil.config.presets import preset
from diffmavil.data.clips import Clip, ClipSet
from diffmavil.data.durable import digest_of
from diffmavil.data.sources import split_source
from diffmavil.evaluate import DataOptions, main, parse
from diffmavil.evaluation.evaluate import evaluate
from diffmavil.evaluation.features import KINDS, FeatureTable, extract, untrained_model
from diffmavil.evaluation.judge import Judgement, judge
from diffmavil.evaluation.result import NOT_FINITE, ClipCounts, Evaluation, Protocol, read_evaluation
from diffmavil.model.weights import export_weights
from diffmavil.reporting.page import write_report
from diffmavil.reporting.runs import open_runs, score_sections
from diffmavil.training.planner import timetable

LABELLED = [f"{method}/{kind}" for method in ("probe", "knn") for kind in KINDS]
DIRECTIONS = ("audio_to_video", "video_to_audio")
RETRIEVAL = [f"{way}/{what}" for way in DIRECTIONS for what in ("recall@1", "recall@5", "recall@10", "median_rank")]


# From features to numbers


def table(labels: list[tuple[int, ...]], seed: int, classes: str = "abc", informative: bool = True) -> FeatureTable:
    """Features of made-up clips: of the trained model, around a point of their class; of the untrained, noise."""
    centres = 4 * torch.randn(10, 8, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    places = torch.stack([centres[sum(carried)] for carried in labels])
    features = {
        model: {kind: scale * places + torch.randn(places.shape, generator=generator) for kind in KINDS}
        for model, scale in (("trained", float(informative)), ("untrained", 0.0))
    }
    paths = [f"{seed}-{i}.mp4" for i in range(len(labels))]
    return FeatureTable(
        features,
        labels,
        list(classes),
        paths,
        [(path, None) for path in paths],
        [None] * len(paths),
        len(paths) + 1,
        {"broken": "why"},
    )


SINGLE = [(i % 3,) for i in range(60)]


def test_judges_all_models_by_all_metrics():
    found = judge(table(SINGLE, seed=1), table(SINGLE, seed=2))
    assert list(found.results) == ["trained", "untrained", "chance"]
    assert all(list(metrics) == LABELLED + RETRIEVAL for metrics in found.results.values())
    assert all(found.results["trained"][name] > 0.95 for name in LABELLED)
    assert all(found.results["untrained"][name] < 0.7 for name in LABELLED)
    chance = found.results["chance"]
    assert [chance[name] for name in LABELLED] == pytest.approx([1 / 3] * 6, abs=1e-6)
    assert [chance[name] for name in RETRIEVAL] == pytest.approx([1 / 60, 5 / 60, 10 / 60, 30.5] * 2, abs=1e-6)
    assert found.clips == {"train": ClipCounts(60, 60, 1), "heldout": ClipCounts(60, 60, 1)}
    assert found.score == "accuracy"
    assert found.neighbours == 10
    assert found.notes == []


def test_every_number_of_a_model_has_an_interval():
    found = judge(table(SINGLE, seed=1), table(SINGLE, seed=2))
    assert list(found.intervals) == ["trained", "untrained"]
    for name, metrics in found.intervals.items():
        assert list(metrics) == LABELLED + RETRIEVAL
        assert all(low <= found.results[name][metric] <= high for metric, (low, high) in metrics.items())
    low, high = found.intervals["untrained"]["probe/fused"]
    assert 0.1 < high - low < 0.4, "60 clips say little"


def test_several_labels_have_intervals_too():
    several = [(0,), (1,), (2,), (0, 1), (1, 2)] * 12
    found = judge(table(several, seed=1), table(several, seed=2))
    low, high = found.intervals["untrained"]["probe/audio"]
    assert low < found.results["untrained"]["probe/audio"] < high


@pytest.mark.parametrize("kind", ["audio", "video"])
def test_a_model_with_one_modality(kind):
    train, heldout = (
        replace(whole, features={model: {kind: kinds[kind]} for model, kinds in whole.features.items()})
        for whole in (table(SINGLE, seed=1), table(SINGLE, seed=2))
    )
    found = judge(train, heldout)
    assert all(list(metrics) == [f"probe/{kind}", f"knn/{kind}"] for metrics in found.results.values())
    assert found.notes == [f"Retrieval is left out: the model has {kind} alone."]
    shown = evaluation_of(found)
    assert shown.headline == f"probe/{kind}"
    assert f"linear probe, {kind}" in [row["name"] for row in shown.section()["rows"] if row["strong"]]


def test_heldout_labels_do_not_change_the_probe(monkeypatch):
    fitted = []
    fit = judging.fit_probe

    def spy(*args, **kwargs):
        fitted.append(fit(*args, **kwargs))
        return fitted[-1]

    monkeypatch.setattr(judging, "fit_probe", spy)
    heldout = table(SINGLE, seed=2)
    scores = [
        judge(table(SINGLE, seed=1), replace(heldout, labels=labels)).results["trained"]["probe/fused"]
        for labels in (SINGLE, [SINGLE[-1], *SINGLE[:-1]])
    ]
    half = len(fitted) // 2
    for one, other in zip(fitted[:half], fitted[half:], strict=True):
        assert one.l2 == other.l2
        assert torch.equal(one.weight, other.weight)
    assert scores[0] > 0.95
    assert scores[1] < 0.1, "the swapped labels are judged, though"


def test_several_labels_are_judged_by_map():
    several = [(0,), (1,), (2,), (0, 1), (1, 2)] * 12
    found = judge(table(several, seed=1), table(several, seed=2))
    assert found.score == "mAP"
    assert found.results["trained"]["probe/audio"] > found.results["untrained"]["probe/audio"] + 0.2
    assert found.results["chance"]["knn/audio"] == pytest.approx((2 + 3 + 2) / 15, abs=1e-6)
    assert "average precision" in found.notes[0]


@pytest.mark.parametrize(
    ("train", "heldout", "why"),
    [([()] * 6, SINGLE, "no labels in common"), ([(1,)] * 6, [(1,)] * 6, "only one class, 'b'")],
    ids=["no labels", "one class"],
)
def test_without_labels_that_tell_something_retrieval_remains(train, heldout, why):
    found = judge(table(train, seed=1), table(heldout, seed=2))
    assert all(list(metrics) == RETRIEVAL for metrics in found.results.values())
    assert found.score is None
    assert found.neighbours is None
    assert why in found.notes[0]


def test_heldout_clips_without_a_training_class_count_for_retrieval_only():
    train, heldout = table(SINGLE, seed=1), table([*SINGLE[:30], (3,), ()], seed=2, classes="abcd")
    found = judge(train, heldout)
    assert found.clips["heldout"] == ClipCounts(used=32, labelled=30, skipped=1)
    assert found.results["chance"]["audio_to_video/recall@1"] == pytest.approx(1 / 32, abs=1e-6)
    assert found.results["trained"]["probe/video"] > 0.9
    assert "1 held-out clips carry no class" in found.notes[0]


def test_two_clips_are_enough():
    found = judge(table([(0,), (1,)], seed=1), table([(0,), (1,)], seed=2))
    assert found.neighbours == 1
    assert found.results["chance"]["video_to_audio/recall@5"] == 1
    shares = [{name: x for name, x in metrics.items() if "rank" not in name} for metrics in found.results.values()]
    assert all(0 <= value <= 1 for metrics in shares for value in metrics.values())
    assert all(1 <= metrics["audio_to_video/median_rank"] <= 2 for metrics in found.results.values())


# The file


def evaluation() -> Evaluation:
    return evaluation_of(judge(table(SINGLE, seed=1), table(SINGLE, seed=2)))


def evaluation_of(found: Judgement) -> Evaluation:
    protocol = Protocol(
        date="2024-05-01T12:00:00+00:00",
        weights="model.safetensors",
        sha256="0" * 64,
        step=100,
        seed=3,
        crops=1,
        clips={"train": {"listed": 61, "found": 60}, "heldout": {"listed": 61, "found": 60}},
        video_seconds=4.0,
        audio_seconds=10.24,
        audio_mean=-6.0,
        audio_std=4.0,
        versions={"diffmavil": __version__},
        device="cpu",
    )
    return Evaluation(
        protocol=protocol,
        score=found.score,
        classes=found.classes,
        sources={"train": "some clips", "heldout": "others"},
        clips=found.clips,
        skipped={"broken.mp4": "no sound"},
        neighbours=found.neighbours,
        probe_l2=found.probe_l2,
        results=found.results,
        intervals=found.intervals,
        notes=["A note."],
    )


def test_file_round_trip(tmp_path):
    assert read_evaluation(tmp_path) is None
    written = evaluation()
    path = written.write(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert read_evaluation(tmp_path) == written


@pytest.mark.parametrize("text", ["{", "{}", '{"clips": {}, "extra": 1}'], ids=["cut off", "empty", "other fields"])
def test_damaged_file(tmp_path, text):
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(UsageError, match=r"evaluation\.json"):
        read_evaluation(tmp_path)


def test_section_for_the_report():
    section = evaluation().section()
    assert section["columns"] == ["trained", "untrained", "chance"]
    assert [row["name"] for row in section["rows"] if row["strong"]] == ["linear probe, fused"]
    assert section["rows"][0]["cells"] == ["100.0% [100.0, 100.0]", section["rows"][0]["cells"][1], "33.3%"]
    assert section["rows"][-1]["name"] == "video to audio, median rank"
    assert section["rows"][-1]["cells"][2] == "30.5"
    assert "60 held-out clips, 3 classes; probe and neighbours: accuracy" in section["caption"]
    assert "seed 3" in section["note"]
    assert "2 clips could not be decoded" in section["note"]
    assert section["note"].endswith("A note.")


# On clips


@pytest.fixture
def run_dir(tmp_path: Path, config: Config) -> Path:
    """What a training leaves, as far as evaluation needs it; the model is not trained."""
    save_config(config, tmp_path / "config.yaml")
    export_weights(untrained_model(config.model, seed=11), config, tmp_path / "model.safetensors")
    return tmp_path


def test_command_writes_evaluation_features_and_report(run_dir, config, capsys):
    file = run_dir / "features.safetensors"
    main(["--run-dir", str(run_dir), "--features", str(file), "--seed", "11"])
    found = read_evaluation(run_dir)
    assert found is not None
    check_protocol(found.protocol, run_dir)
    assert found.clips == {"train": ClipCounts(24, 24, 0), "heldout": ClipCounts(24, 24, 0)}
    assert list(found.results["chance"]) == LABELLED + RETRIEVAL
    assert found.results["trained"] == found.results["untrained"], "both were initialised with seed 11"
    printed = capsys.readouterr().out
    assert "linear probe, fused" in printed
    assert "report.html" in printed
    assert (run_dir / "report.html").exists()
    check_features_file(file, config)


def test_weights_of_elsewhere_are_judged_on_the_clips_of_the_run(run_dir, config, tmp_path):
    """A converted file tells of no clips of its own: its config has the generated set, by default."""
    (tmp_path / "clips").mkdir()
    elsewhere = replace(config, data=replace(config.data, root=str(tmp_path / "gone")))
    export_weights(untrained_model(config.model, seed=12), elsewhere, tmp_path / "other.safetensors")
    main(["--run-dir", str(run_dir), "--weights", str(tmp_path / "other.safetensors")])
    found = read_evaluation(run_dir)
    assert found is not None
    assert found.clips == {"train": ClipCounts(24, 24, 0), "heldout": ClipCounts(24, 24, 0)}


def test_report_of_a_model_with_a_single_timestep(tmp_path: Path, config: Config):
    model = replace(config.model, diffusion=replace(config.model.diffusion, first_step=1000))
    config = replace(config, model=model)
    save_config(config, tmp_path / "config.yaml")
    export_weights(untrained_model(config.model, seed=11), config, tmp_path / "model.safetensors")
    assert "reconstruction" in write_report(tmp_path).read_text()


def check_protocol(protocol: Protocol, run_dir: Path) -> None:
    weights = run_dir / "model.safetensors"
    assert protocol.weights == str(weights)
    assert protocol.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (protocol.step, protocol.seed, protocol.crops) == (
        timetable(load_config(run_dir / "config.yaml")).steps,
        11,
        1,
    )
    assert protocol.clips == {"train": {"listed": 24, "found": 24}, "heldout": {"listed": 24, "found": 24}}
    assert (protocol.audio_mean, protocol.audio_std) == (-6.0, 4.0)
    assert protocol.video_seconds == 4.0
    assert protocol.audio_seconds == pytest.approx(0.64, abs=0.03)
    assert protocol.versions["torch"] == torch.__version__
    assert protocol.versions["diffmavil"] == __version__


def test_scores_of_other_weights_than_the_folder_s_are_told_so(run_dir):
    own = run_dir / "model.safetensors"
    protocol = replace(evaluation().protocol, weights="runs/x/other.safetensors", sha256=digest_of(own))
    written = replace(evaluation(), protocol=protocol)
    written.write(run_dir)
    assert read_evaluation(run_dir) == written
    own.write_bytes(own.read_bytes() + b" ")
    found = read_evaluation(run_dir)
    assert found is not None
    (note,) = (one for one in found.notes if one not in written.notes)
    assert "not scores of the run's weights as they are now: they were made of a file other.safetensors" in note
    assert note in found.note()
    assert note in unescape(str(score_sections(open_runs([run_dir]))[0].note))


def check_features_file(file: Path, config: Config) -> None:
    split = split_source(config.data)
    with safe_open(file, framework="pt") as features:
        assert features.get_tensor("heldout/trained/fused").shape == (24, 96)
        assert features.get_tensor("train/untrained/audio").shape == (24, 48)
        labels = features.get_tensor("heldout/labels")
        header = features.metadata()
    classes = json.loads(header["heldout/classes"])
    assert json.loads(header["heldout/paths"]) == [clip.path for clip in split.held_out.clips]
    assert [classes[i] for i in labels.argmax(1)] == [classes[clip.labels[0]] for clip in split.held_out.clips]
    assert labels.sum(1).tolist() == [1] * 24


def test_features_are_those_of_the_model_in_order(config):
    clips = split_source(config.data).held_out
    model = untrained_model(config.model, seed=0)
    whole = extract({"it": model}, config, clips, batch_size=24)
    parts = extract({"it": model}, config, clips, batch_size=7)
    assert whole.labels == parts.labels == [clip.labels for clip in clips.clips]
    for kind in KINDS:
        torch.testing.assert_close(whole.features["it"][kind], parts.features["it"][kind])
    assert whole.features["it"]["audio"].std(dim=0).max() > 1e-4, "clips differ"


def test_bad_clips_are_skipped_counted_and_named(config, tmp_path):
    split = split_source(config.data)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    clips = ClipSet([Clip(str(broken), labels=(0,)), *split.held_out.clips[:6]], split.held_out.classes)
    model = untrained_model(config.model, seed=1)
    found = evaluate(model, config, replace(split.train, clips=split.train.clips[:6]), clips)
    assert (found.clips["heldout"].used, found.clips["heldout"].skipped) == (6, 1)
    assert list(found.skipped) == [str(broken)]
    assert "1 clips could not be decoded" in found.note()
    windows = replace(clips, clips=[Clip(str(broken), start=start, labels=(0,)) for start in (1.0, 2.0)] + clips.clips)
    several = evaluate(model, config, replace(split.train, clips=split.train.clips[:6]), windows)
    assert "3 clips could not be decoded" in several.note()
    both = replace(several, skipped=several.skipped | {"other.mp4": NOT_FINITE})
    assert "3 clips are left out: 1 files could not be decoded, of 1 the features are not finite." in both.note()


def test_unlabelled_training_clips_are_not_decoded(config, tmp_path):
    split = split_source(config.data)
    nowhere = ClipSet([Clip(str(tmp_path / "missing.mp4"))], [])
    found = evaluate(untrained_model(config.model, seed=1), config, nowhere, split.held_out)
    assert found.clips["train"] == ClipCounts(0, 0, 0)
    assert found.skipped == {}
    assert list(found.results["trained"]) == RETRIEVAL


def test_clips_on_both_sides_are_told(config):
    held_out = split_source(config.data).held_out
    few = replace(held_out, clips=[replace(clip, labels=()) for clip in held_out.clips[:6]])
    found = evaluate(untrained_model(config.model, seed=1), config, few, few)
    assert any("6 held-out clips are training clips too" in note for note in found.notes)


@pytest.mark.parametrize("modalities", ["audio", "video"])
def test_a_model_of_one_modality_has_features_of_that_one_alone(config, modalities):
    config = replace(config, model=replace(config.model, modalities=modalities))
    clips = split_source(config.data, modalities).held_out
    table = extract({"it": untrained_model(config.model, seed=3)}, config, replace(clips, clips=clips.clips[:3]))
    assert table.kinds == [modalities]
    assert table.features["it"][modalities].shape == (3, config.model.encoder.width)


def test_the_untrained_model_is_a_function_of_the_seed(config):
    state = torch.random.get_rng_state()
    first, again, other = (untrained_model(config.model, seed) for seed in (4, 4, 5))
    assert torch.equal(state, torch.random.get_rng_state())
    x, y, z = (next(m.parameters()) for m in (first, again, other))
    assert torch.equal(x, y)
    assert not torch.equal(x, z)


# Usage


def test_missing_run_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="holds no run"):
        main(["--run-dir", str(tmp_path / "nothing")])


def test_unfinished_run_is_a_usage_error(run_dir):
    (run_dir / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="--resume"):
        main(["--run-dir", str(run_dir)])


def test_features_file_in_no_folder_is_a_usage_error(run_dir):
    with pytest.raises(UsageError, match="--features"):
        parse(["--run-dir", str(run_dir), "--features", str(run_dir / "nowhere" / "f.safetensors")])


def test_data_that_is_not_there_is_a_usage_error(run_dir):
    with pytest.raises(UsageError, match="nowhere"):
        main(["--run-dir", str(run_dir), "--data.root", str(run_dir / "nowhere")])


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ([], "--run-dir"),
        (["--run-dir", "D", "--unknown", "1"], "--unknown"),
        (["--run-dir", "D", "--seed", "-1"], "seed=-1"),
        (["--run-dir", "D", "--batch-size", "0"], "batch_size=0"),
        (["--run-dir", "D", "--crops", "0"], "crops=0"),
    ],
    ids=["no run folder", "unknown flag", "seed", "batch size", "crops"],
)
def test_wrong_flags_exit_with_2_and_are_named(flags, named, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(flags)
    assert stopped.value.code == 2
    assert named in capsys.readouterr().err


def test_new_training_clips_replace_the_held_out_ones():
    data = replace(preset("diffmavil-tiny").data, eval_root="old")
    assert DataOptions(root="new").apply(data).eval_root is None
    assert DataOptions(root="new", eval_root="held").apply(data).eval_root == "held"
    assert DataOptions(workers=0).apply(data) == replace(data, workers=0)


def test_new_training_clips_replace_all_sets_of_the_run():
    data = replace(preset("diffmavil-tiny").data, more=("b", "c"), weights=(1.0, 2.0, 3.0))
    assert DataOptions(root="new").apply(data) == replace(data, root="new", more=(), weights=(), eval_root=None)
    assert DataOptions(eval_root="held").apply(data) == replace(data, eval_root="held")
