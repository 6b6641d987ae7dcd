"""docs/exchange.md, by its own commands and snippets, on small files of every source."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch

from diffmavil.config import Config
from diffmavil.model import DiffMAViL
from diffmavil.model.weights import export_weights, load_weights
from tests.model import foreign
from tests.model import image_mae_files as mae
from tests.model.peers import transformers
from tests.model.small import SMALL
from tests.recipes.readme_commands import ROOT, commands

PAGE = ROOT / "docs" / "exchange.md"
SOURCES = {
    "mae_pretrain_vit_base.pth": mae.random_state,
    "audiomae.pth": foreign.audio_mae,
    "videomae.pth": foreign.video_mae,
    "mavil.pth": foreign.mavil,
    "cav-mae.pth": foreign.cav_mae,
}
SMALLER = ("--heads", "3", "--trained-size", "32", "--trained-frames", "4", "--mels", "32")
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all commands of the page have run."""
    folder = tmp_path_factory.mktemp("exchange")
    data, run = folder / "data", folder / "runs" / "mine"
    for one in (data, run):
        one.mkdir(parents=True)
    for name, make in SOURCES.items():
        torch.save(make(), data / name)
    torch.manual_seed(0)
    export_weights(DiffMAViL(SMALL), Config(model=SMALL), run / "model.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for module, arguments in commands(PAGE, data):
            smaller = SMALLER if arguments[0].startswith(str(data)) else ()
            importlib.import_module(module).main([*arguments, *smaller])
    return folder


def test_every_command_leaves_what_it_says(done: Path) -> None:
    fused, alone = (load_weights(done / "weights" / f"{name}.safetensors")[1] for name in ("cav-mae", "cav-mae-sound"))
    assert (fused.model.modalities, alone.model.modalities) == ("av", "audio")
    assert load_weights(done / "weights" / "mae-448.safetensors")[1].model.video.size == 448
    for path in ("out/vit-mae/config.json", "out/videomae/model.safetensors", "out/plain/config.json"):
        assert (done / path).is_file()
    pulled = sorted(path.name for path in (done / "weights" / "pulled").iterdir())
    assert pulled == ["README.md", "config.json", "config.yaml", "model.safetensors"]


def test_the_snippet_of_a_graph(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(done)
    names: dict[str, torch.Tensor] = {}
    exec(SNIPPETS[0].replace("1024, 128", "48, 32"), names)  # the page's own code, at the size of the small file
    assert names["pooled"].shape == (3, foreign.WIDTH)


def test_the_snippet_of_transformers(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers()
    monkeypatch.chdir(done)
    names: dict[str, torch.Tensor] = {}
    exec(SNIPPETS[1], names)
    assert names["features"].shape == (1, 2 * SMALL.encoder.width)


def test_no_snippet_is_left_out() -> None:
    assert len(SNIPPETS) == 2
