"""Short pretrainings: none pays for the generated set, and a known line stands for the same run alone.

The commands themselves are stood in for.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import pretrain
from diffmavil.config import Config

TINY = ["--size", "tiny", "--pixels", "32", "--frames", "4", "--batch", "8", "--samples", "64", "--clips", "24"]
TINY += ["--workers", "0"]
SCORES = {model: {"probe/fused": 0.5} for model in ("trained", "untrained")}
METRICS = {"clips_per_second": 10.0, "data_wait": 0.1, "gflop_per_second": 1.0, "loss": 2.0}


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done, in order: sets made ready and commands."""
    done: list[str] = []

    def python(command: str, *arguments: str) -> None:
        done.append(" ".join((command, *arguments)))
        run = Path(arguments[arguments.index("--run-dir") + 1])
        run.mkdir(exist_ok=True)
        (run / "evaluation.json").write_text(json.dumps({"results": SCORES}))

    def open_data(config: Config) -> None:
        data = config.data
        done.append(f"ready {data.cache} {data.synthetic_train} {data.synthetic_eval}")

    monkeypatch.setattr(pretrain, "python", python)
    monkeypatch.setattr(pretrain, "open_data", open_data)
    monkeypatch.setattr(pretrain, "read_metrics", lambda folder: [METRICS] * 4)
    monkeypatch.setenv("BENCHMARK_COMMIT", "0123abc")
    return done


def trained(order: list[str]) -> int:
    return sum(done.startswith("diffmavil.train") for done in order)


def test_the_set_is_ready_before_the_first_pretraining_is_timed(tmp_path: Path, order: list[str]):
    assert pretrain.main([*TINY, "--cache", str(tmp_path)]) == 0
    assert order[0] == f"ready {tmp_path} 24 24"
    assert order[1].startswith("diffmavil.train mavil-tiny ")
    assert f"--data.synthetic-train 24 --data.synthetic-eval 24 --data.cache {tmp_path}" in order[1]


def test_a_line_holds_all_settings_and_the_same_run_is_known(tmp_path: Path, order: list[str], capsys):
    results = tmp_path / "out.jsonl"
    for _ in range(2):
        assert pretrain.main([*TINY, "--json", str(results)]) == 0
        assert capsys.readouterr().out.count("50.0%") == 6
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [line["preset"] for line in lines] == ["mavil-tiny", "diffmavil-tiny", "diffmavil-tiny-fast"]
    assert all((line["clips"], line["workers"], line["compile"]) == (24, 0, False) for line in lines)
    assert trained(order) == 3


@pytest.mark.parametrize("flags", [["--compile"], ["--workers", "1"], ["--clips", "48"], ["--seed", "1"]], ids=str)
def test_other_settings_are_run_again(flags: list[str], tmp_path: Path, order: list[str]):
    results = tmp_path / "out.jsonl"
    for more in ([], flags):
        assert pretrain.main([*TINY, *more, "--json", str(results)]) == 0
    assert trained(order) == 6


@pytest.mark.parametrize("key", ["device", "commit", "native", "versions", "workers"])
def test_a_line_of_something_else_or_that_does_not_tell_is_not_known(key: str, tmp_path: Path, order: list[str]):
    results = tmp_path / "out.jsonl"
    assert pretrain.main([*TINY, "--json", str(results)]) == 0
    first, second, third = (json.loads(line) for line in results.read_text().splitlines())
    first[key] = "another"
    del second[key]
    results.write_text("".join(json.dumps(line) + "\n" for line in (first, second, third)))
    assert pretrain.main([*TINY, "--json", str(results)]) == 0
    assert trained(order) == 3 + 2


@pytest.mark.parametrize("commit", ["0123abc-dirty", "unknown"])
def test_code_that_no_commit_tells_is_measured_anew(
    commit: str, tmp_path: Path, order: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("BENCHMARK_COMMIT", commit)
    for _ in range(2):
        assert pretrain.main([*TINY, "--json", str(tmp_path / "out.jsonl")]) == 0
    assert trained(order) == 6
