"""Reading files of weights: nothing in them is run, and what is wrong with one is said."""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffmavil.model.exchange.state import read_state

STATE = {"a": torch.arange(6.0).reshape(2, 3), "b.weight": torch.ones(4)}


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("nested", [False, True], ids=["flat", "model"])
def test_torch_files(tmp_path: Path, nested: bool, old: bool) -> None:
    whole = {"model": STATE, "epoch": 3, "args": argparse.Namespace(lr=0.1)} if nested else STATE
    torch.save(whole, tmp_path / "x.pth", _use_new_zipfile_serialization=not old)
    read = read_state(tmp_path / "x.pth")
    assert read.keys() == STATE.keys()
    assert all(torch.equal(read[name], value) for name, value in STATE.items())


def test_a_newer_pickle_that_torch_reads_is_read_without_a_word(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "x.pth", pickle_protocol=3)
    assert read_state(tmp_path / "x.pth").keys() == STATE.keys()  # a warning would be an error here


@pytest.mark.parametrize("whole", [STATE, {"extra": os.mkdir}], ids=["tensors", "code"])
def test_a_pickle_of_a_newer_protocol_is_not_called_damaged(tmp_path: Path, whole: dict[str, object]) -> None:
    torch.save(whole, tmp_path / "x.pth", pickle_protocol=4)
    with pytest.raises(ValueError, match="is a pickle of a newer protocol than torch reads without running code"):
        read_state(tmp_path / "x.pth")


def test_content_and_not_the_name_tells_safetensors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "x.pth")
    assert torch.equal(read_state(tmp_path / "x.pth")["a"], STATE["a"])


class _Code:
    """Unpickling it makes a folder."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.made),)


@pytest.mark.parametrize("kind", ["torch", "plain pickle"])
def test_code_is_not_run(tmp_path: Path, kind: str) -> None:
    path, made = tmp_path / "x.pth", tmp_path / "made"
    whole = {"model": STATE, "extra": _Code(made)}
    if kind == "torch":
        torch.save(whole, path)
    else:
        path.write_bytes(pickle.dumps({"extra": _Code(made)}, protocol=2))
    with pytest.raises(ValueError, match=r"init='.*x\.pth': holds more than tensors \((posix|nt)\.mkdir\)"):
        read_state(path)
    assert not made.exists()


def _cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "before torch 1.6"])
def test_a_truncated_file_is_damaged(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / "x"
    if kind == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "zip")
    _cut(path, share)
    with pytest.raises(ValueError, match=r"init='.*x': is damaged"):
        read_state(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (torch.zeros(3), "holds a Tensor; must be tensors by name"),
        ({"epoch": 3, "lr": 0.1}, r"holds no tensors by name, nor under 'model'; found: epoch \(int\), lr \(float\)"),
        ({}, "found: nothing"),
        ({"model": {"epoch": 3}}, r"found: epoch \(int\)"),
    ],
    ids=["tensor", "no tensors", "empty", "nested"],
)
def test_what_holds_no_weights_is_refused(tmp_path: Path, content: object, said: str) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=said):
        read_state(tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "pytorch_model-00002-of-00010.bin"])
def test_a_piece_of_a_model_is_refused(tmp_path: Path, name: str) -> None:
    save_file(STATE, tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name}': is one of several pieces of a model; .*give the folder"):
        read_state(tmp_path / name)


def test_the_only_piece_is_the_whole_model(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model-00001-of-00001.safetensors")
    assert read_state(tmp_path / "model-00001-of-00001.safetensors").keys() == STATE.keys()


def test_what_is_no_file_of_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_state(tmp_path / "missing.pth")
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        read_state(tmp_path)
    (tmp_path / "pointer").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="neither safetensors nor torch's: it begins with b'version https://"):
        read_state(tmp_path / "pointer")
