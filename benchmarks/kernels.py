"""Speed of each op of maekernels against eager code, its compiled reference and the limit of the device.

    python benchmarks/kernels.py                                    # every op and case on this machine
    python benchmarks/kernels.py --op masked_mse --case tiny --mode both
    python benchmarks/kernels.py --device cuda --compile --case base-16-frames --json results.jsonl
    python benchmarks/kernels.py --device cuda --op softmax --op rms_norm     # Liger's and quack's, for their bandwidth

A provider whose result is wrong is reported, not timed, and the exit code is 1. `README.md` in this folder explains how
the numbers are measured and how to read them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    # Run by path: Python puts this folder first in sys.path, where this file would shadow the Hub's package `kernels`.
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), str(here.parent / "kernels"), *(p for p in sys.path if Path(p).resolve() != here)]

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.bench import MODES, OPS, Bench, Row
from benchmarks.cases import CASES
from benchmarks.identity import identity
from benchmarks.measure import make_clock, measure_limits
from benchmarks.row_ops import ROW_OPS, find_packages

LATE = "*"
"""Marks the median of a row that is `late`."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/kernels.py", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--op", action="append", choices=OPS, help="repeat for several; default all")
    add("--case", action="append", choices=CASES, help="repeat for several; default all")
    add(
        "--mode",
        action="append",
        choices=MODES,
        help="forward without gradients, backward alone, or both one after the other; repeat for several; default all",
    )
    add("--compile", action="store_true", help="also torch.compile of the reference (seconds for each op and case)")
    add("--json", type=Path, metavar="FILE", help="append one line of JSON for each row")
    add("--batch", type=int, metavar="B", help="samples at once, instead of the case's own number")
    add("--threads", type=int, default=1, help="on a CPU (default 1)")
    add("--seconds", type=float, default=0.5, help="of measuring for each op, case and mode (default 0.5)")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here; --device cpu measures the references")
    for name, least in (("batch", 1), ("threads", 1), ("seconds", 0)):
        given = getattr(args, name)
        if given is not None and given < least:
            parser.error(f"--{name} {given}: must be at least {least}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    console = Console()
    if not console.is_terminal:
        console = Console(width=152)
    device, ops = torch.device(args.device), args.op or list(OPS)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    packages = list(find_packages(device, dtype)) if ROW_OPS.keys() & set(ops) else []
    clock = make_clock(device, args.threads)
    limits = measure_limits(device, clock)
    bench = Bench(
        device=device,
        dtype=dtype,
        clock=clock,
        limits=limits,
        identity=identity(device),
        load=os.getloadavg()[0],
        seconds=args.seconds,
        compiled=args.compile,
        report=lambda words: console.print(words, style="bold red"),
        packages=packages,
    )
    console.print(heading(bench), highlight=False)
    for op in ops:
        rows: list[Row] = []
        for name in args.case or CASES:
            for row in bench.rows(op, CASES[name], args.mode or MODES, args.batch):
                rows.append(row)
                if args.json:
                    write(args.json, row)
        if rows:
            console.print(table(op, rows))
    if clock.late:
        console.print(
            f"{clock.late} readings are too long: the host launched more slowly than the device worked; {LATE}: such a "
            f"reading is among the row's, or the copy's beside it"
        )
    return 1 if bench.wrong else 0


def heading(bench: Bench) -> str:
    of, limits = bench.identity, bench.limits
    versions = ", ".join(f"{name} {version}" for name, version in of["versions"].items())
    philox = "" if limits.philox_gblocks is None else f", Philox {limits.philox_gblocks:,.3g}e9 blocks/s"
    load = f", load {bench.load:.1f} on {os.cpu_count()} cores" if bench.device.type == "cpu" else ""
    others = [package.title for package in bench.packages if package.kernels]
    return "\n".join(
        [
            f"{of['device']}; commit {of['commit']}; {versions}{load}",
            f"limits measured now: copy {limits.copy_gbps:,.1f} GB/s, "
            f"matmul {limits.matmul_gflops:,.0f} GFLOP/s in {limits.matmul_dtype}{philox}",
            *([f"row ops of other packages: {', '.join(others)}"] if others else []),
            *(line for package in bench.packages for line in package.missing),
        ]
    )


def write(path: Path, row: Row) -> None:
    """Append immediately, so that an interrupted run keeps what it has measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}
    with path.open("a") as file:
        file.write(json.dumps(rounded) + "\n")


def table(op: str, rows: Sequence[Row]) -> Table:
    shown = Table(title=f"{op} ({rows[0]['dtype']})", title_justify="left")
    for name in ("case", "batch", "mode", "provider"):
        shown.add_column(name, no_wrap=True)
    measured = ("median ms", "20-80 %", "GB/s", "GFLOP/s", "of\nlimit", "of\ncopy", "of equal\ncopy", "speed-up")
    for name in (*measured, "peak\nMiB"):
        shown.add_column(name, justify="right", no_wrap=True)
    last: tuple[str, str] | None = None
    for row in rows:
        group = (row["case"], row["mode"])
        if last is not None and group != last:
            shown.add_section()
        last = group
        shown.add_row(
            row["case"],
            str(row["batch"]),
            row["mode"],
            row["package"] or row["provider"],
            f"{row['median_ms']:.3f}{LATE if row['late'] else ''}",
            f"{row['low_ms']:.3f}-{row['high_ms']:.3f}",
            f"{row['gbps']:.2f}",
            f"{row['gflops']:.2f}",
            f"{row['share_of_limit']:.0%}",
            f"{row['share_of_copy']:.0%}",
            f"{row['share_of_equal_copy']:.0%}",
            "" if row["speedup"] is None else f"{row['speedup']:.2f}x",
            "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}",
        )
    return shown


if __name__ == "__main__":
    sys.exit(main())
