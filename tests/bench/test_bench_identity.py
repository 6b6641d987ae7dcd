"""A line says of which code it is: the commit, whether files differ from it, and which compiled library was used."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks import identity
from maekernels import _native


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of one commit."""
    (tmp_path / "benchmarks").mkdir()
    for name in ("philox.cpp", "LOG.md"):
        (tmp_path / "benchmarks" / name).write_text("1")
    author = ("-c", "user.name=a", "-c", "user.email=a@b")
    for arguments in (("init", "-q"), ("add", "."), (*author, "commit", "-q", "-m", "one")):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    monkeypatch.setattr(identity, "ROOT", tmp_path)
    monkeypatch.delenv("BENCHMARK_COMMIT", raising=False)
    return tmp_path


def test_the_commit_is_told_where_git_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(identity, "ROOT", tmp_path)
    monkeypatch.delenv("BENCHMARK_COMMIT", raising=False)
    assert identity.commit() == "unknown"
    monkeypatch.setenv("BENCHMARK_COMMIT", "0123abc")
    assert identity.commit() == "0123abc"


@pytest.mark.parametrize(("changed", "dirty"), [("philox.cpp", True), ("new.cpp", True), ("LOG.md", False)])
def test_a_commit_is_dirty_when_measured_code_differs(checkout: Path, changed: str, dirty: bool):
    clean = identity.commit()
    assert len(clean) == 10
    (checkout / "benchmarks" / changed).write_text("2")
    assert identity.commit() == clean + ("-dirty" if dirty else "")


def test_the_native_library_that_is_used_is_told_by_its_bytes(monkeypatch: pytest.MonkeyPatch):
    found = identity.native()
    assert identity.identity(torch.device("cpu"))["native"] == found
    if not _native.ABSENT:
        from maekernels import _C  # pyright: ignore[reportAttributeAccessIssue]

        assert found.partition(",")[0] == hashlib.sha256(Path(_C.__file__).read_bytes()).hexdigest()[:12]


@pytest.mark.parametrize(
    ("files", "native"),
    [
        pytest.param({"_C": b"1"}, "6b86b273ff34", id="cpu"),
        pytest.param({"_C": b"1", "_C_cuda": b"2"}, "6b86b273ff34, cuda d4735e3a265e", id="both"),
        pytest.param({"_C_cuda": b"2"}, "none, cuda d4735e3a265e", id="cuda"),
        pytest.param({}, "none", id="none"),
    ],
)
def test_each_library_has_its_digits(
    files: dict[str, bytes], native: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def find_spec(name: str):
        library = name.removeprefix("maekernels.")
        if library not in files:
            return None
        path = tmp_path / f"{library}.abi3.so"
        path.write_bytes(files[library])
        return type("Spec", (), {"origin": str(path)})

    monkeypatch.setattr(_native, "ABSENT", "" if "_C" in files else "not built")
    monkeypatch.setattr(identity.importlib.util, "find_spec", find_spec)
    monkeypatch.delenv("MAEKERNELS_NATIVE", raising=False)
    assert identity.native.__wrapped__() == native
    monkeypatch.setattr(_native, "ABSENT", "switched off")
    monkeypatch.setenv("MAEKERNELS_NATIVE", "0")
    assert identity.native.__wrapped__() == "none"
