"""Write maekernels as a repository for Hugging Face's kernel Hub: `python kernels/hub/make.py FOLDER`.

The Hub loads many versions of a kernel into one process. So the package is rewritten from its own sources: imports are
relative, and the ops are named through `_ops.py`, whose namespace is of this version alone. `build/` holds what
`kernels.get_local_kernel` and `get_kernel` load, `torch-ext/` and `build.toml` the same for kernel-builder.

Left out are attention, whose kernels are torch's and xformers', what serves those who install by pip, and the C++: on a
CPU the ops run on torch.
"""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import json
import re
import shutil
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent / "maekernels"
LEFT_OUT = {"__init__", "__main__", "_environment", "_selfcheck", "attention"}
BACKENDS = ("cpu", "cuda")
VERSION = 0
"""Of the interface, on the Hub: by its convention 0 may still change."""
ALLOWED_IMPORTS = {"torch", "triton"} | sys.stdlib_module_names
PYTHON = (3, 9)
"""The oldest Python whose syntax the Hub asks for."""

OPS = '''"""The namespace of this version's ops."""

import torch

_NAME = "{name}"
ops = getattr(torch.ops, _NAME)


def add_op_namespace_prefix(op_name: str) -> str:
    return f"{{_NAME}}::{{op_name}}"
'''


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("folder", type=Path, help="written anew")
    parser.add_argument("--repository", default="your-name/maekernels", help="its name on the Hub, for the card")
    given = parser.parse_args(arguments)
    if given.folder.exists() and not (given.folder / "build.toml").exists():
        parser.error(f"folder={given.folder}: must be new or a kernel repository, which has a build.toml")
    make(given.folder, given.repository)
    print(f"{given.folder}: {', '.join(f'torch-{backend}' for backend in BACKENDS)}")
    return 0


def make(folder: Path, repository: str) -> None:
    """Write the repository, in place of one that may be there."""
    sources = package()
    version = hashlib.sha256("".join(f"{name}\n{text}" for name, text in sorted(sources.items())).encode()).hexdigest()[
        :7
    ]
    shutil.rmtree(folder, ignore_errors=True)
    write(folder / "torch-ext" / "maekernels", sources)
    for backend in BACKENDS:
        name = f"_maekernels_{backend}_{version}"
        files = sources | {"_ops.py": OPS.format(name=name)}
        write(folder / "build" / f"torch-{backend}", files | {"metadata.json": metadata(name, backend, files)})
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    backends = ", ".join(f'"{backend}"' for backend in BACKENDS)
    general = f'name = "maekernels"\nversion = {VERSION}\nlicense = "{project["license"]}"\nbackends = [{backends}]'
    hub = f'[general.hub]\nrepo-id = "{repository}"'
    write(
        folder,
        {"build.toml": f"[general]\n{general}\n\n{hub}\n\n[torch-noarch]\n", "CARD.md": card(sources, repository)},
    )
    shutil.copy(HERE.parent / "LICENSE", folder)
    (folder / "tests").mkdir()
    shutil.copy(HERE / "test_maekernels.py", folder / "tests")


def package() -> dict[str, str]:
    """File name -> text, of the package but `_ops.py`."""
    files = {path.name: rewritten(path.read_text()) for path in PACKAGE.glob("*.py") if path.stem not in LEFT_OUT}
    files["__init__.py"] = surface((PACKAGE / "__init__.py").read_text())
    for name, text in files.items():
        complain(name, text)
    return files


def rewritten(code: str) -> str:
    """A module with relative imports, whose ops are in the namespace of `_ops`."""
    code = re.sub(
        r"^(\s*)from maekernels(\.\w+)? import", lambda m: f"{m[1]}from {m[2] or '.'} import", code, flags=re.M
    )
    wanted = ["add_op_namespace_prefix"] if "custom_op(" in code else []
    wanted += ["ops"] if "torch.ops.maekernels." in code else []
    code = re.sub(r'custom_op\("maekernels::(\w+)"', r'custom_op(add_op_namespace_prefix("\1")', code)
    code = code.replace('Library("maekernels", ', 'Library(add_op_namespace_prefix("").rstrip(":"), ')
    code = code.replace("torch.ops.maekernels.", "ops.")
    if wanted:
        code = re.sub(r"^from \.", f"from ._ops import {', '.join(wanted)}\nfrom .", code, count=1, flags=re.M)
    return code


def surface(code: str) -> str:
    """The package's `__init__`, without what is left out and with the layers."""
    tree = ast.parse(code)
    lines, names = [f'"""{ast.get_docstring(tree)}"""\n', "from . import layers"], ["layers"]
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").rpartition(".")[2] not in LEFT_OUT:
            found = [alias.name for alias in node.names]
            lines.append(f"from .{(node.module or '').rpartition('.')[2]} import {', '.join(found)}")
            names += found
    return "\n".join([*lines, "", "__all__ = [", *(f'    "{name}",' for name in sorted(names)), "]", ""])


def complain(name: str, code: str) -> None:
    """Raise `ValueError` where a file breaks a rule of the Hub."""
    for node in ast.walk(ast.parse(code, feature_version=PYTHON)):
        found = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found = [node.module or ""]
        foreign = {module.partition(".")[0] for module in found} - ALLOWED_IMPORTS
        if foreign:
            raise ValueError(
                f"{name} imports {sorted(foreign)}: must be the standard library, torch, triton or relative"
            )
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.match(r"maekernels(::|$)", node.value):
            raise ValueError(f"{name} line {node.lineno} names the ops {node.value!r}: must be through _ops.py")


def metadata(name: str, backend: str, files: dict[str, str]) -> str:
    """metadata.json of a variant: `name` is its module and the namespace of its ops."""
    digests = {file: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for file, text in files.items()}
    told = {
        "id": name,
        "name": "maekernels",
        "version": VERSION,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {"algorithm": "sha256", "files": dict(sorted(digests.items()))},
    }
    return json.dumps(told, indent=2) + "\n"


def card(sources: dict[str, str], repository: str) -> str:
    """CARD.md, with the names that there are."""

    def exported(file: str) -> list[str]:
        last = ast.parse(sources[file]).body[-1]
        assert isinstance(last, ast.Assign)
        return ast.literal_eval(last.value)

    functions = ", ".join(f"`{name}`" for name in exported("__init__.py") if name.islower() and name != "layers")
    layers = ", ".join(f"`{name}`" for name in exported("layers.py"))
    text = (HERE / "CARD.md").read_text()
    return text.replace("REPOSITORY", repository).replace("FUNCTIONS", functions).replace("LAYERS", layers)


def write(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    sys.exit(main())
