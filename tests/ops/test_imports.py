"""What an import of the ops costs, and what it needs."""

from __future__ import annotations

import os
import subprocess
import sys
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
