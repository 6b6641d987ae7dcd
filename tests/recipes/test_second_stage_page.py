"""docs/second-stage.md, by its own commands, and the numbers in its table."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from diffmavil.config.files import load_config
from diffmavil.config.presets import PRESETS
from diffmavil.evaluation.result import read_evaluation
from diffmavil.model.flops import FORWARDS
from diffmavil.training.costs import scheduled_flops, with_teacher
from tests.recipes.readme_commands import ROOT, SMALLER, commands

PAGE = ROOT / "docs" / "second-stage.md"


def test_the_page(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice a student of the run before, and once of itself; probed and fine-tuned."""
    few = ("--data.synthetic-train", "24", "--data.synthetic-eval", "24", "--data.cache", str(cache))
    monkeypatch.chdir(tmp_path)
    for module, arguments in commands(PAGE, tmp_path):
        more = few if module in ("diffmavil.train", "diffmavil.finetune") else ()
        importlib.import_module(module).main([*arguments, *SMALLER.get(module, ()), *more])
    runs = tmp_path / "runs"
    taught = {run.name: load_config(run / "config.yaml").teacher.source for run in runs.iterdir()}
    assert taught == {
        "stage1": None,
        "stage2": str(runs / "stage1" / "model.safetensors"),
        "stage2-again": str(runs / "stage2" / "model.safetensors"),
        "stage2-finetuned": None,
        "ema": "ema",
    }
    assert read_evaluation(runs / "stage2") is not None
    assert (runs / "stage2-finetuned" / "classification.json").is_file()


def test_its_table_is_counted() -> None:
    rows = re.findall(r"^\| `(\S+)` \| ([\d.,]+) \| ([\d.]+) \| ([\d.]+) % \|$", PAGE.read_text(), re.MULTILINE)
    assert len(rows) == 3
    steps = {}
    for name, student, teacher, share in rows:
        model, taught = with_teacher(PRESETS[name])
        own = FORWARDS * scheduled_flops(model, PRESETS[name].mask).total
        assert f"{own / 1e9:,.1f}" == student
        assert f"{taught / 1e9:.1f}" == teacher
        assert f"{100 * taught / (own + taught):.1f}" == share
        steps[name] = own + taught
    saved = 1 - steps["diffmavil-base-fast-stage2"] / steps["mavil-base-stage2"]
    assert f"saves {saved:.0%}".replace("%", " %") in PAGE.read_text()
