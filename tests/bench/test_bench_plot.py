"""Pictures are drawn from lines of results, and other files are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import plot


def row(op: str, provider: str, mode: str = "fwd", **other) -> dict:
    return {
        "op": op,
        "case": "tiny",
        "mode": mode,
        "provider": provider,
        "median_ms": 2.0,
        "gbps": 3.0,
        "gflops": 4.0,
        "share_of_limit": 0.5,
        "speedup": 1.5,
        "peak_mib": None,
        "device": "cpu: test",
        "commit": "abc",
        "versions": {"torch": "2.13"},
        "date": "2026-01-01T00:00:00+00:00",
        "low_ms": 1.0,
        "high_ms": 3.0,
        "batch": 1,
        "dtype": "float32",
        "bytes": 1000,
        "flops": 0 if op == "gather_tokens" else 3000,
        "copy_gbps": 10.0,
        "matmul_gflops": 50.0,
    } | other


def written(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_roofline_and_bars_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [row("gather_tokens", name, mode) for name in ("eager", "ours") for mode in ("fwd", "both")]
    rows += [row("patchify", "ours"), row("info_nce", "ours", speedup=None)]
    rows += [row("softmax", name) for name in ("eager", "liger", "quack")]
    results = written(tmp_path / "kernels-test.jsonl", rows)
    assert plot.main([str(results), "--case", "tiny", "--out", str(tmp_path / "pictures")]) == 0
    names = ["kernels-test-roofline.png", "kernels-test-bars.png"]
    assert [Path(line).name for line in capsys.readouterr().out.split()] == names
    for name in names:
        with Image.open(tmp_path / "pictures" / name) as picture:
            assert min(picture.size) > 500
            assert len(picture.convert("RGB").getcolors(2**20) or ()) > 10


def test_of_several_lines_for_one_thing_the_last_counts(tmp_path: Path):
    results = written(tmp_path / "r.jsonl", [row("patchify", "ours", gbps=1.0), row("patchify", "ours", gbps=2.0)])
    assert [r["gbps"] for r in plot.read(results)] == [2.0]


def test_row_ops_of_other_packages_stand_in_the_roofline_and_not_in_the_bars():
    rows = [row("patchify", "ours"), row("softmax", "liger", gbps=7.0)]
    left, right = plot.draw_roofline(rows).axes
    assert [line.get_ydata() for line in right.lines if line.get_marker() == "P"] == [[7.0]]
    assert not any(line.get_marker() == "P" for line in left.lines)
    _, below = plot.draw_bars(rows).axes
    assert [label.get_text() for label in below.get_xticklabels()] == ["patchify\nfwd"]
    plot.plt.close("all")


def test_an_op_with_a_gradient_is_shown_with_it():
    rows = [row("patchify", "ours"), row("info_nce", "ours", "fwd"), row("info_nce", "ours", "both")]
    assert [(r["op"], r["mode"]) for r in plot.training(rows, "tiny")] == [("patchify", "fwd"), ("info_nce", "both")]


@pytest.mark.parametrize(
    ("text", "argv", "said"),
    [
        pytest.param("{}\n", [], "line 1: not a result", id="other JSON"),
        pytest.param("a,b\n", [], "line 1: not a result", id="no JSON"),
        pytest.param("", [], "holds no results", id="empty"),
        pytest.param(
            json.dumps(row("patchify", "ours")), ["--case", "large"], "our ops for ['tiny']", id="no such case"
        ),
        pytest.param(
            json.dumps(row("softmax", "liger")), ["--case", "tiny"], "our ops for []", id="row ops of others alone"
        ),
        pytest.param(None, [], "no such file", id="missing"),
    ],
)
def test_what_cannot_be_drawn_is_refused(text, argv, said, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    results = tmp_path / "r.jsonl"
    if text is not None:
        results.write_text(text)
    with pytest.raises(SystemExit) as ended:
        plot.main([str(results), *argv])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
