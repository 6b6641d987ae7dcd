"""docs/features.md and the README's example of the Python API, by their own lines."""

from __future__ import annotations

import re
import wave
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diffmavil.config import Config, FinetuneConfig, HeadConfig
from diffmavil.data.sources import split_source
from diffmavil.evaluation.features import untrained_model
from diffmavil.model.classifier import Classifier
from diffmavil.model.weights import export_weights
from tests.recipes.readme_commands import ROOT, run_page

_BLOCK = re.compile(r"^( *)```(python|sh)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def place(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages name, which becomes the current one."""
    model = replace(config.model, encoder=replace(config.model.encoder, depth=2))
    config = replace(config, model=model)
    paths = [clip.path for clip in split_source(config.data).held_out.clips[:3]]
    for folder in ("runs/mine", "runs/tuned", "clips", "data/clips"):
        (tmp_path / folder).mkdir(parents=True)
    for i, path in enumerate(paths):
        for copy in ("clips", "data/clips"):
            (tmp_path / copy / f"{i}.mp4").symlink_to(path)
    (tmp_path / "clip.mp4").symlink_to(paths[0])
    with wave.open(str(tmp_path / "talk.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(22_050)
        file.writeframes((3000 * np.random.default_rng(0).standard_normal(44_100)).astype(np.int16).tobytes())
    export_weights(untrained_model(config.model, seed=0), config, tmp_path / "runs" / "mine" / "model.safetensors")
    head = HeadConfig(classes=("cat", "dog"), labels="one")
    tuned = FinetuneConfig(model=config.model, data=config.data, train=config.train, head=head)
    torch.manual_seed(0)
    export_weights(Classifier(tuned.model, head), tuned, tmp_path / "runs" / "tuned" / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_snippets(page: Path, place: Path, wanted: Callable[[str], bool] = lambda code: True) -> int:
    """Run the blocks of Python and of commands in order, those of Python with one memory; how many there were."""
    memory: dict[str, object] = {}
    count = 0
    for indent, kind, block in _BLOCK.findall(page.read_text()):
        if not wanted(block):
            continue
        code = re.sub(f"^{indent}", "", block, flags=re.MULTILINE)
        count += 1
        if kind == "python":
            exec(compile(code, f"{page.name}, block {count}", "exec"), memory)
        else:
            (place / "block.md").write_text(f"```sh\n{code}```\n")
            run_page(place / "block.md", place / "data")
    return count


def test_the_page_of_features(place: Path, capsys: pytest.CaptureFixture[str]):
    assert run_snippets(ROOT / "docs" / "features.md", place) == 10
    told = capsys.readouterr().out
    assert "3 of 3 clips" in told
    assert "0.50 to 4.50 s: " in told
    assert told.count("audio 48, video 48, fused 96") == 3
    assert "torch.Size([3, 96])" in told
    header, *rows = (place / "scores" / "clips" / "predictions.csv").read_text().splitlines()
    assert header == "path,start,labels,class_1,score_1,class_2,score_2"
    assert len(rows) == 3


def test_the_readme_s_example(place: Path):
    assert run_snippets(ROOT / "README.md", place, lambda code: "diffmavil.load(" in code) == 1


def test_snippets_are_run_and_may_fail(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("- a list\n\n  ```python\n  x = 1\n  ```\n\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError):
        run_snippets(page, tmp_path)
    assert run_snippets(page, tmp_path, lambda code: "x = 1" in code) == 1
