"""The rooms of the house: who may import whom, no circles, and commands alone at the top."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"maekernels": ROOT / "kernels", "diffmavil": ROOT, "benchmarks": ROOT, "recipes": ROOT}
COMMANDS = {
    "convert",
    "doctor",
    "evaluate",
    "extract",
    "finetune",
    "flops",
    "hub",
    "prepare",
    "report",
    "train",
}
BELOW = {
    "config": set(),
    "data": {"config"},
    "model": {"config"},
    "training": {"config", "data", "model"},
    "evaluation": {"config", "data", "model", "training"},
    "reporting": {"config", "data", "model", "training", "evaluation"},
}
"""The rooms of diffmavil, and those that each may import. Commands may import them all, and nobody a command."""


def name_of(file: Path, base: Path) -> str:
    return ".".join(file.relative_to(base).with_suffix("").parts).removesuffix(".__init__")


def modules() -> dict[str, Path]:
    """Name -> file, of every module of ours."""
    return {name_of(file, base): file for package, base in PACKAGES.items() for file in (base / package).rglob("*.py")}


def imported(code: str, module: str, package: bool = False) -> Iterator[str]:
    """Absolute names of all imports, also those inside functions, `from x import y` as x.y."""
    parts = module.split(".") if package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = parts[: len(parts) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


def imports() -> dict[str, set[str]]:
    """Module of ours -> modules of ours that it imports; from a package's name to its `__init__`."""
    known = modules()
    found = {}
    for module, file in known.items():
        names = imported(file.read_text(), module, package=file.name == "__init__.py")
        hits = (name if name in known else name.rpartition(".")[0] for name in names)
        found[module] = {hit for hit in hits if hit in known} - {module}
    return found


def room(module: str) -> str:
    """The room of a module of diffmavil; "" for a command, and for the package itself."""
    parts = module.split(".")
    return parts[1] if parts[0] == "diffmavil" and len(parts) > 1 and parts[1] in BELOW else ""


def test_packages_import_downwards_only():
    order = list(PACKAGES)
    wrong = [
        f"{module} imports {other}"
        for module, others in imports().items()
        for other in others
        if order.index(other.partition(".")[0]) > order.index(module.partition(".")[0])
    ]
    assert wrong == []


def test_rooms_import_downwards_only():
    wrong = [
        f"{module} imports {other}"
        for module, others in imports().items()
        for other in others
        if room(module) and room(other) not in BELOW[room(module)] | {room(module)} and other.startswith("diffmavil.")
    ]
    assert wrong == []


def test_no_module_of_diffmavil_imports_a_command():
    commands = {f"diffmavil.{name}" for name in COMMANDS}
    wrong = [
        f"{module} imports {other}"
        for module, others in imports().items()
        for other in others & commands
        if module.startswith("diffmavil")
    ]
    assert wrong == []


def test_no_circles():
    assert list(circles(imports())) == []


def circles(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    """What is left when modules that import nothing left, or that nothing left imports, go away again and again."""
    left = {module: set(others) for module, others in graph.items()}
    while left:
        wanted = {other for others in left.values() for other in others}
        free = [module for module, others in left.items() if module not in wanted or not others & left.keys()]
        if not free:
            yield sorted(left)
            return
        for module in free:
            del left[module]


def test_the_top_holds_commands_alone():
    top = {file.stem for file in (ROOT / "diffmavil").glob("*.py")}
    assert top == COMMANDS | {"__init__"}
    assert {folder.name for folder in (ROOT / "diffmavil").iterdir() if (folder / "__init__.py").exists()} == set(BELOW)
    for name in COMMANDS:
        code = (ROOT / "diffmavil" / f"{name}.py").read_text()
        assert 'if __name__ == "__main__":' in code, f"{name}.py cannot be run"
        assert f"python -m diffmavil.{name}" in code or f"-m diffmavil.{name}" in code, f"{name}.py does not say how"


@pytest.mark.parametrize(
    ("module", "package", "code", "name"),
    [
        ("diffmavil.model.x", False, "from ..data import loader", "diffmavil.data.loader"),
        ("diffmavil.model", True, "from . import mavil", "diffmavil.model.mavil"),
        ("diffmavil.model.x", False, "def f():\n    import diffmavil.data", "diffmavil.data"),
    ],
    ids=["relative", "in a package", "inside a function"],
)
def test_the_tests_above_are_not_blind(module, package, code, name):
    assert name in set(imported(code, module, package))


def test_a_circle_is_found():
    assert list(circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}})) == [["b", "c"]]


def test_maekernels_needs_torch_alone():
    never = {"numpy", "einops", "diffmavil", "benchmarks", "tests"}
    for module, file in modules().items():
        if module.startswith("maekernels"):
            tops = {name.partition(".")[0] for name in imported(file.read_text(), module)}
            assert not tops & never, f"{module} imports {tops & never}"


def test_folders_of_tests_can_be_named_together():
    """Nothing imports a `conftest`, of which there are several, and no two modules have one name."""
    files = [file for file in (ROOT / "tests").rglob("*.py") if file.name != "conftest.py"]
    named = [file.stem for file in files]
    assert sorted({name for name in named if named.count(name) > 1}) == []
    for file in files:
        assert not any(name.partition(".")[0] == "conftest" for name in imported(file.read_text(), file.stem)), file


def test_no_command_imports_what_takes_seconds_before_it_is_needed():
    code = f"import sys\nfrom diffmavil import {', '.join(sorted(COMMANDS))}\nprint('torchmetrics' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.split() == ["False"]
