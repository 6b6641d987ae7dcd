"""What is made of a profile: gaps, idle time, and a run of the whole script."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.profile_step import Gap, Span, gaps, main, summarise

SPANS = [Span("b", 2, 5), Span("a", 0, 10), Span("c", 12, 13), Span("d", 12.5, 20), Span("e", 21, 24)]


def test_gaps_are_where_nothing_ran():
    assert gaps(SPANS) == [Gap("a", "c", 2), Gap("d", "e", 1)]
    assert gaps([]) == []


def test_summary_of_a_step():
    assert summarise(SPANS, steps=2) == pytest.approx(
        {"span_ms": 0.012, "busy_ms": 0.0105, "idle": 3 / 24, "launches": 2.5}
    )


def test_it_profiles_a_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    results, trace = tmp_path / "found.jsonl", tmp_path / "trace.json"
    flags = ["--device", "cpu", "--batch", "2", "--steps", "1", "--top", "3"]
    assert main([*flags, "--json", str(results), "--trace", str(trace)]) == 0
    (line,) = [json.loads(text) for text in results.read_text().splitlines()]
    assert line["waits"] == {}
    assert line["preset"] == "diffmavil-tiny-fast"
    assert 0 <= line["idle"] < 1
    assert "gaps between kernels" in capsys.readouterr().out
    assert json.loads(trace.read_text())["traceEvents"]


@pytest.mark.parametrize("flags", [["--batch", "0"], ["--cuda-graph"], ["--preset", "none"]], ids=str)
def test_bad_arguments_end_with_2(flags: list[str]):
    with pytest.raises(SystemExit) as ended:
        main(["--device", "cpu", *flags])
    assert ended.value.code == 2
