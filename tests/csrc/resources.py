"""Compile csrc/cuda for GPUs that are not there, and hold each kernel to its budget: `python tests/csrc/resources.py`.

nvcc compiles every .cu against the headers of the installed torch, as the extension is built, and its assembler says
what each kernel needs. Exit status 1 when a kernel spills, is over its budget in `budgets.toml`, or has none, or a
budget has no kernel; 2 without nvcc.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "csrc" / "cuda"
ARCHS = ("80", "90a", "100")
FLAGS = ("-std=c++20", "-O3", "-DTORCH_TARGET_VERSION=0x020b000000000000", "-DTORCH_STABLE_ONLY")


@dataclass(frozen=True)
class Usage:
    """What the assembler reports of one kernel; stack and spills in bytes of a thread, shared in bytes of a block."""

    kernel: str
    arch: str
    registers: int
    stack: int
    spills: int
    shared: int


@dataclass(frozen=True)
class Budget:
    """A kernel's line in budgets.toml."""

    registers: int
    shared: int


def find_nvcc() -> str | None:
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    return shutil.which("nvcc", path=os.pathsep.join([*(f"{home}/bin" for home in homes), os.environ.get("PATH", "")]))


def include_flags() -> list[str]:
    """torch's headers, whose warnings are not ours to mend."""
    return ["-isystem", str(Path(torch.__file__).parent / "include")]


def assemble(nvcc: str, source: Path, arch: str) -> str:
    """The assembler's report of all kernels of a file."""
    command = [nvcc, *FLAGS, *include_flags(), f"-arch=sm_{arch}", "-cubin", "-Xptxas", "-v", "-o", os.devnull]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{source.name} does not compile for sm_{arch}:\n{done.stdout}{done.stderr}")
    return demangle(done.stdout + done.stderr)


def demangle(text: str) -> str:
    """Names as in the source, with c++filt of the binutils that every host compiler of nvcc comes with."""
    return subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True).stdout


_ENTRY = re.compile(r"Compiling entry function '(?P<name>.+)' for 'sm_(?P<arch>\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def read(report: str) -> list[Usage]:
    """The kernels of a demangled report."""
    found = []
    entries = list(_ENTRY.finditer(report))
    for entry, end in zip(entries, [*(e.start() for e in entries[1:]), len(report)], strict=True):
        text = report[entry.end() : end]
        stack, used, shared = _STACK.search(text), _USED.search(text), _SHARED.search(text)
        if stack is None or used is None:
            raise ValueError(f"the assembler's report has changed its form:\n{text}")
        found.append(
            Usage(
                kernel=short(entry["name"]),
                arch=entry["arch"],
                registers=int(used[1]),
                stack=int(stack[1]),
                spills=int(stack[2]) + int(stack[3]),
                shared=int(shared[1]) if shared else 0,
            )
        )
    return found


def short(name: str) -> str:
    """`kernel<Shape<unsigned int, 256>>` of a demangled function: no namespaces, arguments or suffixes of numbers."""
    name = name.replace("(anonymous namespace)", "").removeprefix("void ")
    name = name[: name.rindex("(")]
    return re.sub(r"(\w+)?::", "", re.sub(r"\b(\d+)u\b", r"\1", name)).replace("> >", ">>")


def read_budgets(path: Path) -> dict[str, Budget]:
    return {name: Budget(**keys) for name, keys in tomllib.loads(path.read_text()).items()}


def judge(usages: Iterable[Usage], budgets: Mapping[str, Budget]) -> list[str]:
    """Every fault: of kernels, of missing and superfluous budgets."""
    faults, seen = [], set()
    for usage in usages:
        seen.add(usage.kernel)
        where = f"{usage.kernel}, sm_{usage.arch}"
        if usage.stack or usage.spills:
            faults.append(f"{where}: {usage.stack} bytes of stack, {usage.spills} bytes of spills")
        if (budget := budgets.get(usage.kernel)) is None:
            faults.append(f"{where}: no budget")
            continue
        for what in ("registers", "shared"):
            if getattr(usage, what) > getattr(budget, what):
                faults.append(f"{where}: {what} {getattr(usage, what)} > {getattr(budget, what)}")
    return faults + [f"{name}: a budget without a kernel" for name in sorted(budgets.keys() - seen)]


def table(usages: Iterable[Usage]) -> str:
    rows: list[tuple[str, ...]] = [("kernel", "arch", "registers", "stack", "spills", "shared")]
    for u in sorted(usages, key=lambda u: (u.kernel, int(u.arch.rstrip("a")))):
        rows.append((u.kernel, f"sm_{u.arch}", *(str(n) for n in (u.registers, u.stack, u.spills, u.shared))))
    sizes = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(c.ljust(s) if i < 2 else c.rjust(s) for i, (c, s) in enumerate(zip(row, sizes, strict=True)))
        for row in rows
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--arch", nargs="+", choices=ARCHS, default=list(ARCHS))
    args = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        print("no nvcc in PATH, CUDA_HOME or CUDA_PATH: nothing compiled", file=sys.stderr)
        return 2
    sources = sorted(SOURCES.glob("*.cu"))
    usages = [usage for source in sources for arch in args.arch for usage in read(assemble(nvcc, source, arch))]
    faults = judge(usages, read_budgets(HERE / "budgets.toml"))
    print(table(usages))
    print(f"\n{len(usages)} kernels, {len(faults)} faults")
    for fault in faults:
        print(f"  {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
