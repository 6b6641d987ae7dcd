"""docs/whole-way.md, by its own commands: a recipe, a folder of sound files, a table with two labels a clip."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffmavil.evaluation.classification import read_classification
from tests.recipes.readme_commands import ROOT, run_page
from tests.recipes.standins import fsdd, wav


def test_the_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    fsdd(data)
    for pitch, name in enumerate(("bark", "rain")):
        for number in range(12):
            wav(data / "sounds" / name / f"{number}.wav", pitch)
    for table in ("train", "test"):
        lines = ["path,start,duration,labels"]
        for pitch, labels in enumerate(("siren;rain", "rain", "bark")):
            wav(data / "mine" / f"{table}-{pitch}.wav", pitch, seconds=1.2)
            lines += [f"{table}-{pitch}.wav,0,0.6,{labels}", f"{table}-{pitch}.wav,0.6,0.6,{labels}"]
        (data / "mine" / f"{table}.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    run_page(ROOT / "docs" / "whole-way.md", data)

    digits, sounds, mine = (
        read_classification(tmp_path / "runs" / f"{name}-finetuned") for name in ("digits", "sounds", "mine")
    )
    assert digits
    assert sounds
    assert mine
    assert (digits.labels, digits.headline["metric"]) == ("one", "top1")
    assert sounds.classes == ["bark", "rain"]
    assert 0 < sounds.clips["test"]["used"] < 12
    assert (mine.labels, mine.headline["metric"]) == ("several", "mAP")
    assert mine.classes == ["bark", "rain", "siren"]
