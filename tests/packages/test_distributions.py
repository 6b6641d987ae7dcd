"""The two distributions: one release, one licence, and an sdist of maekernels with its C++."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"


def project(folder: str) -> dict:
    return tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]


def test_they_are_of_one_release():
    ours, kernels = project("."), project("kernels")
    assert kernels["version"] == ours["version"]
    assert f"maekernels=={ours['version']}" in ours["dependencies"]
    assert kernels["requires-python"] == ours["requires-python"]
    from_source = (ROOT / "diffmavil" / "__init__.py").read_text()
    assert f'__version__ = "{ours["version"]}"' in from_source  # where nothing is installed


def test_maekernels_needs_torch_alone_in_the_same_range():
    (torch,) = project("kernels")["dependencies"]
    assert torch in project(".")["dependencies"]
    assert torch in tomllib.loads((ROOT / "kernels" / "pyproject.toml").read_text())["build-system"]["requires"]
    assert project("kernels")["optional-dependencies"]["gpu"] == project(".")["optional-dependencies"]["gpu"]


def test_both_have_the_licence():
    assert (ROOT / "kernels" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """What an sdist of maekernels unpacks to, made from a copy: setuptools writes beside its sources."""
    work = tmp_path_factory.mktemp("sdist")
    built = shutil.ignore_patterns("*.so", "build", "*.egg-info", "__pycache__")
    for folder in ("kernels", "csrc"):
        shutil.copytree(ROOT / folder, work / folder, ignore=built)
    made = subprocess.run(
        [sys.executable, "-c", BUILD, str(work / "out")],
        cwd=work / "kernels",
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    (archive,) = (work / "out").iterdir()
    with tarfile.open(archive) as tar:
        tar.extractall(work / "unpacked", filter="data")
    (folder,) = (work / "unpacked").iterdir()
    return folder


def test_the_sdist_holds_all_sources(sdist):
    for path in (ROOT / "csrc").rglob("*"):
        assert not path.is_file() or (sdist / path.relative_to(ROOT)).read_bytes() == path.read_bytes()
    for path in (ROOT / "kernels" / "maekernels").rglob("*.py"):
        assert (sdist / path.relative_to(ROOT / "kernels")).read_bytes() == path.read_bytes()
    assert (sdist / "maekernels" / "py.typed").exists()
    assert not list(sdist.rglob("*.so"))
    assert str(ROOT) not in (sdist / "maekernels.egg-info" / "SOURCES.txt").read_text()


def test_what_the_sdist_compiles_lies_in_it_and_what_is_left_out_is_told(sdist, monkeypatch):
    """Asked of its setup.py, without a compiler."""
    monkeypatch.setenv("MAEKERNELS_SKIP_CUDA", "1")
    code = (
        "import runpy, setuptools; "
        "setuptools.setup = lambda **found: print(*(s for ext in found['ext_modules'] for s in ext.sources)); "
        "runpy.run_path('setup.py')"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=sdist, capture_output=True, text=True, check=True)
    sources = [Path(source) for source in told.stdout.split()]
    assert {source.name for source in sources} == {path.name for path in (ROOT / "csrc" / "cpu").glob("*.cpp")}
    assert all(source.parent == sdist / "csrc" / "cpu" for source in sources)
    assert "maekernels: the native CUDA kernels are not built: MAEKERNELS_SKIP_CUDA is set" in told.stderr
