"""The command line: what it prints and writes, what it refuses, and that it can be run by path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import bench, kernels
from benchmarks.bench import KEYS
from benchmarks.measure import CpuClock
from maekernels import _native

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("--device", "cpu", "--case", "tiny", "--batch", "2", "--seconds", "0")
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without a GPU")


def run_by_path(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "kernels.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=250)


NAMES = ("eager", "reference", "ours") if _native.ABSENT else ("eager", "reference", "native", "ours")


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_by_path_from_anywhere_it_writes_a_line_for_each_provider_and_mode(tmp_path: Path):
    results = tmp_path / "new" / "results.jsonl"
    ops = ("--op", "random_mask", "--op", "gather_tokens")
    done = run_by_path(tmp_path, *QUICK, *ops, "--json", str(results))
    assert done.returncode == 0, done.stderr
    assert "gather_tokens (float32)" in done.stdout
    assert "limits measured now: copy" in done.stdout
    rows = rows_of(results)
    names = NAMES
    wanted = [("random_mask", "fwd", name) for name in names]
    wanted += [("gather_tokens", mode, name) for mode in ("fwd", "bwd", "both") for name in names]
    assert [(row["op"], row["mode"], row["provider"]) for row in rows] == wanted
    for row in rows:
        assert tuple(row)[: len(KEYS)] == KEYS
        assert row["low_ms"] <= row["median_ms"] <= row["high_ms"]
        assert row["gbps"] == pytest.approx(row["bytes"] / row["median_ms"] * 1e-6, rel=2e-3)
        moving, drawing = row["bytes"] / row["copy_gbps"], row["philox_blocks"] / row["philox_gblocks"]
        assert row["share_of_limit"] == pytest.approx(max(moving, drawing) * 1e-6 / row["median_ms"], rel=5e-3)
        assert row["share_of_copy"] == pytest.approx(row["gbps"] / row["copy_gbps"], rel=5e-3)
        assert row["share_of_equal_copy"] == pytest.approx(row["equal_copy_ms"] / row["median_ms"], rel=5e-3)
        assert (row["package"], row["cache"]) == (None, "warm")
        assert row["launches"] >= 1
        assert row["peak_mib"] is None
        assert row["batch"] == 2
        assert {"python", "torch"} <= set(row["versions"])
    eager = {(row["op"], row["mode"]): row["median_ms"] for row in rows if row["provider"] == "eager"}
    for row in rows:
        assert row["speedup"] == pytest.approx(eager[row["op"], row["mode"]] / row["median_ms"], rel=2e-3)


@pytest.mark.parametrize("script", ["kernels.py", "plot.py"])
def test_run_by_path_hides_no_package_of_another_name(script: str, tmp_path: Path):
    """Python puts the script's folder first on the path, where kernels.py would be found as `kernels`."""
    other = tmp_path / "kernels"
    other.mkdir()
    (other / "__init__.py").touch()
    run = f"sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); runpy.run_path({str(ROOT / 'benchmarks' / script)!r})"
    code = f"import runpy, sys; {run}; import kernels; print(kernels.__file__)"
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250, env=env)
    assert done.stdout.strip() == str(other / "__init__.py"), done.stderr


def test_a_wrong_provider_is_named_and_neither_timed_nor_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    real = bench.providers
    wrong = {"wrong": lambda p: p.ours() * 1.1, "broken": lambda p: p.nothing()}
    monkeypatch.setattr(bench, "providers", lambda *args: real(*args) | wrong)
    results = tmp_path / "results.jsonl"
    code = kernels.main([*QUICK, "--op", "gather_tokens", "--mode", "fwd", "--json", str(results)])
    said = " ".join(capsys.readouterr().out.split())
    assert code == 1
    assert "gather_tokens, tiny: wrong is WRONG and not timed: output 0 has a relative error of 1.0e-01" in said
    assert "broken is WRONG and not timed: AttributeError" in said
    assert {row["provider"] for row in rows_of(results)} == set(NAMES)


def test_lines_are_appended(tmp_path: Path):
    results = tmp_path / "results.jsonl"
    for _ in range(2):
        assert kernels.main([*QUICK, "--op", "random_mask", "--json", str(results)]) == 0
    assert len(rows_of(results)) == 2 * len(NAMES)


def test_rows_whose_host_was_late_are_marked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """A clock as of a GPU: late whenever it reads what is called `slow`."""
    real = bench.providers

    class Late(CpuClock):
        def read(self, calls) -> float:
            before = len(slow)
            seconds = super().read(calls)
            self.late += len(slow) > before
            return seconds

    slow: list[int] = []

    def ours(problem):
        slow.append(1)
        return problem.ours()

    monkeypatch.setattr(bench, "providers", lambda *args: real(*args) | {"slow": ours})
    monkeypatch.setattr(kernels, "make_clock", lambda device, threads: Late(threads))
    results = tmp_path / "results.jsonl"
    assert kernels.main([*QUICK, "--op", "gather_tokens", "--mode", "fwd", "--json", str(results)]) == 0
    assert {row["provider"]: row["late"] for row in rows_of(results)} == {**dict.fromkeys(NAMES, False), "slow": True}
    out = capsys.readouterr().out
    (marked,) = [line for line in out.splitlines() if "*" in line and "readings are too long" not in line]
    assert "slow" in marked
    assert "readings are too long" in out


@pytest.mark.slow
def test_the_compiled_reference_is_measured_with_its_gradient(tmp_path: Path):
    results = tmp_path / "results.jsonl"
    done = run_by_path(tmp_path, *QUICK, "--op", "gather_tokens", "--compile", "--json", str(results))
    assert done.returncode == 0, done.stdout + done.stderr
    assert {row["mode"] for row in rows_of(results) if row["provider"] == "compiled"} == {"fwd", "bwd", "both"}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        pytest.param(["--op", "attention_mask"], "invalid choice", id="op"),
        pytest.param(["--case", "huge"], "invalid choice", id="case"),
        pytest.param(["--mode", "sideways"], "invalid choice", id="mode"),
        pytest.param(["--batch", "0"], "--batch 0: must be at least 1", id="batch"),
        pytest.param(["--threads", "0"], "--threads 0: must be at least 1", id="threads"),
        pytest.param(["--seconds", "-1"], "--seconds -1.0: must be at least 0", id="seconds"),
        pytest.param(["--device", "cuda"], "sees no CUDA device", id="no GPU", marks=needs_no_gpu),
    ],
)
def test_bad_arguments_end_with_code_2_and_say_what_is_allowed(argv, said, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        kernels.parse(argv)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
