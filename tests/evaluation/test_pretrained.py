"""What weights can be called: a run, a checkpoint, a file, a folder, a name on the hub; and what is said otherwise."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import diffmavil
from diffmavil.config import Config
from diffmavil.evaluation.features import untrained_model
from diffmavil.evaluation.pretrained import find_weights, fingerprint, open_model
from diffmavil.model.weights import export_weights, load_weights
from tests.runs import very_small


@pytest.fixture(scope="module")
def run(train: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps, with checkpoints of steps 4 and 8."""
    folder = tmp_path_factory.mktemp("run") / "mine"
    train(folder, "--train.checkpoint-every", "4")
    return folder


def test_an_untrained_twin_runs_here_whatever_kernels_the_run_was_forced_to(tmp_path: Path):
    config = very_small(tmp_path)
    forced = replace(config.model, attention="flash", norm="apex")
    twin, plain = (untrained_model(model, seed=3) for model in (forced, config.model))
    for name, value in twin.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name])
    video = torch.zeros(1, config.model.video.frames, config.model.video.size, config.model.video.size, 3)
    assert twin.features(video, torch.zeros(1, 64, 32)).fused.isfinite().all()


def test_a_run_is_its_exported_weights(run: Path):
    assert find_weights(run) == find_weights(str(run / "model.safetensors")) == run / "model.safetensors"
    model = diffmavil.load(run, device="cpu")
    expected, _ = load_weights(run / "model.safetensors")
    for name, value in model.model.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name])


def test_of_a_run_under_way_the_newest_whole_checkpoint_is_taken(run: Path, tmp_path: Path):
    begun = tmp_path / "begun"
    shutil.copytree(run, begun)
    exported = begun / "model.safetensors"
    exported.unlink()
    newest = begun / "checkpoints" / "step-00000008"
    assert find_weights(begun) == newest
    model, config = open_model(newest)
    expected, same = load_weights(run / "model.safetensors")
    assert config == same
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name])
    assert fingerprint(newest) != fingerprint(begun / "checkpoints" / "step-00000004")
    (newest / "state.json").write_text("damaged")
    assert find_weights(begun).name == "step-00000004"
    with pytest.raises(ValueError, match=r"step-00000008: the checkpoint is damaged: state\.json has 7 bytes"):
        find_weights(newest)
    (begun / "checkpoints" / "step-00000004" / "state.json").unlink()
    with pytest.raises(ValueError, match="no checkpoint is whole"):
        diffmavil.load(begun)


def test_a_fingerprint_is_what_sha256sum_says(tmp_path: Path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert fingerprint(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("nowhere/to/be/found", "no such file or folder; weights are a run's folder"),
        ("empty", r"holds neither model\.safetensors nor checkpoints"),
        ("text.safetensors", "cannot be read as exported weights"),
        ("other.safetensors", "holds no config"),
        ("truncated.safetensors", "cannot be read as exported weights"),
    ],
)
def test_what_is_no_weights(config: Config, tmp_path: Path, what: str, why: str):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.safetensors").write_text("no weights")
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    export_weights(untrained_model(config.model, 0), config, tmp_path / "whole.safetensors")
    (tmp_path / "truncated.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-100])
    with pytest.raises(ValueError, match=why) as told:
        diffmavil.load(tmp_path / what)
    assert what in str(told.value)


def test_weights_that_are_not_those_of_their_config(config: Config, tmp_path: Path):
    deeper = replace(config, model=replace(config.model, fusion_depth=5))
    export_weights(untrained_model(config.model, 0), deeper, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="its weights are not those of its config"):
        diffmavil.load(tmp_path)


class Hub(ModuleType):
    """In place of huggingface_hub: `HfApi().snapshot_download` by its documented arguments, from a folder."""

    def __init__(self, store: Path) -> None:
        super().__init__("huggingface_hub")
        self.__spec__ = ModuleSpec("huggingface_hub", None)
        self.store = store
        self.asked: list[tuple[str, str | None]] = []

    def HfApi(self) -> Hub:
        return self

    def snapshot_download(
        self, repo_id: str, *, revision: str | None, local_dir: Path | None, allow_patterns: list[str]
    ) -> str:
        assert any(fnmatch("model.safetensors", pattern) for pattern in allow_patterns)
        assert local_dir is None
        self.asked.append((repo_id, revision))
        if not (self.store / repo_id).is_dir():
            raise OSError("We couldn't connect to the Hub\nand more lines")
        return str(self.store / repo_id)


def test_a_name_on_the_hub(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hub = Hub(tmp_path / "store")
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store" / "us" / "base").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"us/base': is on the Hub, but holds no model\.safetensors"):
        diffmavil.load("us/base")
    export_weights(untrained_model(config.model, 0), config, tmp_path / "store" / "us" / "base" / "model.safetensors")
    assert diffmavil.load("us/base", revision="v1", device="cpu").modalities == "av"
    assert hub.asked[-1] == ("us/base", "v1")
    with pytest.raises(ValueError, match="us/other': no such file or folder, and from the Hub: OSError: We could"):
        diffmavil.load("us/other")
    here = tmp_path / "us" / "base"
    shutil.copytree(tmp_path / "store" / "us" / "base", here)
    assert find_weights("us/base") == Path("us/base/model.safetensors"), "what is here comes first"
    with pytest.raises(ValueError, match="revision='v1': must be left out for us/base, which is here"):
        diffmavil.load("us/base", revision="v1")


def test_without_the_hub_s_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"us/base': no such file or folder; .* pip install 'diffmavil\[hub\]'"):
        diffmavil.load("us/base")


def test_the_real_package_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    constants = import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"us/base': no such file or folder, and from the Hub: ."):
        diffmavil.load("us/base")
