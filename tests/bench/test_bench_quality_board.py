"""What is made of the lines of the study of quality: scores, thresholds, tables, pictures, docs/quality.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scipy import stats

from benchmarks import quality, quality_earlier
from benchmarks.frontier import FROM_SCRATCH
from benchmarks.lines import read
from benchmarks.quality_board import page, picture
from benchmarks.quality_view import T_QUANTILES, Grid, View, interval, percent, summed, views

FIRST, SECOND = "2026-01-01T00:00:00+00:00 abc", "2026-01-02T00:00:00+00:00 abd"


def line(setting: str, budget: float, seed: int, score: float, **other: Any) -> dict[str, Any]:
    name = other.get("set", "fsdd")
    metric = "probe/fused" if name in ("grid", "synthetic") else "probe/audio"
    flops = {"mavil-tiny": 10.0, "diffmavil-tiny": 8.0}.get(setting, 0.0)
    return {
        "set": name,
        "setting": setting,
        "budget": budget,
        "seed": seed,
        "samples": int(64000 * budget),
        "gflop_per_clip": flops / 192,
        "tflop": flops * budget,
        "cpu_seconds": 100 * flops * budget,
        "clips": 300,
        "scores": {metric: score},
        "untrained": {metric: 0.5 + 0.1 * seed},
        "chance": {metric: 0.1},
        "intervals": {metric: [score - 0.03, score + 0.03]},
        "invocation": FIRST,
        "jobs": 2,
        "load": 2.0,
        "device": "cpu: test, 1 thread",
        "commit": "abc",
        "versions": {"torch": "2.13"},
        "date": "2026-01-01T01:00:00+00:00",
        "settings": {},
    } | other


def lines() -> list[dict[str, Any]]:
    """Two seeds: MAViL has 70 and 80 %, then 90 and 94 %; DiffMAViL 75 % and 91 %."""
    scores = {
        ("mavil-tiny", 0.25): (0.70, 0.80),
        ("mavil-tiny", 1.0): (0.90, 0.94),
        ("diffmavil-tiny", 0.25): (0.75, 0.75),
        ("diffmavil-tiny", 1.0): (0.91, 0.91),
    }
    return [
        line(setting, budget, seed, score)
        for (setting, budget), found in scores.items()
        for seed, score in enumerate(found)
    ]


def column(grid: Grid, head: str) -> list[str]:
    return [row[grid.heads.index(head)] for row in grid.rows]


def test_an_interval_covers_seeds_and_clips():
    score = summed([0.7, 0.8, 0.9], [(0.6, 0.8), (0.7, 0.9), (0.8, 1.0)])
    assert score is not None
    seeds = stats.t.ppf(0.975, 2) * 0.1 / 3**0.5
    assert (score.mean, score.sd) == pytest.approx((0.8, 0.1))
    assert score.half == pytest.approx((seeds**2 + 0.1**2) ** 0.5, rel=1e-3)
    assert interval(score) == "53.2 to 100.0"
    one = summed([0.7], [(0.6, 0.8)])
    assert one is not None
    assert (percent(one), interval(one)) == ("70.0", "60.0 to 80.0")
    assert summed([], []) is None
    assert list(T_QUANTILES) == [pytest.approx(stats.t.ppf(0.975, n), abs=5e-4) for n in range(1, 10)]


def test_the_table_has_scores_costs_and_differences_at_the_same_seed_and_samples():
    grid = View(lines(), "fsdd").scores("probe/audio")
    assert column(grid, "setting") == ["untrained", *["mavil-tiny"] * 2, *["diffmavil-tiny"] * 2]
    assert column(grid, "×") == ["0", "1/4", "1", "1/4", "1"]
    assert column(grid, "score") == ["55.0 ± 7.1", "75.0 ± 7.1", "92.0 ± 2.8", "75.0 ± 0.0", "91.0 ± 0.0"]
    assert column(grid, "of MAViL") == ["", "", "", "+0.0 ± 7.1", "-1.0 ± 2.8"]
    assert column(grid, "95 %")[3] == "72.0 to 78.0"
    assert column(grid, "CPU s") == ["0", "250", "1,000", "200", "800"]
    assert column(grid, "TFLOP") == ["0", "2.5", "10.0", "2.0", "8.0"]
    assert grid.title.endswith("(chance 10.0)")


def test_who_reaches_a_score_is_told_by_what_was_measured_and_the_cheapest_is_strong():
    grid = View(lines(), "fsdd").reached("probe/audio")
    rows = [row[:6] for row in grid.rows]
    assert rows == [
        ["untrained: 55.0", "mavil-tiny", "1/4", "75.0 ± 7.1", "250", "2.5"],
        ["untrained: 55.0", "diffmavil-tiny", "1/4", "75.0 ± 0.0", "**200**", "**2.0**"],
        ["mavil-tiny × 1, less its deviation: 89.2", "mavil-tiny", "1", "92.0 ± 2.8", "1,000", "10.0"],
        ["mavil-tiny × 1, less its deviation: 89.2", "diffmavil-tiny", "1", "91.0 ± 0.0", "**800**", "**8.0**"],
        ["mavil-tiny × 1: 92.0", "mavil-tiny", "1", "92.0 ± 2.8", "**1,000**", "**10.0**"],
        ["mavil-tiny × 1: 92.0", "diffmavil-tiny", "not reached", "", "", ""],
    ]
    assert grid.rows[0][6] == "abc, 2026-01-01"


def test_a_point_of_fewer_seeds_is_held_against_the_same_seeds():
    """MAViL has 90 and 94 %, 92 on the mean: 91 of seed 0 is above it, 93 of seed 1 below, 99 of seed 2 nothing."""
    others = [line(f"other {seed}", 1.0, seed, score) for seed, score in enumerate((0.91, 0.93, 0.99))]
    view = View([*lines(), *others], "fsdd")
    goal = "mavil-tiny × 1: 92.0"
    reached = {row[1]: row[3] for row in view.reached("probe/audio").rows if row[0] == goal}
    assert reached == {"mavil-tiny": "92.0 ± 2.8", "other 0": "91.0", "diffmavil-tiny; other 1": ""}
    table = view.scores("probe/audio")
    gains = dict(zip(column(table, "setting"), column(table, "of MAViL"), strict=True))
    assert (gains["other 0"], gains["other 2"]) == ("+1.0", "")
    both = View([*lines(), *(line("other", 1.0, seed, 0.95) for seed in (1, 2))], "fsdd").scores("probe/audio")
    assert column(both, "of MAViL")[-1] == "+1.0 (1 of 2)"


def test_untrained_models_count_once():
    """Seed 0 stands in six lines, seed 1 in four."""
    more = [line("other", budget, 0, 0.8) for budget in (0.5, 2.0)]
    assert percent(View([*lines(), *more], "fsdd").untrained("probe/audio")) == "55.0 ± 7.1"
    of_two_kinds = line("third", 1.0, 0, 0.8) | {"untrained": {"probe/audio": 0.6}}
    assert percent(View([*lines(), of_two_kinds], "fsdd").untrained("probe/audio")) == "57.5 ± 3.5"


def test_seconds_of_another_invocation_are_marked_and_not_compared():
    found = lines()
    for row in found:
        if (row["setting"], row["budget"]) == ("diffmavil-tiny", 0.25):
            row |= {"invocation": SECOND, "commit": "abd", "cpu_seconds": 1.0}
    found[0] |= {"invocation": SECOND, "cpu_seconds": 9999.0}
    view = View(found, "fsdd")
    # Of MAViL at a quarter one line counts, and the other's seconds do not.
    assert column(view.scores("probe/audio"), "CPU s") == ["0", "250", "1,000", "1 (b)", "800"]
    reached = view.reached("probe/audio").rows[:2]
    assert [row[4] for row in reached] == ["**250**", "1 (b)"]
    assert [row[5] for row in reached] == ["2.5", "**2.0**"]
    notes = " ".join(view.notes())
    assert "Invocation a: 5 lines, abc, 2026-01-01, cpu: test, 1 thread, 2 side by side" in notes
    assert "CPU seconds are of invocation a, and compared within it alone" in notes


def test_an_unfinished_study_says_so():
    assert not any("not complete" in note for note in View(lines(), "fsdd").notes())
    assert any("not complete" in note for note in View(lines()[:-1], "fsdd").notes())


def test_fine_tuning_is_held_against_from_scratch():
    rows = [line("mavil-tiny", 1, seed, 0.7, set="esc10") for seed in (0, 1)]
    for row, score in zip(rows, (0.8, 0.9), strict=True):
        row["scores"]["finetune"], row["intervals"]["finetune"] = score, [score - 0.1, score + 0.1]
    empty = {"untrained": {}, "scores": {"finetune": 0.75}, "intervals": {"finetune": [0.6, 0.9]}, "set": "esc10"}
    rows += [line(FROM_SCRATCH, 0, seed, 0, **empty) for seed in (0, 1)]
    for row in rows[2:]:
        del row["chance"]
    view = View(rows, "esc10")
    assert view.headlines() == ["probe/audio", "finetune"]
    grid = view.scores("finetune")
    assert column(grid, "setting") == [FROM_SCRATCH, "mavil-tiny"]
    assert column(grid, "score") == ["75.0 ± 0.0", "85.0 ± 7.1"]
    assert view.reached("finetune").rows[0][0] == "from scratch: 75.0"
    assert [point.setting for point in view.points] == ["mavil-tiny"]


def test_other_metrics_stand_in_a_table_of_their_own():
    rows = [line("mavil-tiny", 1, 0, 0.7, set="grid")]
    rows[0]["scores"]["probe/video"], rows[0]["untrained"]["probe/video"] = 0.3, 0.2
    rows[0]["chance"]["probe/video"] = 0.05
    *_, grid = View(rows, "grid").grids()
    assert grid.heads == ["setting", "×", "probe, video"]
    assert column(grid, "probe, video") == ["20.0", "30.0", "5.0"]


def test_table_plot_and_board_are_made_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    results, out = tmp_path / "out.jsonl", tmp_path / "docs"
    rows = [*lines(), line("mavil-tiny", 1, 0, 0.7, set="grid", invocation=SECOND)]
    results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for what in ("table", "plot", "board"):
        assert quality.main([what, "--json", str(results), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    for said in ("75.0 ± 7.1", "who reaches which score of probe", "not reached", "quality-fsdd.png"):
        assert said in shown
    assert {file.name for file in out.iterdir()} == {"quality.md", "quality-fsdd.png", "quality-grid.png"}
    with Image.open(out / "quality-fsdd.png") as image:
        assert image.width >= 1000  # seven inches: a phone's width shows its letters at half their size
        assert len(image.convert("RGB").getcolors(2**20) or ()) > 10
    text = (out / "quality.md").read_text()
    assert text == page(read(results))
    assert "| **800** | **8.0** | abc, 2026-01-01 |" in text
    assert "There are no lines of: Generated set; ESC-10, fold 1; ESC-10, mean of five folds." in text


def test_without_lines_the_page_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert quality.main(["table", "--json", str(tmp_path / "none.jsonl")]) == 0
    assert "has no lines yet" in " ".join(capsys.readouterr().out.split())
    text = page([])
    others = "Free Spoken Digits; ESC-10, fold 1; ESC-10, mean of five folds; GRID"
    assert f"There are no lines of: Generated set; {others}" in text
    assert "![" not in text


def test_studies_of_one_budget_have_a_table_each():
    point = {"study": "synthetic", "seed": 0, "samples": 32000, "cpu_seconds": 10}
    point |= {"commit": "abc", "date": "2026-01-01"}
    points = [
        {**point, "setting": setting, "trained:probe/fused": score, "untrained:probe/fused": 0.5}
        for setting, score in (("mavil-tiny", 0.7), ("mavil-tiny", 0.8), ("diffmavil-tiny", 0.6))
    ]
    probes = {"trained": {"probe/audio": 0.6}, "untrained": {"probe/audio": 0.4}}
    tuned = {"auto": {"headline": {"weights": "last", "crops": "1", "metric": "top1"}}}
    folds = [
        {"recipe": "esc10", "source": source, "split": split, "seed": seed, "commit": "abd", "date": "2026-01-02"}
        | {"tuned": {"auto": {**tuned["auto"], "results": {"last": {"1": {"top1": top1}}}}}}
        | ({} if source == "none" else {"probes": probes, "pretrain_cpu_seconds": 7.0})
        for source, split, seed, top1 in (
            *(("none", "fold 1", 0, 0.5), ("none", "fold 2", 0, 0.7)),
            *(("mavil-tiny", "fold 1", 0, 0.8), ("mavil-tiny", "fold 2", 0, 0.9), ("mavil-tiny", "fold 1", 1, 0.75)),
        )
    ]
    generated, esc = quality_earlier.grids(folds, points)
    assert column(generated, "setting") == ["mavil-tiny", "diffmavil-tiny"]
    assert column(generated, "%") == ["75.0 ± 7.1", "60.0"]
    assert column(generated, "untrained, or from scratch, %") == ["50.0", "50.0"]
    assert column(esc, "score") == ["probe", "fine-tuned"]
    assert column(esc, "%") == ["60.0 ± 0.0", "80.0 ± 7.1"]
    assert column(esc, "untrained, or from scratch, %") == ["40.0", "60.0"]
    assert column(esc, "seeds") == ["2", "2"]
    assert column(esc, "CPU s") == ["7", "7"]
    text = page([], [esc])
    assert "## At one budget" in text
    assert esc.markdown() in text


def test_the_page_is_what_the_lines_say_and_has_its_pictures():
    results, lean = read(quality.RESULTS), read(quality.LEAN)
    assert (quality.DOCS / quality.PAGE).read_text() == page(results, quality.earlier(), lean)
    pictures = {picture(v.name) for v in views(results)} | {picture(v.name, "lean") for v in views(lean)}
    assert {file.name for file in quality.DOCS.glob("quality-*.png")} == pictures
