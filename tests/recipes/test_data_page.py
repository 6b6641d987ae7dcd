"""docs/data.md, its commands of preparation, on stand-ins of the sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffmavil.data.shards.index import Description
from tests.recipes.readme_commands import ROOT, run_page
from tests.recipes.standins import audioset, vggsound, videos


def test_preparing_as_the_page_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    audioset(data)
    vggsound(data)
    videos(data / "clips" / name / "one.mp4" for name in ("bark", "rain"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    run_page(ROOT / "docs" / "data.md", data)
    for name, clips, label in (("", 2, "bark"), ("-audioset", 3, "Dog"), ("-vggsound", 6, "dog barking")):
        found = Description.from_bytes((data / f"prepared{name}" / "dataset.json").read_bytes())
        assert (found.facts["clips"], found.facts["skipped"]) == (clips, 0)
        assert label in found.classes
