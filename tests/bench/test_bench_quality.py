"""The cells of the study of quality: which there are, and what one runs.

The commands are stood in for, but for one test.
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import frontier, quality, settings
from benchmarks.frontier import FROM_SCRATCH, SETS, Asked
from benchmarks.lines import read
from benchmarks.settings import CHAIN
from diffmavil.config.cli import parse_flags, parse_train
from diffmavil.config.finetune_cli import parse_finetune
from diffmavil.config.presets import preset
from diffmavil.evaluate import Options
from diffmavil.model.flops import meta_teacher, teacher_flops
from diffmavil.model.teacher import Teacher
from diffmavil.model.weights import WEIGHTS_FILE
from diffmavil.training.costs import optimizer_flops, scheduled_flops, techniques
from tests.bench.study_commands import Commands, study


def test_every_budget_has_a_schedule_of_its_length_and_costs_stand_in_the_line(tmp_path: Path, commands: Commands):
    assert study(tmp_path, "fsdd", "--seeds", "4", "--setting", "mavil-tiny", "--jobs", "1") == 0
    given = commands.flags("diffmavil.train")
    assert [flags.rpartition("--train.steps ")[2] for flags in given] == ["250", "500", "1000", "2000"]
    for flags in given:
        assert flags.startswith("mavil-tiny ")
        assert f"--config {frontier.config_of('fsdd', 'pretrain')}" in flags
        assert f"--data.root {tmp_path / 'train.csv'} --data.eval-root {tmp_path / 'test.csv'}" in flags
        assert "--data.workers 0" in flags
        assert "--train.seed 4" in flags
    assert all("--seed 4" in flags for flags in commands.flags("diffmavil.evaluate"))
    assert not commands.flags("diffmavil.finetune")
    rows = read(tmp_path / "out.jsonl")
    assert [(row["budget"], row["samples"]) for row in rows] == [(0.25, 16000), (0.5, 32000), (1, 64000), (2, 128000)]
    row = rows[0]
    config = Asked("fsdd").config("mavil-tiny")
    gflop = scheduled_flops(config.model, config.mask).total * 1e-9
    assert row["gflop_per_clip"] == pytest.approx(gflop, rel=1e-3)
    assert row["tflop"] == pytest.approx(3 * gflop * 16, rel=1e-3)
    assert (row["cpu_seconds"], row["clips"], row["jobs"]) == (5, 80, 1)
    assert (row["scores"]["probe/audio"], row["untrained"]["probe/audio"]) == (0.8, 0.5)
    assert row["intervals"]["probe/audio"] == pytest.approx([0.76, 0.86])
    assert row["invocation"].endswith(row["commit"])
    assert row["device"].endswith("1 thread")
    assert {"date", "versions", "load"} <= row.keys()


def test_two_stages_share_the_samples_of_a_cell(tmp_path: Path, commands: Commands):
    setting = "mavil-tiny-lean, twice the rate, then stage 2 from its weights"
    anew = setting.removesuffix(" from its weights")
    flags = ("--seeds", "0", "--budget", "4/5", "--jobs", "1", "--setting", setting, "--setting", anew)
    assert study(tmp_path, "fsdd", *flags) == 0
    first, second, _, other = commands.flags("diffmavil.train")
    assert first.startswith("mavil-tiny-lean ")
    assert second.startswith("mavil-tiny-lean-stage2 ")
    assert first.endswith("--train.steps 500")
    assert second.endswith("--train.steps 300")
    teacher = re.search(r"--run-dir (\S+)", first)
    assert teacher
    assert f"--teacher {teacher[1]} --init {teacher[1]} " in second
    assert "--init" not in other
    row, *_ = read(tmp_path / "out.jsonl")
    config = Asked("fsdd").config(setting)
    student = replace(config.model, target_width=config.model.encoder.width)
    plain, taught = (scheduled_flops(model, config.mask).total for model in (config.model, student))
    teaches = teacher_flops(meta_teacher(config.model))
    clips = 3 * plain * 32_000 + (3 * taught + teaches) * 19_200
    assert row["tflop"] == pytest.approx((clips + 800 * optimizer_flops(config.model, config.optim)) * 1e-12, rel=1e-3)
    assert row["cpu_seconds"] == 10


def test_other_weights_than_the_last_are_judged_where_a_setting_says_so(tmp_path: Path, commands: Commands):
    setting = "mavil-tiny-lean, twice the rate, averaged weights"
    assert study(tmp_path, "esc10", "--seeds", "0", "--budget", "1", "--jobs", "1", "--setting", setting) == 0
    (judged,) = commands.flags("diffmavil.evaluate")
    (run,) = re.findall(r"--run-dir (\S+)", judged)
    assert judged.endswith(f"--weights {run}/ema.safetensors")
    assert f"--from {run}/ema.safetensors " in commands.flags("diffmavil.finetune")[1]


def test_a_teacher_s_work_is_counted_and_has_no_backward_pass(tmp_path: Path, commands: Commands):
    setting = "mavil-tiny-stage2, averaged teacher"
    flags = ("--seeds", "0", "--budget", "1", "--setting", setting, "--setting", "mavil-tiny")
    assert study(tmp_path, "fsdd", *flags) == 0
    rows = {row["setting"]: row for row in read(tmp_path / "out.jsonl")}
    config = Asked("fsdd").config(setting)
    assert config.teacher.averaged
    teacher = teacher_flops(Teacher(config.model)) * 64_000 * 1e-12
    student = 3 * scheduled_flops(config.model, config.mask).total * 64_000 * 1e-12
    assert rows[setting]["tflop"] == pytest.approx(student + teacher, rel=1e-3)
    assert rows["mavil-tiny"]["tflop"] == pytest.approx(3 * rows["mavil-tiny"]["gflop_per_clip"] * 64, rel=1e-3)


def test_esc_is_fine_tuned_also_from_scratch_and_pretrained_without_the_fold_it_is_tested_on(
    tmp_path: Path, commands: Commands
):
    assert study(tmp_path, "esc10", "--seeds", "0", "--setting", "diffmavil-tiny", "--budget", "1/4") == 0
    scratch, tuned = sorted(commands.flags("diffmavil.finetune"), key=lambda flags: "--from none" not in flags)
    assert "--optim.layer-decay 1" in scratch
    assert "--from none" not in tuned
    for command in commands.given:
        roots = [command[command.index(flag) + 1] for flag in ("--data.root", "--data.eval-root")]
        assert [Path(root).name for root in roots] == ["fold1-train.csv", "fold1-test.csv"]
    rows = {row["setting"]: row for row in read(tmp_path / "out.jsonl")}
    assert rows[FROM_SCRATCH]["tflop"] == rows[FROM_SCRATCH]["cpu_seconds"] == rows[FROM_SCRATCH]["samples"] == 0
    assert all(row["scores"]["finetune"] == 0.7 for row in rows.values())
    assert all(row["finetune_cpu_seconds"] == 5 for row in rows.values())


def test_the_commands_understand_what_they_are_given(tmp_path: Path, commands: Commands):
    """By their own parsers: with both kinds of fine-tuning, a cache and further flags."""
    more = ("--finetune", "--cache", str(tmp_path / "cache"), "--extra", "--data.crops-kept 8 --train.steps 40")
    setting = "diffmavil-tiny-fast, half decoded"
    assert study(tmp_path, "grid", "--seeds", "1", "--setting", setting, "--budget", "1/4", *more) == 0
    (trained,) = (command[1:] for command in commands.given if command[0] == "diffmavil.train")
    _, config, _ = parse_train(trained)
    assert (config.train.steps, config.train.seed, config.model.decode_fraction) == (10, 1, 0.5)
    assert (config.data.workers, config.data.crops_kept, config.data.cache) == (0, 8, str(tmp_path / "cache"))
    (judged,) = (command[1:] for command in commands.given if command[0] == "diffmavil.evaluate")
    options = parse_flags(Options, judged, prog="evaluate")
    assert (options.seed, options.data.root) == (1, str(tmp_path / "train-words.csv"))
    tuned = [command[1:] for command in commands.given if command[0] == "diffmavil.finetune"]
    assert len(tuned) == 6
    pretrained = replace(config, model=replace(config.model, audio=replace(config.model.audio, mean=-4.0, std=4.0)))
    for command in tuned:
        _, finetune, _ = parse_finetune(command, lambda path: pretrained)
        assert (finetune.train.seed, finetune.data.workers) == (1, 0)
        assert finetune.optim.layer_decay == (1 if "none" in command else 0.75)


def test_grid_is_fine_tuned_by_each_modality_and_both_if_asked(tmp_path: Path, commands: Commands):
    study(tmp_path, "grid", "--seeds", "0", "--setting", "mavil-tiny", "--budget", "1/4", "--finetune")
    (row,) = (row for row in read(tmp_path / "out.jsonl") if row["setting"] == "mavil-tiny")
    assert {"finetune/av", "finetune/audio", "finetune/video"} <= row["scores"].keys()
    assert row["finetune_cpu_seconds"] == 15


def test_what_is_known_without_fine_tuning_stays_so_and_that_is_told(tmp_path: Path, commands: Commands, capsys):
    flags = ("--seeds", "0", "--setting", "mavil-tiny", "--budget", "1/4")
    study(tmp_path, "fsdd", *flags)
    study(tmp_path, "fsdd", *flags, "--finetune")
    assert "1 of them are not fine-tuned, and stay so" in capsys.readouterr().out
    assert [row["setting"] for row in read(tmp_path / "out.jsonl")] == ["mavil-tiny", FROM_SCRATCH]


def test_cells_go_seed_by_seed_from_the_smallest_budget_on():
    found = list(frontier.cells(Asked("synthetic"), ["mavil-tiny", "diffmavil-tiny"], [1, 0.25], [0, 1]))
    assert [(cell.seed, cell.budget, cell.setting) for cell in found] == list(
        itertools.product([0, 1], [0.25, 1], ["mavil-tiny", "diffmavil-tiny"])
    )
    assert {cell.samples for cell in found} == {8000, 32000}


def test_muon_s_iterations_are_counted(tmp_path: Path, commands: Commands):
    """The Newton-Schulz products of every matrix in a block, once a step, whatever the batch."""
    names = ("mavil-tiny", "mavil-tiny, Muon")
    assert study(tmp_path, "grid", "--seeds", "0", "--budget", "1", *(f for n in names for f in ("--setting", n))) == 0
    plain, muon = ({row["setting"]: row["tflop"] for row in read(tmp_path / "out.jsonl")}[name] for name in names)
    width, blocks = 192, 4 + 4 + 1
    square, wide = (5 * (4 * 192**2 * long + 2 * 192**3) for long in (width, 4 * width))
    encoder = square + 5 * (4 * 192**2 * 576 + 2 * 192**3) + 2 * wide
    half = 128
    decoder = 5 * sum(4 * half**2 * long + 2 * half**3 for long in (half, 3 * half, 4 * half, 4 * half))
    assert (muon - plain) * 1e12 == pytest.approx(2000 * (blocks * encoder + 4 * decoder), rel=5e-3)


def test_the_chain_takes_one_step_of_the_table_of_techniques_at_a_time():
    asked = Asked("synthetic")
    found = [asked.config(name) for name in CHAIN]
    steps = techniques(preset("mavil-tiny").model)
    assert [config.model for config in found] == [model for _, model, _ in steps]
    assert [(c.mask.video.kind, c.mask.audio.kind) for c in found] == [
        (mask.video.kind, mask.audio.kind) for *_, mask in steps
    ]
    same = {replace(config, model=found[0].model, mask=found[0].mask) for config in found}
    assert len(same) == 1


@pytest.mark.parametrize("name", settings.CHANGES)
def test_a_named_change_changes_its_preset(name: str):
    asked = Asked("fsdd")
    of_preset = [name.partition(",")[0], "--config", str(frontier.config_of("fsdd", "pretrain"))]
    alone = parse_train([*of_preset, *frontier.held_ratios(of_preset), *asked.data_flags()])[1]
    assert (asked.config(name) == alone) == ("," not in name)


def test_what_trains_the_very_same_is_left_out(tmp_path: Path, commands: Commands, capsys):
    study(tmp_path, "fsdd", "--chain", "--seeds", "0", "--budget", "1")
    said = " ".join(capsys.readouterr().out.split())
    assert f"left out: {CHAIN[2]}, which trains the very same as {CHAIN[1]} here" in said
    assert {row["setting"] for row in read(tmp_path / "out.jsonl")} == {*CHAIN} - {CHAIN[2]}
    assert list(frontier.distinct(Asked("grid"), CHAIN).values()) == [None] * len(CHAIN)


def test_lines_of_other_settings_are_not_gone_on_with(tmp_path: Path, commands: Commands, capsys):
    flags = ("--seeds", "0", "--budget", "1", "--setting", "mavil-tiny")
    assert study(tmp_path, "fsdd", *flags, "--extra", "--optim.lr 2e-3") == 0
    assert "--optim.lr 2e-3" in commands.flags("diffmavil.train")[0]
    with pytest.raises(SystemExit) as ended:
        study(tmp_path, "fsdd", *flags)
    assert ended.value.code == 2
    assert "name another file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["fsdd"], "--data None: must be the folder of the recipe's tables"),
        (["fsdd", "--data", "."], "train.csv"),
        (["synthetic", "--data", "."], "--data .: left out of synthetic"),
        (["synthetic", "--finetune"], "--finetune: there is no recipe"),
        (["synthetic", "--budget", "0"], "'0': must be a positive number"),
        (["synthetic", "--budget", "1/0"], "'1/0': must be a positive number"),
        (["synthetic", "--jobs", "0"], "--jobs 0: must be at least 1"),
        (["synthetic", "--seeds", "-1"], "--seeds -1: must be at least 0"),
        (["synthetic", "--setting", "mavil-tiny", "--chain"], "--setting: left out with --chain"),
        (["synthetic", "--setting", "mavil"], "invalid choice: 'mavil'"),
        (["synthetic", "--extra", "--mask.video.start 2"], "mask.start"),
        (["iris"], "invalid choice: 'iris'"),
    ],
)
def test_wrong_arguments_are_told(flags: list[str], said: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        quality.main([*flags, "--json", str(tmp_path / "x.jsonl")])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [('{"set": "fsdd"\n', "line 1: must be JSON"), ('{"study": "fsdd"}\n', "line 1: must be of benchmarks/quality.py")],
)
def test_lines_of_something_else_are_named(text: str, said: str, tmp_path: Path, capsys):
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(SystemExit) as ended:
        quality.main(["table", "--json", str(tmp_path / "x.jsonl")])
    assert ended.value.code == 2
    assert f"x.jsonl, {said}" in capsys.readouterr().err


def test_sets_have_a_recipe_and_metrics_have_words():
    for name, known in SETS.items():
        assert (known.splits == ()) == (name == "synthetic") == (known.recipe == "")
        assert set(known.tuned.values()) <= known.metrics.keys()


@pytest.mark.slow
def test_a_cell_of_the_generated_set_for_real(tmp_path: Path, capsys):
    extra = "--data.synthetic-train 24 --data.synthetic-eval 24 --train.batch-size 8 --train.steps 4"
    keep = ["--keep", str(tmp_path / "kept")]
    flags = ["--setting", "diffmavil-tiny-fast", "--seeds", "3", "--budget", "1/2", "--extra", extra, *keep]
    assert study(tmp_path, "synthetic", "--cache", str(tmp_path / "cache"), *flags) == 0
    (row,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert (row["setting"], row["seed"], row["samples"], row["clips"]) == ("diffmavil-tiny-fast", 3, 16, 24)
    assert row["scores"].keys() == row["untrained"].keys() == row["chance"].keys()
    low, high = row["intervals"]["probe/fused"]
    assert low <= row["scores"]["probe/fused"] <= high
    assert row["cpu_seconds"] > 1
    (run,) = (tmp_path / "kept").iterdir()
    assert run.name == "synthetic-diffmavil-tiny-fast-16-seed-3"
    assert (run / WEIGHTS_FILE).is_file()
    (tmp_path / "out.jsonl").unlink()
    with pytest.raises(SystemExit) as ended:
        study(tmp_path, "synthetic", "--cache", str(tmp_path / "cache"), *flags)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert str(run) in said
    assert "must be a folder without" in said
