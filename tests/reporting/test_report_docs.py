"""docs/report.md, by its own commands, on a folder of clips."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from diffmavil.data.sources import split_source
from tests.recipes.readme_commands import ROOT, run_page
from tests.runs import very_small


def test_the_commands_of_the_page(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    for number, clip in enumerate(split_source(very_small(cache).data).train.clips):
        folder = data / "clips" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip.path, folder / f"{number}.mp4")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    run_page(ROOT / "docs" / "report.md", data)
    assert (tmp_path / "runs" / "diffused" / "report.html").exists()
    assert "mask-tokens" in (tmp_path / "comparison.html").read_text()
    told = capsys.readouterr().out
    found = json.loads(next(line for line in told.splitlines() if line.startswith('{"run"')))
    assert found["preset"] == "mavil-tiny"
    assert {"samples seen", "model", "masking"} <= {finding["check"] for finding in found["findings"]}
    assert "limits: " in told
