"""`python -m diffmavil.convert`: what it writes, what it says, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from diffmavil.config import Config, FinetuneConfig, HeadConfig, TeacherConfig
from diffmavil.config.errors import UsageError
from diffmavil.convert import main
from diffmavil.model import DiffMAViL
from diffmavil.model.classifier import Classifier
from diffmavil.model.exchange.folder import config_json
from diffmavil.model.weights import export_weights, load_weights
from tests.model import foreign
from tests.model import image_mae_files as mae
from tests.model.small import SMALL
from tests.model.test_transformers_files import PICTURE

FLAGS = ("--heads", "3", "--trained-size", "32", "--mels", "32")


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    torch.save({"model": foreign.mavil(), "epoch": 3}, tmp_path / "mavil.pth")
    return tmp_path / "mavil.pth"


def exported(tmp_path: Path, config: Config) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "ours.safetensors"
    export_weights(DiffMAViL(config.model), config, path)
    return path


def test_others_weights_become_a_file_that_commands_take(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = theirs.with_name("ours.safetensors")
    main([str(theirs), str(out), *FLAGS])
    model, config = load_weights(out)
    assert config.model.fusion_depth == 2
    assert torch.equal(model.fusion.blocks[1].attn.proj.bias, foreign.mavil()["blocks_av.1.attn.proj.bias"])  # type: ignore[union-attr]
    said = capsys.readouterr().out
    assert "MAViL, as av-superb's inference code names it" in said
    assert "\x1b" not in said  # nothing of a terminal's
    for line in ("fusion.blocks.0 to 1", "its position added", "left over (of what was read): nothing"):
        assert line in said
    assert "statistics of the sound: mean -4.2677393" in said
    assert f"written: {out}" in said
    with safe_open(out, "pt") as file:
        assert file.metadata()["converted_from"] == str(theirs)


def test_a_folder_beside_a_config(tmp_path: Path) -> None:
    config = Config(model=replace(SMALL, audio=replace(SMALL.audio, mean=-4.0, std=3.0)))
    main([str(exported(tmp_path, config)), str(tmp_path / "plain"), "--to", "safetensors"])
    told = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert (told["model_type"], told["architectures"]) == ("diffmavil", ["DiffMAViLModel"])
    assert told["settings"]["audio"]["mean"] == -4.0
    model, read = load_weights(tmp_path / "plain" / "model.safetensors")
    assert read == config
    before, _ = load_weights(tmp_path / "ours.safetensors")
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in model.state_dict().items())


def test_to_transformers_and_back_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = exported(tmp_path, Config(model=PICTURE))
    main([str(weights), str(tmp_path / "vit"), "--to", "transformers"])
    assert "to transformers' ViTMAE" in capsys.readouterr().out
    main([str(tmp_path / "vit"), str(tmp_path / "back"), "--size", "32"])
    ours, back = (load_weights(path)[0].state_dict() for path in (weights, tmp_path / "back" / "model.safetensors"))
    assert ours.keys() == back.keys()
    assert all(torch.equal(value, back[name]) for name, value in ours.items())


def test_of_a_student_no_decoder_goes_to_others_and_everything_to_ours(tmp_path: Path) -> None:
    """It predicts a teacher's features, where ViTMAE's predicts pixels."""
    student = Config(model=replace(PICTURE, target_width=72), teacher=TeacherConfig(stage=2, source="ema"))
    weights = exported(tmp_path, student)
    main([str(weights), str(tmp_path / "vit"), "--to", "transformers"])
    assert json.loads((tmp_path / "vit" / "config.json").read_text())["architectures"] == ["ViTMAEModel"]
    main([str(weights), str(tmp_path / "plain"), "--to", "safetensors"])
    settings = json.loads((tmp_path / "plain" / "config.json").read_text())["settings"]
    assert settings["target_width"] == 72
    assert load_weights(tmp_path / "plain" / "model.safetensors")[1] == student
    assert "target_width" not in config_json(Config(model=PICTURE))["settings"]


def test_others_to_others_in_one_go(tmp_path: Path) -> None:
    torch.save(mae.random_state(), tmp_path / "mae.pth")
    main([str(tmp_path / "mae.pth"), str(tmp_path / "vit"), "--to", "transformers", "--heads", "3"])
    told = json.loads((tmp_path / "vit" / "config.json").read_text())
    assert (told["model_type"], told["image_size"], told["num_attention_heads"]) == ("vit_mae", 32, 3)
    assert told["architectures"] == ["ViTMAEModel"]  # the file has parts of a decoder alone


def test_others_to_ours_and_on_to_others_is_the_same(tmp_path: Path) -> None:
    """A decoder that began at random when it became ours is not passed on as one that was trained."""
    torch.save(mae.random_state(), tmp_path / "mae.pth")
    main([str(tmp_path / "mae.pth"), str(tmp_path / "ours.safetensors"), "--heads", "3"])
    main([str(tmp_path / "ours.safetensors"), str(tmp_path / "vit"), "--to", "transformers"])
    assert json.loads((tmp_path / "vit" / "config.json").read_text())["architectures"] == ["ViTMAEModel"]


class _Code:
    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.made),)


def _text(path: Path) -> None:
    path.write_text("no weights\n")


def _cut(path: Path) -> None:
    torch.save(foreign.mavil(), path)
    path.write_bytes(path.read_bytes()[:5000])


def _cut_safetensors(path: Path) -> None:
    save_file(foreign.mavil(), path)
    path.write_bytes(path.read_bytes()[:5000])


def _code(path: Path) -> None:
    torch.save({"model": foreign.mavil(), "extra": _Code(path.with_name("made"))}, path)


def _plain_code(path: Path) -> None:
    path.write_bytes(pickle.dumps(_Code(path.with_name("made")), protocol=2))


def _resnet(path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(1000)}, path)


def _odd_positions(path: Path) -> None:
    torch.save(mae.random_state() | {"pos_embed": torch.zeros(1, 12, 48)}, path)


def _odd_shape(path: Path) -> None:
    torch.save(foreign.mavil() | {"blocks_av.1.mlp.fc1.weight": torch.zeros(3, 3)}, path)


def _not_finite(path: Path) -> None:
    torch.save(foreign.mavil() | {"blocks.1.mlp.fc1.bias": torch.full((96,), torch.nan)}, path)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (_text, "is damaged, or neither safetensors nor torch's: it begins with b'no weights"),
        (_cut, "is damaged, or neither"),
        (_cut_safetensors, "is damaged: "),
        (_code, r"holds more than tensors \((posix|nt)\.mkdir\): code in a file is never run"),
        (_plain_code, r"holds more than tensors \((posix|nt)\.mkdir\): code in a file is never run"),
        (_resnet, r"is none of MAE, .*; found: conv1.weight \[64, 3, 7, 7\], fc.bias \[1000\]"),
        (_odd_positions, "pos_embed has 11 positions, which do not fill a square of patches"),
        (_odd_shape, r"blocks_av.1.mlp.fc1.weight is \[3, 3\]; must be \[96, 48\] beside the other parts"),
        (_not_finite, "blocks.1.mlp.fc1.bias is not finite"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path: Path, write: Callable[[Path], None], said: str) -> None:
    write(tmp_path / "theirs.pth")
    with pytest.raises(UsageError, match=rf"^IN='.*theirs\.pth': {said}"):
        main([str(tmp_path / "theirs.pth"), str(tmp_path / "out"), *FLAGS])
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["{theirs}x", "{out}"], "no such file or folder"),
        (["{folder}", "{out}"], r"a folder with none of model.safetensors, pytorch_model.bin; found: mavil.pth"),
        (["{ours}", "{out}"], "--to=None: must be given: IN holds weights of ours already"),
        (["{ours}", "{out}", "--to", "safetensors", "--heads", "3"], "must be others' weights for flags but --to"),
        (["{ours}", "{out}.safetensors", "--to", "safetensors"], "OUT=.*must be a folder with --to safetensors"),
        (["{ours}", "{out}", "--to", "transformers"], "ViTMAE needs model.video.frames=1 and a tubelet of 1; VideoMAE"),
        (
            ["{tuned}", "{out}", "--to", "transformers"],
            "--to='transformers': must be another: a fine-tuned model becomes torch-export, onnx or safetensors",
        ),
    ],
    ids=["missing", "folder", "no --to", "flags", "file", "does not fit", "classifier"],
)
def test_impossible_wishes_are_told(theirs: Path, argv: list[str], said: str) -> None:
    folder = theirs.parent
    places: dict[str, Any] = {"theirs": theirs, "out": folder / "out", "folder": folder}
    if "{ours}" in argv:
        places["ours"] = exported(folder, Config(model=SMALL))
    if "{tuned}" in argv:
        places["tuned"] = folder / "tuned.safetensors"
        config = FinetuneConfig(model=SMALL, head=HeadConfig(classes=("a", "b"), labels="one"))
        export_weights(Classifier(SMALL, config.head), config, places["tuned"])
    with pytest.raises(UsageError, match=said):
        main([word.format(**places) for word in argv])
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["--heads", "0"], "--heads=0: must be positive"), (["--std", "2"], "--mean, --std=(None, 2.0): must be given")],
    ids=["heads", "std"],
)
def test_impossible_values_are_told(
    theirs: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(theirs), str(theirs.with_name("out")), *flags])
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_name_on_the_hub_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find: Any = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "huggingface_hub" else find(name))
    with pytest.raises(UsageError, match=r"^'someone/some-mae': no such file or folder; its names on the Hub need"):
        main(["someone/some-mae", str(tmp_path / "out")])


def test_a_missing_file_is_not_sought_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"IN='models/mae.pth': no such file or folder"):
        main(["models/mae.pth", str(tmp_path / "out")])


def test_a_piece_of_a_model_is_refused(tmp_path: Path) -> None:
    save_file(mae.random_state(), tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(
        UsageError, match=r"^IN='.*-of-00002\.safetensors': is one of several pieces of a model; must be"
    ):
        main([str(tmp_path / "model-00001-of-00002.safetensors"), str(tmp_path / "out"), *FLAGS])
    assert not (tmp_path / "out").exists()


def test_mistakes_end_with_code_2_and_no_traceback(tmp_path: Path, environment: dict[str, str]) -> None:
    _code(tmp_path / "theirs.pth")
    command = [sys.executable, "-m", "diffmavil.convert", str(tmp_path / "theirs.pth"), str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: IN=")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["", "model.safetensors", "best.safetensors"])
def test_a_run_is_not_overwritten(theirs: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UsageError, match="must be another folder: this one holds a run"):
        main([str(theirs), str(tmp_path / "run" / name), *FLAGS])
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoints"]
    main([str(theirs), str(tmp_path / "run" / "others.safetensors"), *FLAGS])
