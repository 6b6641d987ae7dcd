"""Who imports whom, and what an import costs."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_python(code: str, **environment: str) -> str:
    env = os.environ | {"PYTHONPATH": str(ROOT / "kernels")} | environment
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd="/", check=False)
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_import_maekernels_alone():
    code = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *args):
        hidden = name.partition(".")[0] in ("triton", "diffmavil", "numpy", "einops")
        return None if hidden else self.finder.find_spec(name, *args)
sys.meta_path[:] = map(Without, sys.meta_path)
import maekernels, torch
assert not torch.cuda.is_initialized()
ids = maekernels.random_mask(2, 8, 2, seed=0).ids_keep
patches = maekernels.patchify(torch.zeros(2, 8, 4), ids, (2, 2), [0.0], [1.0])
print(tuple(patches.shape), [name for name in sys.modules if name in ("triton", "diffmavil")])
"""
    assert run_python(code, PYTHONWARNINGS="ignore").strip() == "(2, 2, 4) []"


def test_import_maekernels_leaves_an_installed_triton_alone():
    pytest.importorskip("triton")
    assert run_python("import sys, maekernels; print('triton' in sys.modules)").strip() == "False"


def test_no_package_named_kernels_is_shadowed():
    """Hugging Face publishes one."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "tests" / "kernels").exists()


def modules_of(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported(file: Path) -> Iterator[str]:
    """Absolute names of all imports, also those inside functions."""
    base = "kernels" if file.is_relative_to(ROOT / "kernels") else "."
    package = file.relative_to(ROOT / base).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(
    ("folder", "never"),
    [
        ("kernels/maekernels", ("diffmavil", "benchmarks", "tests", "numpy", "einops")),
        ("diffmavil", ("benchmarks", "tests")),
        ("diffmavil/data", ("diffmavil.model", "diffmavil.step", "diffmavil.train", "maekernels.random_mask")),
        ("diffmavil/model", ("diffmavil.data", "diffmavil.step", "diffmavil.train")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_import_directions(folder, never):
    files = modules_of(folder)
    assert files
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        for name in imported(file)
        if any(name == other or name.startswith(other + ".") for other in never)
    ]
    assert wrong == []


def test_relative_imports_are_resolved(tmp_path):
    """The test above must not be blind to `from ..data import x`."""
    assert "diffmavil.data.loader" in set(imported_from("from ..data import loader", "diffmavil/model/x.py"))
    assert "diffmavil.data" in set(imported_from("import diffmavil.data", "diffmavil/model/x.py"))


def imported_from(code: str, where: str) -> Iterator[str]:
    class Source(type(Path())):
        def read_text(self, *_: object, **__: object) -> str:
            return code

    return imported(Source(ROOT / where))
