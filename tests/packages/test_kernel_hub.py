"""The repository for the kernel Hub: the Hub's rules, and that what is loaded from it computes what the package does.

Tests with Hugging Face's package `kernels` are skipped where it is not installed; `make test-hub` installs it, and then
(DIFFMAVIL_REQUIRE=kernels) nothing may be skipped.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import maekernels
from maekernels import layers

ROOT = Path(__file__).parents[2]
MAKE = ROOT / "kernels" / "hub" / "make.py"
# Compiling and torch's own checks take long, and tell nothing of how a package was loaded.
OPS = ["random_mask", "patchify", "gather_tokens", "scatter_tokens", "add_noise", "diffuse_patches", "masked_mse"]
QUICK = "not compile and not opcheck and not gradcheck and not export"
PATCH, MEAN, STD = (4, 4), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def load(name: str, file: Path):
    """A module from a file, under a name: how the Hub's loader does it."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


make = load("hub_make", MAKE)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "maekernels"
    command = [sys.executable, str(MAKE), str(folder), "--repository", "someone/maekernels"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told == f"{folder}: torch-cpu, torch-cuda\n"
    return folder


@pytest.fixture(scope="module")
def hub():
    """Hugging Face's package. Without it, `kernels` is this repository's folder of that name."""
    try:
        package = importlib.import_module("kernels")
        package.get_local_kernel  # noqa: B018
    except (ImportError, AttributeError):
        if os.environ.get("DIFFMAVIL_REQUIRE") == "kernels":
            raise
        pytest.skip("Hugging Face's package kernels is not installed: make test-hub installs it")
    return package


def pixels() -> torch.Tensor:
    return torch.randint(256, (3, 16, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def step(ops) -> list[torch.Tensor]:
    """Masks, patches, loss and gradient, noise, contrast."""
    keep, masked = ops.random_mask(3, 24, 7, seed=5)
    visible = ops.patchify(pixels(), keep, PATCH, MEAN, STD)
    pred = ops.scatter_tokens(visible, keep, 24, fill=0.5).requires_grad_()
    loss = ops.masked_mse(ops.gather_tokens(pred, masked), pixels(), masked, PATCH, MEAN, STD)
    noisy = ops.add_noise(visible, torch.tensor([0.1, 0.5, 0.9]), seed=3)
    contrast = ops.info_nce(visible.mean(1), noisy.mean(1), 0.1)
    return [keep, masked, visible, loss, *torch.autograd.grad(loss, [pred]), noisy, contrast]


def test_the_layout_of_the_hub(repository):
    source = {path.name for path in (repository / "torch-ext" / "maekernels").iterdir()}
    for backend in ("cpu", "cuda"):
        variant = repository / "build" / f"torch-{backend}"
        assert {path.name for path in variant.iterdir()} == source | {"_ops.py", "metadata.json"}
        told = json.loads((variant / "metadata.json").read_text())
        assert re.fullmatch(rf"_maekernels_{backend}_[0-9a-f]{{7}}", told["id"])
        assert told["backend"] == {"type": backend}
        assert set(told["digest"]["files"]) == source | {"_ops.py"}
        assert f'"{told["id"]}"' in (variant / "_ops.py").read_text()
    card = (repository / "CARD.md").read_text()
    assert 'get_kernel("someone/maekernels"' in card
    assert "`masked_mse`, `patchify`, `random_mask`" in card
    assert "`MaskedMSE`, `RestoreTokens`, `VisiblePatches`" in card


def test_all_names_but_attention_are_there(repository):
    module = ast.parse((repository / "torch-ext" / "maekernels" / "__init__.py").read_text())
    names = ast.literal_eval(module.body[-1].value)  # type: ignore[attr-defined]
    assert set(names) == set(maekernels.__all__) - {"Segments", "attention"} | {"layers"}


def test_what_the_loader_imports_computes_the_same_beside_the_package(repository):
    variant = repository / "build" / "torch-cuda"  # a namespace that no other test here loads; it serves a CPU as well
    name = json.loads((variant / "metadata.json").read_text())["id"]
    loaded = load(name, variant / "__init__.py")
    for got, want in zip(step(loaded), step(maekernels), strict=True):
        torch.testing.assert_close(got, want)
    assert str(getattr(torch.ops, name).masked_mse) == f"{name}.masked_mse"


def test_layers_obey_the_hub():
    for name in layers.__all__:
        layer = getattr(layers, name)
        own = {key for key in vars(layer) if not key.startswith("__")}
        assert own == {"forward", "has_backward", "can_torch_compile"}
        assert layer.__init__ is torch.nn.Module.__init__


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import numpy", r"imports \['numpy'\]: must be the standard library"),
        ("from maekernels.x import y", r"imports \['maekernels'\]"),
        ("op = 'maekernels::patchify'", "line 1 names the ops 'maekernels::patchify'"),
        ("library('maekernels')", "line 1 names the ops 'maekernels'"),
    ],
    ids=["foreign import", "absolute import", "name of an op", "namespace"],
)
def test_rules_are_held(code, message):
    with pytest.raises(ValueError, match=message):
        make.complain("x.py", code)


def test_newer_syntax_than_the_hubs_is_refused():
    with pytest.raises(SyntaxError):
        make.complain("x.py", "match x:\n    case 1: pass")


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(SystemExit):
        make.main([str(tmp_path)])
    assert (tmp_path / "mine").exists()


def test_get_local_kernel(hub, repository):
    loaded = hub.get_local_kernel(repository)
    assert Path(loaded.__file__).parent == repository / "build" / "torch-cpu"
    for got, want in zip(step(loaded), step(maekernels), strict=True):
        torch.testing.assert_close(got, want)


def test_the_hubs_own_checks_of_its_files(hub, repository):
    rust = importlib.import_module("kernels._rust")
    assert [str(backend) for backend in rust.Build.open(repository).general.backends] == ["cpu", "cuda"]
    for variant in (repository / "build").iterdir():
        told = rust.Metadata.read_from_file(variant / "metadata.json")
        told.digest.validate(rust.Digest.hash_variant(told.digest.algorithm, variant))


def test_the_snippet_of_the_page(hub, repository):
    page = (ROOT / "docs" / "packages.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert '"dist/hub"' in code
    names: dict = {}
    exec(code.replace('"dist/hub"', repr(str(repository))), names)
    assert names["keep"].shape == (2, 314)


def test_local_kernels_stand_in_for_the_hub(hub, repository):
    code = "from kernels import get_kernel; print(get_kernel('someone/maekernels', version=0).__file__)"
    env = os.environ | {"LOCAL_KERNELS": f"someone/maekernels={repository}"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False, cwd="/")
    assert found.stdout.strip() == str(repository / "build" / "torch-cpu" / "__init__.py"), found.stderr


def test_kernelize_puts_a_layer_into_a_model(hub, repository):
    @hub.use_kernel_forward_from_hub("MaskedMSE")
    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.mean, self.std, self.norm_pix = PATCH, MEAN, STD, True

        def forward(self, pred, x, ids):
            raise AssertionError("the layer of the Hub was to run")

    layer = hub.LocalLayerRepository(repository, layer_name="MaskedMSE")
    with hub.use_kernel_mapping({"MaskedMSE": {"cpu": layer}}):
        model = hub.kernelize(Loss(), mode=hub.Mode.TRAINING, device="cpu")
    pred, ids = torch.zeros(3, 17, 48), maekernels.random_mask(3, 24, 7, seed=5).ids_mask
    want = maekernels.masked_mse(pred, pixels(), ids, PATCH, MEAN, STD)
    torch.testing.assert_close(model(pred, pixels(), ids), want)


def test_the_repositorys_own_tests_pass(hub, repository):
    run_pytest("tests/test_maekernels.py", cwd=repository)


def test_the_tests_of_the_ops_pass_through_it(hub, repository):
    files = [f"tests/ops/test_{op}.py" for op in OPS]
    told = run_pytest("-p", "tests.packages.through_hub", *files, "-k", QUICK, cwd=ROOT, MAEKERNELS_HUB=str(repository))
    assert f"maekernels is _maekernels_cpu_{'.' * 7} of {repository}" in re.sub(r"(cpu_)\w{7}", r"\1.......", told)
    passed = re.search(r"(\d+) passed", told)
    assert passed, told
    assert int(passed[1]) > 300, told


def run_pytest(*arguments: str, cwd: Path, **environment: str) -> str:
    """What a pytest of its own prints. It must pass, and skip nothing."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    env = os.environ | environment
    found = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, check=False)
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-1000:]
    assert " skipped" not in found.stdout
    return found.stdout
