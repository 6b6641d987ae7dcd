"""Pictures of measured results: a roofline, and bars of speed-up and share of the limit.

    python benchmarks/plot.py benchmarks/results/kernels-cpu.jsonl --out benchmarks/results --case base-16-frames

Reads lines written by `benchmarks/kernels.py --json`; of several lines for the same thing the last one counts. Writes
`<name of the file>-roofline` and `<name of the file>-bars`. Row ops, which are not ours, stand in grey beside the copy.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:
    # Run by path: Python puts this folder first, where kernels.py would hide the package `kernels` of the Hub.
    here = Path(__file__).resolve().parent
    sys.path[:] = [p for p in sys.path if Path(p).resolve() != here]

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

Row = dict[str, Any]

PROVIDERS = {"eager": "#b0b0b0", "compiled": "#e69f00", "reference": "#56b4e9", "native": "#009e73", "ours": "#0072b2"}
MARKERS = {"eager": "x", "compiled": "s", "reference": "^", "native": "D", "ours": "o", "liger": "P", "quack": "*"}
ROW_OPS = "#c8c8c8"
OPS = {  # Okabe and Ito's palette: told apart by colour-blind readers too
    "random_mask": "#999999",
    "patchify": "#e69f00",
    "gather_tokens": "#56b4e9",
    "scatter_tokens": "#009e73",
    "add_noise": "#cc79a7",
    "diffuse_patches": "#d55e00",
    "masked_mse": "#0072b2",
    "info_nce": "#000000",
}


def read(path: Path) -> list[Row]:
    """The rows of a file, the last for each (device, op, case, mode, provider, batch)."""
    latest: dict[tuple[Any, ...], Row] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            latest[tuple(row[key] for key in ("device", "op", "case", "mode", "provider", "batch"))] = row
        except (json.JSONDecodeError, KeyError) as error:
            raise ValueError(f"{path}, line {number}: not a result of benchmarks/kernels.py ({error!r})") from None
    if not latest:
        raise ValueError(f"{path}: holds no results")
    return list(latest.values())


def training(rows: Sequence[Row], case: str) -> list[Row]:
    """What a training step does of each op: forward and backward where there is one, else forward."""
    rows = [row for row in rows if row["case"] == case]
    with_gradient = {row["op"] for row in rows if row["mode"] == "both"}
    return [row for row in rows if row["mode"] == ("both" if row["op"] in with_gradient else "fwd")]


def draw_roofline(rows: Sequence[Row]) -> Figure:
    """Left: FLOP/s over FLOPs per byte, under the limits. Right: bytes per second, for ops without arithmetic too."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5.2), width_ratios=(3, 2), layout="constrained")
    copy, matmul = rows[0]["copy_gbps"], rows[0]["matmul_gflops"]
    computing = [row for row in rows if row["flops"] and row["op"] in OPS]
    intensity = [row["flops"] / row["bytes"] for row in computing] or [1.0]
    low, high = min(*intensity, 0.1) / 2, max(*intensity, matmul / copy) * 4
    xs = [low, matmul / copy, high]
    left.plot(xs, [min(x * copy, matmul) for x in xs], color="black", linewidth=1.2)
    start = (low * 1.3, low * 1.3 * copy)
    left.annotate(f"copy {copy:,.0f} GB/s", start, (8, -2), textcoords="offset points", va="top", fontsize=8)
    left.annotate(f"matmul {matmul:,.0f} GFLOP/s", (high, matmul), va="bottom", ha="right", fontsize=8)
    for row in computing:
        _point(left, row, row["flops"] / row["bytes"], row["gflops"])
    left.set(xscale="log", yscale="log", xlabel="FLOPs per byte that must move", ylabel="GFLOP/s")
    right.axhline(copy, color="black", linewidth=1.2)
    right.annotate(f"copy {copy:,.0f} GB/s", (0.02, copy), xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
    for row in rows:
        _point(right, row, row["bytes"] / 2**20, row["gbps"])
    right.set(xscale="log", yscale="log", xlabel="MiB that must move", ylabel="GB/s")
    for axes in (left, right):
        axes.grid(alpha=0.3, which="major")
    ops, names = {row["op"] for row in rows}, {row["provider"] for row in rows}
    handles = [
        Line2D([], [], color=colour, marker="o", linestyle="", label=op) for op, colour in OPS.items() if op in ops
    ]
    if ops - OPS.keys():
        handles.append(Line2D([], [], color=ROW_OPS, marker="o", linestyle="", label="row ops, not ours"))
    handles += [
        Line2D([], [], color="grey", marker=mark, linestyle="", label=name)
        for name, mark in MARKERS.items()
        if name in names
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    figure.suptitle(_title(rows), fontsize=10)
    return figure


def _point(axes: Axes, row: Row, x: float, y: float) -> None:
    axes.plot(x, y, color=OPS.get(row["op"], ROW_OPS), marker=MARKERS[row["provider"]], markersize=6, linestyle="")


def draw_bars(rows: Sequence[Row]) -> Figure:
    """Above: times faster than eager code, with the 20th to 80th percentile. Below: share of the limit."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(11, 6.5), sharex=True, layout="constrained")
    ops = [op for op in OPS if any(row["op"] == op for row in rows)]
    names = [name for name in PROVIDERS if any(row["provider"] == name and row["op"] in OPS for row in rows)]
    by = {(row["op"], row["provider"]): row for row in rows}
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        found = [(x, by[op, name]) for x, op in enumerate(ops) if (op, name) in by]
        xs = [x + (i - (len(names) - 1) / 2) * width for x, _ in found]
        shares = below.bar(xs, [row["share_of_limit"] for _, row in found], width, color=PROVIDERS[name], label=name)
        below.bar_label(shares, fmt="{:.0%}", fontsize=7, padding=1)
        if name != "eager":
            _speedup_bars(
                above, name, width, [(x, row) for x, (_, row) in zip(xs, found, strict=True) if row["speedup"]]
            )
    above.axhline(1, color="black", linewidth=0.8)
    above.set(yscale="log", ylabel="times faster than eager")
    below.axhline(1, color="black", linewidth=0.8)
    below.set(ylabel="share of the measured limit")
    labels = [
        f"{op}\n{'fwd + bwd' if next(r for r in rows if r['op'] == op)['mode'] == 'both' else 'fwd'}" for op in ops
    ]
    below.set_xticks(range(len(ops)), labels, fontsize=8)
    above.margins(y=0.15)
    below.margins(y=0.15)
    figure.legend(*below.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(_title(rows), fontsize=10)
    return figure


def _speedup_bars(axes: Axes, name: str, width: float, found: Sequence[tuple[float, Row]]) -> None:
    """Bars from 1: up is faster than eager code, down is slower."""
    xs, speedups = [x for x, _ in found], [row["speedup"] for _, row in found]
    down = [row["speedup"] * (1 - row["median_ms"] / row["high_ms"]) for _, row in found]
    up = [row["speedup"] * (row["median_ms"] / row["low_ms"] - 1) for _, row in found]
    heights = [s - 1 for s in speedups]
    axes.bar(xs, heights, width, bottom=1, yerr=[down, up], color=PROVIDERS[name], ecolor="#555555")
    for x, speedup, error in zip(xs, speedups, up, strict=True):
        top = (x, max(1, speedup + error))
        axes.annotate(f"{speedup:.1f}", top, (0, 2), textcoords="offset points", ha="center", fontsize=7)


def _title(rows: Sequence[Row]) -> str:
    row = rows[0]
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    return f"{row['case']} ({row['dtype']}) on {row['device']}\n{versions}, commit {row['commit']}, {row['date'][:10]}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/plot.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", type=Path, help="lines of JSON from benchmarks/kernels.py")
    parser.add_argument("--out", type=Path, help="folder (default: that of the results)")
    parser.add_argument("--case", default="base-16-frames")
    parser.add_argument("--format", choices=("png", "svg"), default="png")
    args = parser.parse_args(argv)
    if not args.results.is_file():
        parser.error(f"{args.results}: no such file")
    try:
        rows = read(args.results)
    except ValueError as error:
        parser.error(str(error))
    chosen = training(rows, args.case)
    if not any(row["op"] in OPS for row in chosen):
        cases = sorted({row["case"] for row in rows if row["op"] in OPS})
        parser.error(f"--case {args.case}: {args.results} holds our ops for {cases}")
    out = args.out or args.results.parent
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in (("roofline", draw_roofline(chosen)), ("bars", draw_bars(chosen))):
        path = out / f"{args.results.stem}-{name}.{args.format}"
        figure.savefig(path, dpi=140)
        plt.close(figure)
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
