"""docs/integrations.md and docs/examples: what is written there runs."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from maekernels import add_noise
from maekernels.integrations._instance import is_ours
from tests.integrations.small_models import package

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "integrations.md").read_text()
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = PYTHON.findall(PAGE)


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, DOCS / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's two blocks on one model, of base width but a layer deep."""
    transformers = package("transformers")
    whole = transformers.VideoMAEConfig
    monkeypatch.setattr(transformers, "VideoMAEConfig", lambda: whole(num_hidden_layers=1, decoder_num_hidden_layers=1))
    names: dict[str, Any] = {}
    exec(BLOCKS[0], names)
    model = names["model"]
    assert is_ours(model.forward)
    exec(BLOCKS[1], names)
    mask = torch.zeros(1, model.videomae.embeddings.num_patches, dtype=torch.bool)
    mask[:, :1408] = True
    with torch.no_grad():
        assert model(torch.zeros(1, 16, 3, 224, 224), mask).logits.shape == (1, 1408, 1536)
        with pytest.raises(ValueError, match="masked=1408"):
            model(torch.zeros(1, 16, 3, 224, 224), ~mask)


def test_the_readme_s_line() -> None:
    """README.md, on a small model."""
    (code,) = (block for block in PYTHON.findall((DOCS.parent / "README.md").read_text()) if "import patch" in block)
    transformers = package("transformers")
    names: dict[str, Any] = {"model": transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(num_hidden_layers=1))}
    exec(code, names)
    assert is_ours(names["model"].forward)


def test_in_a_fork() -> None:
    names: dict[str, Any] = {}
    exec(BLOCKS[2], names)
    assert names["x_masked"].shape == (8, 49, 768)
    assert names["mask"].shape == (8, 1568)
    assert names["ids_mask"].shape == (8, 1408)
    assert names["visible"].shape == (8, 160, 768)
    assert len(BLOCKS) == 3


@pytest.mark.parametrize("name", ["mae_in_60_lines", "diffusers_noise", "video_mae_fork"])
def test_examples_learn(name: str) -> None:
    losses = example(name).main(steps=30)
    assert sum(losses[-5:]) < 0.97 * sum(losses[:5])


def test_noise_that_is_predicted_is_the_noise_that_was_added() -> None:
    module = example("diffusers_noise")
    x0, alpha_bar = torch.randn(2, 3, 4, 4), torch.tensor([0.3, 0.9])
    noise = module.noise_of(x0, 7, 5)
    mixed = alpha_bar.sqrt()[:, None, None, None] * x0 + (1 - alpha_bar).sqrt()[:, None, None, None] * noise
    torch.testing.assert_close(add_noise(x0, alpha_bar, 7, 5), mixed)
    assert len(module.main(steps=2, predict="noise")) == 2


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package("transformers")
    package("accelerate")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    losses = example("video_mae_trainer").main(str(tmp_path), steps=10)
    assert len(losses) == 2
    assert (tmp_path / "model.safetensors").exists()


def test_every_example_is_on_the_page() -> None:
    assert {file.name for file in (DOCS / "examples").glob("*.py")} == set(re.findall(r"examples/(\w+\.py)", PAGE))
    lines = (DOCS / "examples" / "mae_in_60_lines.py").read_text().split("class MAE")[1].splitlines()
    assert len(lines) < 60
