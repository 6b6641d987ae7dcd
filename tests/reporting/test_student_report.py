"""A run of the second stage has no pictures, and its report says so in their place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from diffmavil.config import TeacherConfig
from diffmavil.reporting.page import write_comparison, write_report
from tests.reporting.some_runs import write_run
from tests.runs import very_small


def test_a_student_has_a_report_without_pictures(cache: Path, tmp_path: Path) -> None:
    base = very_small(cache)
    teacher = TeacherConfig(stage=2, source="runs/stage1/model.safetensors", sha256="00")
    run = write_run(tmp_path / "run", replace(base, model=replace(base.model, target_width=48), teacher=teacher))
    own = write_report(run).read_text()
    both = write_comparison([run], tmp_path / "page.html", 8, Console(quiet=True)).read_text()
    for page in (own, both):
        assert "predict a teacher&#39;s features of masked patches, of which there are no pictures" in page
        assert "runs/stage1/model.safetensors" in page
        assert "prediction of features" in page
    assert "Neighbours" in both or "neighbours" in both
    assert not list(run.glob("reconstruction-*.png"))
