"""`~` in the paths of every command, and folders that cannot be written: a message and exit code 2, before any work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from diffmavil import doctor, evaluate, prepare, report, train
from diffmavil.config import Config, DataConfig
from diffmavil.config.cli import parse_train, run_main
from diffmavil.config.errors import UsageError
from diffmavil.config.files import save_config
from diffmavil.config.folders import check_writable, expand, expanded
from diffmavil.config.presets import PRESETS
from diffmavil.data.dataset import make_reader
from diffmavil.data.sources import open_source
from diffmavil.data.synthetic.__main__ import main as synthetic

NOWHERE = ("FILE/x", "FILE/x/y", "FILE", "/proc/x", "/sys/x/y")
"""What even root cannot make a folder of; FILE is a regular file."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder, with a folder of one (empty) clip, and a run without weights."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").touch()
    (tmp_path / "run").mkdir()
    save_config(PRESETS["diffmavil-tiny"], tmp_path / "run" / "config.yaml")
    (tmp_path / "file").touch()
    return tmp_path


def said(main: Callable[[Sequence[str]], None], argv: list[str], capsys, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a command says that must end with exit code 2."""
    monkeypatch.setattr(sys, "argv", ["command", *argv])
    with pytest.raises(SystemExit) as stopped:
        run_main(main)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def contents(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_the_home_folder(home: Path) -> None:
    assert expand("~/x") == home / "x"
    assert expand("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
    assert expand("a/~/x") == Path("a/~/x")
    options = evaluate.Options(run_dir=Path("~/a"), weights=None, features=Path("~/b"))
    assert expanded(options) == replace(options, run_dir=home / "a", features=home / "b")


@pytest.mark.parametrize("flags", [["--run-dir=~/run"], ["--run-dir", "~/run"]], ids=["with =", "apart"])
def test_train_finds_a_run_at_home(home: Path, flags: list[str]) -> None:
    assert parse_train(flags)[2].run_dir == home / "run"
    saved = replace(PRESETS["mavil-small"], data=DataConfig(root="~/clips"))
    save_config(saved, home / "run" / "config.yaml")
    _, config, options = parse_train([*flags, "--resume"])
    assert config == saved
    assert options.run_dir == home / "run"


def test_data_at_home(home: Path) -> None:
    for data in (DataConfig(root="~/clips"), DataConfig(root="~/clips", more=("~/clips",), eval_root="~/clips")):
        assert {clip.path for clip in open_source(data).clips} == {str(home / "clips/a.mp4")}
        assert {clip.path for clip in open_source(data, "eval").clips} == {str(home / "clips/a.mp4")}
    assert make_reader(Config(data=DataConfig(cache="~/c"))).cache == home / "c"
    with pytest.raises(ValueError, match=r"data\.root='~nobody-of-this-name/x' does not exist"):
        open_source(DataConfig(root="~nobody-of-this-name/x"))


def test_every_command_looks_at_home(home: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each finds what is in the home folder, and says what is wrong with it or misses there."""
    (home / "names.txt").write_text("dog\n")
    cases = [
        (evaluate.main, ["--run-dir=~/run"], f"--run-dir {home}/run: holds no model.safetensors yet"),
        (evaluate.main, ["--run-dir=~/run", "--weights=~/w"], f"error: {home}/w: cannot be read as exported weights"),
        (report.main, ["--run-dir=~/none"], f"RUN {home}/none: holds no run"),
        (prepare.main, ["~/none", "~/out"], f"SRC='{home}/none'"),
        (prepare.main, ["~/clips", "~/file"], f"OUT='{home}/file': cannot be written: Not a directory"),
        (prepare.main, ["~/clips", "~/out", "--csv=~/none"], f"--csv='{home}/none'"),
        (prepare.main, ["~/clips", "~/out", "--csv=~/names.txt"], f"--csv='{home}/names.txt': its first line is 'dog'"),
        (prepare.main, ["~/clips", "~/out", "--classes=~/none"], f"--classes='{home}/none'"),
        (prepare.main, ["--verify=~/none"], f"--verify='{home}/none'"),
        (synthetic, ["--out=~/file/x"], "Not a directory"),
    ]
    for main, argv, message in cases:
        assert message in said(main, argv, capsys, monkeypatch), argv
    assert not (home / "out").exists()


@pytest.mark.parametrize("where", NOWHERE)
def test_what_cannot_be_written(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    folder = Path(where.replace("FILE", str(tmp_path / "file")))
    with pytest.raises(ValueError, match=rf"^OUT='{folder}': cannot be written: \w+"):
        check_writable("OUT", folder)
    assert contents(tmp_path) == [tmp_path / "file"]


def test_no_folder_is_made_to_see_whether_it_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process that was started at once would miss it when it is removed again."""

    def forbidden(path: Path, **how: object) -> None:
        raise AssertionError(path)

    monkeypatch.setattr(Path, "mkdir", forbidden)
    assert check_writable("OUT", tmp_path / "a" / "b")
    (tmp_path / "leads").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path / "leads", tmp_path / "leads" / "c"):
        with pytest.raises(ValueError, match="cannot be written: Not a directory"):
            check_writable("OUT", path)


def test_what_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    assert check_writable("OUT", tmp_path / "a" / "b" / "c")
    assert check_writable("OUT", tmp_path)
    assert contents(tmp_path) == []


@pytest.mark.parametrize("where", NOWHERE)
def test_commands_say_so(home: Path, where: str, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = where.replace("FILE", str(home / "file"))
    before = contents(home)
    message = f"{folder}': cannot be written: "
    assert f"--run-dir='{message}" in said(train.main, ["--run-dir", folder], capsys, monkeypatch)
    assert f"OUT='{message}" in said(prepare.main, [str(home / "clips"), folder], capsys, monkeypatch)
    cached = ["--run-dir", str(home / "new"), "--data.cache", folder, "--data.workers", "0"]
    assert f"data.cache='{message}" in said(train.main, cached, capsys, monkeypatch)
    own = [*cached, "--data.root", str(home / "clips")]
    assert f"data.cache='{message}" in said(train.main, own, capsys, monkeypatch)
    assert contents(home) == before


def test_a_run_folder_that_cannot_be_written(home: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root writes everywhere but where nothing can be written: a folder whose files cannot be made stands in."""

    def refuse(**arguments: object) -> None:
        raise OSError(30, "Read-only file system", str(arguments["dir"]))

    (home / "run" / "model.safetensors").touch()
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    for main, name in ((report.main, "RUN"), (evaluate.main, "--run-dir"), (train.main, "--run-dir")):
        text = said(main, ["--run-dir", str(home / "run")], capsys, monkeypatch)
        assert f"{name}='{home}/run': cannot be written: Read-only file system" in text


def test_features_are_refused_before_they_are_computed(home: Path) -> None:
    (home / "run" / "model.safetensors").touch()
    wrong = {"/sys/kernel/f": "cannot be written", str(home): "is a folder", str(home / "file" / "f"): "not exist"}
    for path, message in wrong.items():
        with pytest.raises(UsageError, match=rf"--features.*{message}"):
            evaluate.parse(["--run-dir", str(home / "run"), "--features", path])
    evaluate.parse(["--run-dir", str(home / "run"), "--features", "~/f"])


def test_the_doctor_says_so(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("HOME", "/proc/x")
    text = said(doctor.main, ["--data", "synthetic"], capsys, monkeypatch)
    assert "data.cache='~/.cache/diffmavil': cannot be written: No such file or directory" in text
