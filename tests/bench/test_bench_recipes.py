"""The study of recipes: what is run for a cell, what its line holds, and nothing known is run again.

The commands themselves are stood in for; tests/recipes runs them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import recipes
from diffmavil.config.cli import parse_train
from diffmavil.config.finetune_cli import parse_finetune


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The commands that a study gives; each fine-tuning scores 90 %, each probe 80 and 60 %."""
    given: list[tuple[str, ...]] = []

    def python(*arguments: str) -> float:
        given.append(arguments)
        return 7.0

    monkeypatch.setattr(recipes, "python", python)
    scored = SimpleNamespace(
        results={"best": {"1": {"top1": 0.9}}},
        headline={"weights": "best", "crops": "1", "metric": "top1"},
        clips={"train": 3},
    )
    probes = {"trained": {"probe/audio": 0.8}, "untrained": {"probe/audio": 0.6}}
    monkeypatch.setattr(recipes, "read_classification", lambda folder: scored)
    monkeypatch.setattr(recipes, "read_evaluation", lambda folder: SimpleNamespace(results=probes))
    return given


def study(folder: Path, *flags: str) -> int:
    (folder / "test").mkdir(exist_ok=True)  # prepared; the others are tables
    return recipes.main([*flags, "--data", str(folder), "--json", str(folder / "out.jsonl")])


def test_a_cell_is_pretrained_probed_and_fine_tuned_by_the_files_of_its_recipe(tmp_path: Path, commands):
    assert study(tmp_path, "fsdd", "--seeds", "4", "--source", "mavil-tiny", "--extra", "--data.workers 0") == 0
    names, flags = zip(*((command[0], " ".join(command[1:])) for command in commands), strict=True)
    assert names == ("diffmavil.train", "diffmavil.evaluate", "diffmavil.finetune")
    train, table = str(tmp_path / "train.csv"), str(tmp_path / "test")
    assert all(f"--data.root {train} --data.eval-root {table}" in given for given in flags)
    assert flags[0].startswith("mavil-tiny ")
    assert "recipes/fsdd/pretrain.yaml" in flags[0]
    assert "recipes/fsdd/finetune.yaml" in flags[2]
    assert "--from none" not in flags[2]
    assert all("--train.seed 4" in flags[i] and "--data.workers 0" in flags[i] for i in (0, 2))
    (line,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert (line["recipe"], line["split"], line["source"], line["seed"]) == ("fsdd", "", "mavil-tiny", 4)
    assert {"probes", "commit", "device"} <= line.keys()
    assert line["pretrain_cpu_seconds"] == line["tuned"]["auto"]["cpu_seconds"] == 7


def test_from_scratch_nothing_is_pretrained_and_every_height_learns_alike(tmp_path: Path, commands):
    study(tmp_path, "fsdd", "--seeds", "0", "--source", "none")
    ((name, *flags),) = commands
    assert name == "diffmavil.finetune"
    assert "--optim.layer-decay 1" in " ".join(flags)
    assert "--from none" in " ".join(flags)


def test_a_ratio_that_does_not_fall_is_what_the_others_falls_to(tmp_path: Path, commands):
    study(tmp_path, "grid", "--seeds", "0", "--source", "mavil-tiny", "--source", "diffmavil-tiny")
    fixed, falling = ([*c[1:]] for c in commands if c[0] == "diffmavil.train")
    _, falls, _ = parse_train(falling)
    _, stays, _ = parse_train(fixed)
    assert falls.mask.audio.kind == falls.mask.video.kind == "linear"
    for schedule, other in ((stays.mask.audio, falls.mask.audio), (stays.mask.video, falls.mask.video)):
        assert schedule.kind == "constant"
        assert schedule.start == other.end < other.start


def test_folds_never_pretrain_on_the_fold_they_are_tested_on(tmp_path: Path, commands):
    study(tmp_path, "esc10", "--seeds", "0", "--source", "diffmavil-tiny")
    assert len(commands) == 15
    for command in commands:
        roots = [command[command.index(flag) + 1] for flag in ("--data.root", "--data.eval-root")]
        fold = Path(roots[1]).stem.removesuffix("-test")
        assert Path(roots[0]).stem == f"{fold}-train"


def test_grid_is_pretrained_once_and_fine_tuned_by_each_modality_and_both(tmp_path: Path, commands, capsys):
    study(tmp_path, "grid", "--seeds", "0", "--source", "diffmavil-tiny")
    tasks = [command[command.index("--task") + 1] for command in commands if command[0] == "diffmavil.finetune"]
    assert tasks == ["audio", "video", "av"]
    assert len(commands) == 5
    assert "audio 90.0 %, video 90.0 %, av 90.0 %" in capsys.readouterr().out


def test_what_is_known_is_not_run_again_and_the_table_has_means_over_seeds(tmp_path: Path, commands, capsys):
    study(tmp_path, "fsdd", "--seeds", "0", "1", "--source", "none", "--source", "mavil-tiny")
    count = len(commands)
    study(tmp_path, "fsdd", "--seeds", "0", "1", "--source", "none", "--source", "mavil-tiny")
    assert len(commands) == count == 8
    assert recipes.main(["table", "--json", str(tmp_path / "out.jsonl")]) == 0
    shown = capsys.readouterr().out
    assert "90.0 ± 0.0 %" in shown
    assert "80.0 ± 0.0 %" in shown
    assert "60.0 ± 0.0 %" in shown
    assert "from scratch" in shown


FSDD = ("fsdd", "--seeds", "0", "--source", "none")


def test_a_line_tells_its_settings_and_its_clips(tmp_path: Path, commands):
    (tmp_path / "train.csv").write_text("path,labels\na.wav,1\n")
    study(tmp_path, *FSDD, "--extra", "--data.workers 0")
    (line,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    settings = line["settings"]
    assert settings["extra"] == ["--data.workers", "0"]
    assert settings["pretrain"]["model"]["modalities"] == "audio"
    assert settings["finetune"]
    assert settings["data"] == [hashlib.sha256(b"path,labels\na.wav,1\n").hexdigest()[:12], None]


def refused(folder: Path, commands: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """What is said of a second study that is not run beside the first."""
    before, count = (folder / "out.jsonl").read_text(), len(commands)
    capsys.readouterr()
    assert study(folder, *flags) == 2
    assert (folder / "out.jsonl").read_text() == before
    assert len(commands) == count
    return capsys.readouterr().err


def test_lines_of_other_flags_are_not_gone_on_with(tmp_path: Path, commands, capsys):
    study(tmp_path, *FSDD)
    said = refused(tmp_path, commands, capsys, "fsdd", "--seeds", "1", "--extra", "--data.workers 0")
    assert "line 1 was measured with extra [], now it would be ['--data.workers', '0']: name another file" in said


def test_lines_of_another_recipe_file_are_not_gone_on_with(tmp_path: Path, commands, capsys, monkeypatch):
    study(tmp_path, *FSDD)
    files = {stage: tmp_path / f"{stage}.yaml" for stage in ("pretrain", "finetune")}
    for stage, file in files.items():
        file.write_text(recipes.config_of("fsdd", stage).read_text())
    monkeypatch.setattr(recipes, "config_of", lambda recipe, stage: files[stage])
    assert study(tmp_path, *FSDD) == 0
    files["finetune"].write_text("train:\n  steps: 1\n")
    assert "line 1 was measured with finetune " in refused(tmp_path, commands, capsys, *FSDD)


def test_lines_of_other_clips_are_not_gone_on_with_wherever_they_lie(tmp_path: Path, commands, capsys):
    for name in ("fold1-train", "fold1-test", "fold2-train", "fold2-test"):
        (tmp_path / f"{name}.csv").write_text(name)
    esc = ("esc10", "--seeds", "0", "--source", "none", "--split")
    study(tmp_path, *esc, "fold 1")
    (tmp_path / "fold1-test.csv").write_text("others")
    assert study(tmp_path, *esc, "fold 2") == 0
    assert "line 1 was measured with data " in refused(tmp_path, commands, capsys, *esc, "fold 1")
    moved = tmp_path / "moved"
    (moved / "fold1-train").mkdir(parents=True)
    (moved / "fold1-test.csv").write_text("fold1-test")
    (moved / "out.jsonl").write_text((tmp_path / "out.jsonl").read_text())
    assert "line 1 was measured with data " in refused(moved, commands, capsys, *esc, "fold 1")
    (moved / "fold1-train").rmdir()
    (moved / "fold1-train.csv").write_text("fold1-train")
    assert study(moved, *esc, "fold 1") == 0


def test_lines_that_do_not_tell_their_settings_are_shown_but_not_gone_on_with(tmp_path: Path, commands, capsys):
    results = tmp_path / "out.jsonl"
    study(tmp_path, *FSDD)
    line = json.loads(results.read_text())
    results.write_text(json.dumps({name: value for name, value in line.items() if name != "settings"}) + "\n")
    assert "line 1 does not tell its settings: name another file" in refused(tmp_path, commands, capsys, *FSDD)
    assert study(tmp_path, "grid", "--seeds", "0", "--source", "none") == 0, "of another recipe"
    assert recipes.main(["table", "--json", str(results)]) == 0


def test_a_mean_is_over_seeds_with_every_split(tmp_path: Path):
    """The second seed was stopped after its first fold, which is an easy one."""
    found = [
        *(("none", 0, "fold 1", 0.5), ("none", 0, "fold 2", 0.3), ("none", 1, "fold 1", 0.9)),
        *(("mavil-tiny", 1, "fold 1", 1.0),),
    ]
    tuned = {"headline": {"weights": "last", "crops": "1", "metric": "top1"}, "cpu_seconds": 1.0}
    rows = [
        {"recipe": "esc10", "source": source, "seed": seed, "split": split}
        | {"tuned": {"auto": {**tuned, "results": {"last": {"1": {"top1": score}}}}}}
        for source, seed, split, score in found
    ]
    table = recipes.summary(rows)
    columns = {str(column.header): list(column.cells) for column in table.columns}
    assert columns["source"] == ["mavil-tiny", "from scratch"]
    assert columns["seeds"] == ["", "0"]
    assert columns["splits"] == ["2", "2"]
    assert columns["fine-tuned"] == ["", "40.0 %"]
    assert table.caption == ("left out, without a line for every split: esc10, mavil-tiny, seed 1; esc10, none, seed 1")


@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_scratch_and_pretrained_models_of_a_recipe_are_alike(recipe: str):
    """From scratch the model is that of finetune.yaml, otherwise that of pretrain.yaml."""
    folder = recipes.ROOT / "recipes" / recipe
    _, pretrained, _ = parse_train(["--config", str(folder / "pretrain.yaml")])
    flags = ["--config", str(folder / "finetune.yaml"), "--from", "none"]
    _, scratch, _ = parse_finetune(flags, lambda path: pretrained)
    for name in ("modalities", "audio", "video", "encoder"):
        assert getattr(pretrained.model, name) == getattr(scratch.model, name)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["fsdd", "--json", "x"], "--data None: must be the folder of the recipe's tables"),
        (["esc10", "--json", "x", "--data", ".", "--split", "fold 6"], "--split 'fold 6': must be one of fold 1"),
        (["iris", "--json", "x"], "invalid choice: 'iris'"),
    ],
)
def test_wrong_arguments_are_told(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        recipes.main(flags)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
