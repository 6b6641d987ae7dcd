"""gpu.sh: what it refuses, how it shares out its time, and what it leaves behind.

In most tests a script stands in for Python: it writes the files that a command would.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

GPU = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.sh"
STAND_IN = """#!/usr/bin/env bash
if [[ "$1" == *plot.py ]]; then touch "${2%.jsonl}-roofline.png" "${2%.jsonl}-bars.png"; fi
while [ $# -gt 0 ]; do
    case "$1" in --json | --plot | --trace) echo new >> "$2" ;; esac
    shift
done
"""


def run(script: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("BENCHMARK_COMMIT", "BUDGET", "OUT")}
    return subprocess.run(
        [str(script), *arguments], capture_output=True, text=True, timeout=250, env={**kept, **environment}
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """gpu.sh in a folder without git, beside a stand-in for Python."""
    script = tmp_path / "copy" / "benchmarks" / "gpu.sh"
    script.parent.mkdir(parents=True)
    shutil.copy(GPU, script)
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    return script


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        "PYTHON": str(tmp_path / "python"),
        "OUT": str(tmp_path / "out"),
        "BENCHMARK_COMMIT": "0123abc",
        "GIT_CEILING_DIRECTORIES": str(tmp_path),
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without a GPU")
@pytest.mark.parametrize(
    ("argument", "said"),
    [
        (("peers", "kernels"), "sees no CUDA device"),
        (("--fast",), "unknown stage '--fast'"),
        (("--rehearse",), "no stage"),
    ],
    ids=["no GPU", "bad", "none"],
)
def test_it_refuses_clearly(argument: tuple[str, ...], said: str, tmp_path: Path):
    done = run(GPU, *argument, PYTHON=sys.executable, OUT=str(tmp_path / "out"))
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rehearse", [(), ("--rehearse",)], ids=["measures", "rehearses"])
def test_without_git_the_commit_must_be_named(copy: Path, environment: dict[str, str], rehearse: tuple[str, ...]):
    named = environment.pop("BENCHMARK_COMMIT")
    done = run(copy, *rehearse, "data", **environment)
    assert done.returncode == 2
    assert "name it in BENCHMARK_COMMIT" in done.stderr
    assert not Path(environment["OUT"]).exists()
    assert run(copy, *rehearse, "data", **environment, BENCHMARK_COMMIT=named).returncode == 0


def limits(said: str) -> list[int]:
    """Seconds that each step was given."""
    return [int(found) for found in re.findall(r"at most (\d+) s", said)]


def test_what_a_step_leaves_of_its_time_the_next_ones_have(copy: Path, environment: dict[str, str]):
    done = run(copy, "--rehearse", "step", **environment, BUDGET="350")
    assert done.returncode == 0, done.stdout + done.stderr
    table, compiled, profile = limits(done.stdout)
    assert table == 100, "200 of 700 seconds"
    assert 230 < compiled <= 280, "400 of the 500 that are still to come"
    assert 280 < profile <= 350, "all that is left, for the others took none"


def test_without_time_nothing_is_run_and_that_is_a_failure(copy: Path, environment: dict[str, str]):
    done = run(copy, "--rehearse", "step", **environment, BUDGET="4")
    assert done.returncode == 1
    assert limits(done.stdout) == []
    assert done.stdout.count("no time left") == 3
    assert done.stdout.count("not run") == 3


def test_no_step_is_without_a_limit(copy: Path, environment: dict[str, str]):
    """To timeout, 0 seconds are none."""
    done = run(copy, "--rehearse", "kernels", "train", **environment, BUDGET="7")
    assert min(limits(done.stdout)) == 5


def test_of_several_stages_at_most_eight_files_are_left(copy: Path, environment: dict[str, str]):
    out = Path(environment["OUT"])
    done = run(copy, "kernels", "step", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    archive = out / "rest-kernels-step.tar.gz"
    left = {path.name for path in out.iterdir()} - {archive.name}
    with tarfile.open(archive) as tar:
        packed = set(tar.getnames())
    assert len(left) == 7
    lines = {f"{name}.jsonl" for name in ("kernels-cuda", "step-cuda", "step-cuda-compiled", "profile-cuda")}
    assert {*lines, "kernels.log", "step.log"} <= left
    assert len(packed) == 4
    assert "step-eager.json.gz" in packed
    assert f"=== 11 files: {archive.name} has " in done.stdout


def test_what_was_there_before_is_neither_counted_nor_packed(copy: Path, environment: dict[str, str]):
    out = Path(environment["OUT"])
    out.mkdir()
    for number in range(8):
        old = out / f"old{number}.log"
        old.touch()
        os.utime(old, (1e9, 1e9))
    assert run(copy, "step", **environment).returncode == 0
    assert not list(out.glob("*.tar.gz"))
    assert len(list(out.iterdir())) == 8 + 7


@pytest.mark.parametrize("stage", ["kernels", "step", "data", "train"])
def test_a_stage_that_measures_takes_the_place_of_its_old_lines(stage: str, copy: Path, environment: dict[str, str]):
    out = Path(environment["OUT"])
    assert run(copy, stage, **environment).returncode == 0
    results = list(out.glob("*.jsonl"))
    assert results
    for path in results:
        path.write_text("old\n")
    assert run(copy, stage, **environment).returncode == 0
    assert {line for path in results for line in path.read_text().splitlines()} == {"new"}


def test_peers_that_cannot_be_loaded_are_named_and_fail_no_rehearsal(tmp_path: Path):
    broken = tmp_path / "path" / "transformers"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('built for another torch')")
    out = tmp_path / "out"
    named = {"PYTHON": sys.executable, "OUT": str(out), "BENCHMARK_COMMIT": "0123abc"}
    done = run(GPU, "--rehearse", "peers", **named, PYTHONPATH=str(broken.parent))
    assert done.returncode == 0, done.stdout + done.stderr
    (said,) = (out / "peers.log").read_text().splitlines()
    assert said.startswith("transformers cannot be used: no peer was measured (ImportError")
    assert "built for another torch" in said
    assert [path.name for path in out.iterdir()] == ["peers.log"]
