"""A study of quality is run, stopped and gone on with; wrong settings are not mixed in."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import frontier, quality, recipes
from benchmarks.frontier import Asked, Cell
from benchmarks.lines import read
from benchmarks.processes import Processes, Stopped
from tests.bench.study_commands import Commands, study

HELD_OUT = SimpleNamespace(used=80)


def test_a_study_is_run_side_by_side_and_goes_on_where_it_was_stopped(tmp_path: Path, commands: Commands, capsys):
    commands.fails, commands.together = "diffmavil-tiny-fast", 2
    flags = ("--seeds", "0", "1", "--budget", "1/3")
    assert study(tmp_path, "synthetic", *flags) == 1
    assert "error: python -m diffmavil.train ended with 1" in capsys.readouterr().err
    assert commands.most == 2
    before = read(tmp_path / "out.jsonl")
    assert 2 <= len(before) < 6
    commands.fails, commands.given = "", []
    assert study(tmp_path, "synthetic", *flags) == 0
    assert len(commands.flags("diffmavil.train")) == 6 - len(before)
    assert len({frontier.cell_of(row) for row in read(tmp_path / "out.jsonl")}) == 6
    commands.given = []
    assert study(tmp_path, "synthetic", *flags) == 0
    assert not commands.given
    assert "6 of 6 cells are known" in capsys.readouterr().out


def test_a_cell_of_folds_is_the_mean_of_them(tmp_path: Path, commands: Commands, monkeypatch, capsys):
    for fold in range(1, 6):
        for part in ("train", "test"):
            (tmp_path / f"fold{fold}-{part}.csv").touch()
    shown = iter([0.6, 0.7, 0.8, 0.7, 0.7])

    def evaluation(run: Path) -> SimpleNamespace:
        score = {"probe/audio": next(shown)}
        interval = {"probe/audio": (score["probe/audio"] - 0.1, score["probe/audio"] + 0.1)}
        others = {"untrained": {"probe/audio": 0.5}, "chance": {"probe/audio": 0.1}}
        results = {"trained": score, **others}
        return SimpleNamespace(results=results, intervals={"trained": interval}, clips={"heldout": HELD_OUT})

    monkeypatch.setattr(recipes, "read_evaluation", evaluation)
    flags = ("--seeds", "0", "--budget", "1/2", "--setting", "mavil-tiny")
    assert study(tmp_path, "esc10-folds", *flags) == 0
    for command in ("diffmavil.train", "diffmavil.evaluate"):
        given = commands.flags(command)
        assert [f"fold{fold}-test.csv" in flags for fold, flags in enumerate(given, 1)] == [True] * 5
    (row,) = read(tmp_path / "out.jsonl")
    assert row["scores"] == {"probe/audio": pytest.approx(0.7)}
    assert row["intervals"] == {"probe/audio": pytest.approx([0.7 - 0.1 / 5**0.5, 0.7 + 0.1 / 5**0.5])}
    assert (row["untrained"], row["chance"]) == ({"probe/audio": 0.5}, {"probe/audio": pytest.approx(0.1)})
    assert (row["cpu_seconds"], row["clips"], row["samples"]) == (5.0, 400, 19_200)
    with pytest.raises(SystemExit):
        study(tmp_path, "esc10-folds", *flags, "--keep", str(tmp_path / "kept"))
    assert "not of esc10-folds" in capsys.readouterr().err


def test_what_another_invocation_has_run_meanwhile_is_not_run_again(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
):
    flags = ("--seeds", "0", "--budget", "1", "--setting", "mavil-tiny")
    assert study(tmp_path, "synthetic", *flags) == 0
    (line,) = (tmp_path / "out.jsonl").read_text().splitlines()
    commands.given = []
    known = quality.results_of
    monkeypatch.setattr(quality, "results_of", lambda path: [])  # as it was when this one began
    assert study(tmp_path, "synthetic", *flags) == 0
    assert not commands.given
    monkeypatch.setattr(quality, "results_of", known)
    assert (tmp_path / "out.jsonl").read_text().splitlines() == [line]
    (tmp_path / "out.jsonl").write_text(f"{line}\n{line}\n")
    with pytest.raises(ValueError, match="line 2: is the cell of line 1 once more: take one of them out"):
        known(tmp_path / "out.jsonl")


def test_a_name_that_means_other_settings_now_is_refused(tmp_path: Path, commands: Commands, monkeypatch, capsys):
    flags = ("--budget", "1", "--setting", "mavil-tiny, Muon")
    assert study(tmp_path, "fsdd", "--seeds", "0", *flags) == 0
    assert study(tmp_path, "fsdd", "--seeds", "1", *flags) == 0
    monkeypatch.setitem(frontier.CHANGES, "mavil-tiny, Muon", "--optim.name muon --data.crops-kept 3")
    frontier._resolved.cache_clear()
    with pytest.raises(SystemExit) as ended:
        study(tmp_path, "fsdd", "--seeds", "2", *flags)
    frontier._resolved.cache_clear()
    assert ended.value.code == 2
    assert "'mavil-tiny, Muon', were trained with other settings than that means now" in capsys.readouterr().err


def test_cells_can_be_left_out(tmp_path: Path, commands: Commands, capsys):
    flags = ("--seeds", "0", "--budget", "1/4", "1", "--setting", "mavil-tiny", "--setting", "mavil-tiny-lean")
    assert study(tmp_path, "synthetic", *flags, "--without", "mavil-tiny", "1/4") == 0
    found = {(row["setting"], row["budget"]) for row in read(tmp_path / "out.jsonl")}
    assert found == {("mavil-tiny-lean", 0.25), ("mavil-tiny", 1), ("mavil-tiny-lean", 1)}
    for wrong in (("mavil-tiny-leen", "1/4"), ("mavil-tiny", "1/2")):
        with pytest.raises(SystemExit) as ended:
            study(tmp_path, "synthetic", *flags, "--without", *wrong)
        assert ended.value.code == 2
        assert "must be of the settings and budgets that are asked for" in capsys.readouterr().err


def test_ctrl_c_and_sigterm_end_what_is_running(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys):
    """With real processes, which would sleep for a minute."""
    started: list[Processes] = []

    def sleep(cell: Cell, asked: Asked, processes: Processes) -> frontier.Result:
        if not started:
            started.append(processes)
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        folder = tmp_path / f"{cell.setting}.d"
        folder.mkdir()
        (folder / "sleeping.py").write_text("import time; time.sleep(60)")
        processes._environment["PYTHONPATH"] = str(folder)
        processes.python("sleeping")
        raise AssertionError("it was not ended")

    monkeypatch.setattr(frontier, "open_data", lambda config: None)
    monkeypatch.setattr(frontier, "run_cell", sleep)
    begin = time.monotonic()
    assert study(tmp_path, "synthetic", "--seeds", "0", "--budget", "1") == quality.STOPPED
    assert time.monotonic() - begin < 50
    assert "stopped; the same command goes on" in capsys.readouterr().out
    assert not (tmp_path / "out.jsonl").exists()
    with pytest.raises(Stopped):
        started[0].python("sleeping")


def test_a_command_s_cpu_seconds_are_its_own_and_what_it_says_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    processes = Processes(threads=1)
    processes._environment["PYTHONPATH"] = str(tmp_path)
    code = "import os, sys, time\nassert os.environ['OMP_NUM_THREADS'] == '1'\n"
    (tmp_path / "busy.py").write_text(code + "while time.process_time() < 0.3: pass")
    (tmp_path / "idle.py").write_text(code + "time.sleep(0.4)")
    (tmp_path / "wrong.py").write_text("raise SystemExit('what went wrong')")
    found: dict[str, float] = {}
    threads = [
        threading.Thread(target=lambda name=name: found.update({name: processes.python(name)}))
        for name in ("busy", "idle")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found["busy"] >= 0.3
    assert found["idle"] < found["busy"]
    with pytest.raises(RuntimeError, match=r"python -m wrong ended with 1:\nwhat went wrong"):
        processes.python("wrong")
