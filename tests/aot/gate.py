"""Compile every kernel for GPUs that are not there, and hold it to its budget: `python tests/aot/gate.py`.

The launchers of maekernels run as on a GPU, on meta tensors and under a driver that records launches instead of making
them. Triton so compiles what a GPU would run: the same specialisation on divisibility and constants, the same warps.
From each binary the gate reads registers, stack, shared memory and the width of every access to global memory, and
compares with `budgets.toml`, which explains its keys. Exit status 1 when a kernel is over its budget, a kernel has no
budget or no case, or a budget has no kernel.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

HERE = Path(__file__).parent
# Binaries name the source file that they were compiled from: those that another checkout left in Triton's cache lead to
# its files, which the gate would not find.
knobs.cache.dir = str(HERE.parents[1] / "build" / f"triton-{hashlib.sha256(str(HERE).encode()).hexdigest()[:8]}")
SHARED_LIMIT = {80: 166_912, 90: 232_448, 100: 232_448}
"""Bytes of shared memory that one block may have, by architecture: A100, H100/H200, B200."""
MAX_GRID = (2**31 - 1, 65_535, 65_535)


@dataclass(frozen=True)
class Case:
    """One call of a launcher of `op`; `name` says with what."""

    op: str
    name: str
    launch: Callable[[], object]


@dataclass(frozen=True)
class Binary:
    """What the machine code of one compiled kernel needs and does."""

    kernel: str
    arch: int
    warps: int
    registers: int
    stack: int
    shared: int
    loads: Counter[tuple[int, str]]
    """Instructions that load from global memory, by (bits, source line)."""
    stores: Counter[tuple[int, str]]
    spills: int
    """Loads and stores of local memory."""


@dataclass(frozen=True)
class Budget:
    """A kernel's table in budgets.toml."""

    registers: int
    stack: int = 0
    shared: int = 0
    load: int = 0
    store: int = 0
    narrow_loads: Mapping[str, int] = field(default_factory=dict)
    narrow_stores: Mapping[str, int] = field(default_factory=dict)
    narrow_cases: Sequence[str] = ()
    more_registers: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Report:
    """Every distinct binary with the cases that launch it, and what was wrong before any budget."""

    binaries: dict[str, tuple[Binary, list[str]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def merge(self, other: Report) -> None:
        for key, (binary, cases) in other.binaries.items():
            self.binaries.setdefault(key, (binary, []))[1].extend(cases)
        self.problems += other.problems


# Compiling


class RecordingDriver:
    """What Triton asks of a GPU's driver, answered without a GPU. Launches are noted in `report`."""

    def __init__(self, arch: int) -> None:
        self.arch = arch
        self.case = ""
        self.report = Report()
        self.utils = SimpleNamespace(get_device_properties=self._properties, load_binary=self._load)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        """Triton keeps compiled kernels by device: one device for each architecture."""
        return self.arch

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        return partial(self._launch, metadata)

    def _properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_LIMIT[self.arch]}

    def _load(self, name: str, cubin: bytes, shared: int, device: int) -> tuple[None, bytes, int, int, int]:
        """(module, function, registers, spills, most threads of a block); the function is handed to the launch."""
        return None, cubin, 0, 0, 1024

    def _launch(self, metadata: Any, x: int, y: int, z: int, stream: int, cubin: bytes, *rest: Any) -> None:
        if any(size > most for size, most in zip((x, y, z), MAX_GRID, strict=True)):
            self.report.problems.append(f"{metadata.name}, {self.case}: CUDA refuses the grid {(x, y, z)}")
        # The same code under another case or triton's cache key is the same binary.
        key = f"{metadata.name} {self.arch} {metadata.num_warps} {hashlib.sha256(cubin).hexdigest()}"
        if key not in self.report.binaries:
            binary = read_binary(cubin, metadata.name, self.arch, metadata.num_warps, metadata.shared)
            self.report.binaries[key] = binary, []
        cases = self.report.binaries[key][1]
        if self.case not in cases:
            cases.append(self.case)


def compile_cases(cases: Iterable[Case], arch: int) -> Report:
    """Run the launchers for one architecture. An exception in one of them is a problem, not the end."""
    recording = RecordingDriver(arch)
    driver.set_active(recording)  # pyright: ignore[reportArgumentType]
    for case in cases:
        recording.case = case.name
        try:
            case.launch()
        except Exception as error:
            recording.report.problems.append(f"{case.name}, sm_{arch}: {type(error).__name__}: {error}")
    return recording.report


# Reading machine code

_ACCESS = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(LDGSTS|LDG|STG|LDL|STL)\b((?:\.\w+)*)")
_LINE = re.compile(r'^\s*//## File "([^"]+)", line (\d+)')
_WIDTHS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128, "256": 256}


def read_binary(cubin: bytes, kernel: str, arch: int, warps: int, shared: int) -> Binary:
    """Disassemble with the tools that Triton ships."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        code = _tool("nvdisasm", "-g", "-c", file.name)
    needs = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", usage)}
    accesses: dict[str, Counter[tuple[int, str]]] = defaultdict(Counter)
    line = ""
    for text in code.splitlines():
        if place := _LINE.match(text):
            line = f"{place[1]}:{place[2]}"
        elif access := _ACCESS.match(text):
            width = next((_WIDTHS[part] for part in access[2].split(".") if part in _WIDTHS), 32)
            accesses[access[1]][width, line] += 1
    return Binary(
        kernel=kernel,
        arch=arch,
        warps=warps,
        registers=needs["REG"],
        stack=needs["STACK"] + needs["LOCAL"],
        shared=max(shared, needs["SHARED"]),
        loads=accesses["LDG"] + accesses["LDGSTS"],
        stores=accesses["STG"],
        spills=(accesses["LDL"] + accesses["STL"]).total(),
    )


def _tool(name: str, *args: str) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *args], check=True, capture_output=True, text=True).stdout


# Budgets


def read_budgets(path: Path, version: str = triton.__version__) -> dict[str, Budget]:
    """One table for each kernel, and in it one for what `version` of Triton needs instead; unknown keys are errors."""
    major, minor = version_of(version)
    budgets = {}
    for name, table in tomllib.loads(path.read_text()).items():
        instead = {key: table.pop(key) for key in list(table) if re.fullmatch(r"triton-\d+_\d+", key)}
        budgets[name] = Budget(**{**table, **instead.get(f"triton-{major}_{minor}", {})})
    return budgets


def over_budget(binary: Binary, budget: Budget, cases: Sequence[str] = ("",)) -> list[str]:
    """What is wrong with the binary of these cases, in words."""
    faults = []
    registers = min(
        max([budget.registers, *(most for part, most in budget.more_registers.items() if part in case)])
        for case in cases
    )
    for what, most in (("registers", registers), ("shared", budget.shared)):
        if getattr(binary, what) > most:
            faults.append(f"{what} {getattr(binary, what)} > {most}")
    if binary.stack > budget.stack or (binary.spills and not budget.stack):
        faults.append(f"spills: {binary.stack} bytes of stack, {binary.spills} accesses to it")
    if not all(any(part in case for part in budget.narrow_cases) for case in cases):
        faults += _narrow("load", binary.loads, budget.load, budget.narrow_loads)
        faults += _narrow("store", binary.stores, budget.store, budget.narrow_stores)
    return faults


def _narrow(what: str, accesses: Counter[tuple[int, str]], width: int, excepted: Mapping[str, int]) -> list[str]:
    """Accesses narrower than `width`, or than the width of the excepted name in their source line."""
    faults = []
    for (bits, line), count in sorted(accesses.items()):
        text = " | ".join(_source(line, above).strip() for above in reversed(range(_lines_told_below(bits) + 1)))
        least = min((w for name, w in excepted.items() if re.search(rf"\b{name}\b", text)), default=width)
        if bits < least:
            faults.append(f"{count} {what}s of {bits} < {least} bits at {_short(line)}: {text}")
    return faults


def _lines_told_below(bits: int) -> int:
    """How far below its own source line an access may be told to be. Triton 3.9 counts the lines of its inline assembly
    as if they were the source's, and a load there has a line for each register before it."""
    return max(1, bits // 32) if version_of(triton.__version__) >= (3, 9) else 0


def version_of(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _source(line: str, above: int = 0) -> str:
    """The source line of `path:number`, or one so many lines above it."""
    path, _, number = line.rpartition(":")
    lines = _lines(path)
    return lines[int(number) - 1 - above] if lines and number and int(number) > above else ""


@cache
def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []


def _short(line: str) -> str:
    return line.rpartition("/")[2]


def judge(report: Report, budgets: dict[str, Budget], kernels: Iterable[str] = ()) -> list[str]:
    """Every fault: of the launches, of binaries, of missing and superfluous budgets, of `kernels` never launched."""
    faults = list(report.problems)
    launched = {binary.kernel for binary, _ in report.binaries.values()}
    faults += [f"{name}: no case launches it" for name in sorted(set(kernels) - launched)]
    faults += [f"{name}: no budget" for name in sorted(launched - budgets.keys())]
    faults += [f"{name}: a budget without a kernel" for name in sorted(budgets.keys() - launched)]
    alike: dict[str, list[str]] = defaultdict(list)
    for binary, cases in report.binaries.values():
        if binary.kernel in budgets:
            for fault in over_budget(binary, budgets[binary.kernel], cases):
                alike[f"{binary.kernel}: {fault}"].append(f"sm_{binary.arch}, {cases[0]}")
    for fault, where in alike.items():
        faults.append(f"{fault} ({where[0]}{f'; {len(where) - 1} more' if len(where) > 1 else ''})")
    return faults


def kernels_of(package: str) -> set[str]:
    """The kernels of a package: functions named `*_kernel` that are, or will be, `triton.jit`."""
    root = importlib.import_module(package)
    modules = [importlib.import_module(f"{package}.{info.name}") for info in pkgutil.iter_modules(root.__path__)]
    return {
        name
        for module in modules
        for name, value in vars(module).items()
        if name.endswith("_kernel") and hasattr(value, "__getitem__")
    }


# The table


def table(report: Report) -> str:
    """One row for each kernel and architecture: the worst of its binaries."""
    groups: dict[tuple[str, int], list[Binary]] = defaultdict(list)
    for binary, _ in report.binaries.values():
        groups[binary.kernel, binary.arch].append(binary)
    head = ("kernel", "arch", "binaries", "warps", "regs", "stack", "smem", "LDG bits x count", "STG bits x count")
    rows: list[tuple[str, ...]] = [head]
    for (kernel, arch), group in sorted(groups.items()):
        worst = {what: max(getattr(b, what) for b in group) for what in ("registers", "stack", "shared")}
        warps = ",".join(map(str, sorted({binary.warps for binary in group})))
        numbers = (len(group), warps, worst["registers"], worst["stack"], worst["shared"])
        access = (_widths([b.loads for b in group]), _widths([b.stores for b in group]))
        rows.append((kernel, f"sm_{arch}", *map(str, numbers), *access))
    sizes = [max(len(row[column]) for row in rows) for column in range(len(head))]
    left = {0, 1, len(head) - 2, len(head) - 1}
    lines = []
    for row in rows:
        cells = zip(row, sizes, strict=True)
        lines.append("  ".join(c.ljust(s) if i in left else c.rjust(s) for i, (c, s) in enumerate(cells)).rstrip())
    return "\n".join(lines)


def _widths(groups: list[Counter[tuple[int, str]]]) -> str:
    """'128x8 32x1': the most instructions of each width in any binary."""
    most: dict[int, int] = defaultdict(int)
    for accesses in groups:
        for width in {width for width, _ in accesses}:
            most[width] = max(most[width], sum(n for (w, _), n in accesses.items() if w == width))
    return " ".join(f"{width}x{most[width]}" for width in sorted(most, reverse=True)) or "-"


# The tool


def compile_maekernels(arch: int, part: int = 0, parts: int = 1) -> Report:
    """The cases of maekernels for one architecture; or of every `parts`-th op, whose cases share binaries."""
    from cases import all_cases

    cases = list(all_cases())
    ops = list(dict.fromkeys(case.op for case in cases))
    return compile_cases([case for case in cases if ops.index(case.op) % parts == part], arch)


def compile_everything(archs: Iterable[int], jobs: int) -> Report:
    """All cases of maekernels for all architectures, in `jobs` processes."""
    report = Report()
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        tasks = [pool.submit(compile_maekernels, arch, part, jobs) for arch in archs for part in range(jobs)]
        for task in tasks:
            report.merge(task.result())
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--arch", type=int, nargs="+", choices=SHARED_LIMIT, default=list(SHARED_LIMIT))
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes that compile")
    args = parser.parse_args()
    report = compile_everything(args.arch, args.jobs)
    faults = judge(report, read_budgets(HERE / "budgets.toml"), kernels_of("maekernels"))
    print(table(report))
    print(f"\ntriton {triton.__version__}: {len(report.binaries)} binaries, {len(faults)} faults")
    for fault in faults:
        print(f"  {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.path += [str(HERE.parents[1] / "kernels"), str(HERE.parents[1])]  # run from source, nothing installed
    sys.exit(main())
