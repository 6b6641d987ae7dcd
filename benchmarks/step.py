"""One full training step, technique by technique: the FLOPs and time that each saves.

    python benchmarks/step.py --device cpu                      # tiny models, a few minutes
    python benchmarks/step.py --device cuda --json results.jsonl --plot results.png

A step is forward, backward, clipping and AdamW, with the clips on the device. Each row adds to the one before, from
MAViL as AudioMAE implements it to DiffMAViL's fastest preset. Curriculum rows are the mean over the masking schedule,
with equal weight for each of its samples. `README.md` in this folder explains how the numbers are measured and how to
read them.
"""

from __future__ import annotations

import argparse
import functools
import gc
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if not __package__:
    # Run by path: Python puts this folder first in sys.path, where kernels.py would shadow the Hub's package `kernels`.
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), str(here.parent / "kernels"), *(p for p in sys.path if Path(p).resolve() != here)]

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.identity import identity
from benchmarks.kernels import write
from benchmarks.measure import Call, StepClock, Timing, interleave, make_clock
from benchmarks.techniques import MAVIL, Bench, Part, Row, peer_rows, rows
from diffmavil.config.presets import PRESETS, SIZES
from diffmavil.model.flops import meta_model, mixed_flops
from diffmavil.training.memory import keep_freed_memory
from diffmavil.training.optim import make_optimizers
from diffmavil.training.precision import use_bf16

KEYS = ("row", "gflop_per_clip", "ms_per_clip", "clips_per_s", "tflops", "mfu", "peak_mib")
"""The keys of every row, in this order; device, commit, versions, date and those needed to interpret them follow."""
FORWARDS = 3


def step_calls(bench: Bench, row: Row) -> list[Call]:
    """Forward, backward, clipping and update for one batch of each part."""
    passes = row.make(row)
    (optimizer,) = _optimizers(bench, row)

    def call(part: Part) -> None:
        passes(part)
        nn.utils.clip_grad_norm_(row.parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return [functools.partial(call, part) for part in row.parts]


def _optimizers(bench: Bench, row: Row) -> list[torch.optim.Optimizer]:
    held = nn.ParameterList(row.parameters)
    return make_optimizers(held, replace(bench.config.optim, lr=1e-6))


def matmul_tflops(bench: Bench) -> float:
    """Rate of a square matrix product in the dtype of the step, from the fastest fifth of the readings."""
    n = 8192 if bench.device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=bench.device).to(bench.dtype) for _ in range(2))
    out = torch.empty_like(a)
    timing = interleave(bench.clock, {"matmul": [lambda: torch.matmul(a, b, out=out)]}, seconds=1.0, least=10)["matmul"]
    return 2 * n**3 / timing.low_ms * 1e-9


def measure(
    bench: Bench,
    found: Sequence[Row],
    flops: Sequence[float | None],
    seconds: float,
    known: Callable[[dict[str, Any]], None] = lambda result: None,
) -> list[dict[str, Any]]:
    """Time every shape of every row: in turns on a CPU, row after row on a GPU, whose memory cannot hold two.

    known: called with each row as soon as it is known, so that an interrupted run keeps what it has.
    """
    rate = matmul_tflops(bench)
    pairs = list(zip(found, flops, strict=True))
    groups = [[pair] for pair in pairs] if bench.device.type == "cuda" else [pairs]
    results: list[dict[str, Any]] = []
    for group in groups:
        peaks: dict[str, float | None] = {}
        timings = _time(bench, [row for row, _ in group], seconds * len(group) / len(found), peaks)
        for row, counted in group:
            _let_go(row)
            results.append(_result(bench, row, timings, peaks, counted, rate))
            known(results[-1])
    return results


def _time(bench: Bench, group: Sequence[Row], seconds: float, peaks: dict[str, float | None]) -> dict[str, Timing]:
    """Timings of every part of the rows, by name and number; their peak memory goes to `peaks`."""
    calls: dict[str, Sequence[Call]] = {}
    for row in group:
        for i, (call, peak) in enumerate(_fitting(bench, row)):
            calls[f"{row.name}#{i}"], peaks[f"{row.name}#{i}"] = [call], peak
    return interleave(bench.clock, calls, seconds, least=7, most=40)


def _fitting(bench: Bench, row: Row) -> list[tuple[Call, float | None]]:
    """The calls of a row and their peak memory, with its batches halved until they fit in device memory."""
    while True:
        try:
            return [(call, bench.clock.peak_mib(call, recorded=row.graphed)) for call in step_calls(bench, row)]
        except torch.OutOfMemoryError:
            if max(part.batch for part in row.parts) == 1:
                raise
        row.parts = [replace(part, batch=max(1, part.batch // 2)) for part in row.parts]
        _let_go(row)


def _let_go(row: Row) -> None:
    """Free the memory of the row's model for the next one."""
    row.parameters = []
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _result(
    bench: Bench,
    row: Row,
    timings: dict[str, Timing],
    peaks: dict[str, float | None],
    known: float | None,
    rate: float,
) -> dict[str, Any]:
    mine = [timings[f"{row.name}#{i}"] for i in range(len(row.parts))]

    def per_clip(reading: Callable[[Timing], float]) -> float:
        return sum(part.share * reading(t) / part.batch for part, t in zip(row.parts, mine, strict=True))

    costs = [known or mixed_flops(meta_model(row.model), part.keep_video, part.keep_audio) for part in row.parts]
    gflop = sum(part.share * cost for part, cost in zip(row.parts, costs, strict=True)) * 1e-9
    ms = per_clip(lambda t: t.median_ms)
    tflops = FORWARDS * gflop / ms
    memory = [peaks[f"{row.name}#{i}"] for i in range(len(row.parts))]
    measured = [peak for peak in memory if peak is not None]
    numbers = (row.name, gflop, ms, 1e3 / ms, tflops, tflops / rate, max(measured, default=None))
    return (
        dict(zip(KEYS, numbers, strict=True))
        | identity(bench.device)
        | {
            "low_ms": per_clip(lambda t: t.low_ms),
            "high_ms": per_clip(lambda t: t.high_ms),
            "readings": min(t.readings for t in mine),
            "batch": [part.batch for part in row.parts],
            "dtype": str(bench.dtype).removeprefix("torch."),
            "views": row.model.views,
            "frames": row.model.video.frames,
            "matmul_tflops": rate,
            "load": os.getloadavg()[0],
        }
    )


def show(results: Sequence[dict[str, Any]], heading: str) -> Table:
    table = Table(title=heading, title_justify="left")
    for name in ("row", "GFLOP", "ms", "clips/s", "TFLOP/s", "MFU", "peak MiB", "time", "of MAViL"):
        table.add_column(name, justify="left" if name == "row" else "right", no_wrap=True)
    base = results[0]["ms_per_clip"]
    mavil = next((r["ms_per_clip"] for r in results if r["row"] == MAVIL), base)
    for r in results:
        peak = "" if r["peak_mib"] is None else f"{r['peak_mib']:,.0f}"
        table.add_row(
            r["row"],
            f"{r['gflop_per_clip']:.2f}",
            f"{r['ms_per_clip']:.2f}",
            f"{r['clips_per_s']:.1f}",
            f"{r['tflops']:.3g}",
            f"{r['mfu']:.1%}",
            peak,
            f"x {r['ms_per_clip'] / base:.2f}",
            f"x {r['ms_per_clip'] / mavil:.2f}",
        )
    return table


def plot(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Bars: milliseconds and FLOPs of a clip relative to the first row."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 0.42 * len(results) + 1.2), layout="constrained")
    places = range(len(results))
    for shift, key, words in ((-0.2, "ms_per_clip", "time"), (0.2, "gflop_per_clip", "FLOPs")):
        values = [r[key] / results[0][key] for r in results]
        bars = axes.barh([p + shift for p in places], values, 0.38, label=words)
        axes.bar_label(bars, [f"{v:.2f}" for v in values], padding=2, fontsize=7)
    axes.set_yticks(list(places), [r["row"] for r in results])
    axes.invert_yaxis()
    axes.set_xlabel("of one clip, relative to the first row")
    axes.set_title(f"{results[0]['device']}, {results[0]['dtype']}, {results[0]['date'][:10]}", fontsize=9)
    axes.legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/step.py", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--size", choices=SIZES, help="default: tiny on a CPU, base on a GPU")
    add("--views", type=int, choices=(1, 2), default=2)
    add("--frames", type=int, help="default: 8")
    add("--batch", type=int, help="clips of a step (default: 32 for tiny, 4 for others on a CPU, 64 on a GPU)")
    add("--levels", type=int, help="of the curriculum (default: 2 on a CPU, 8 on a GPU)")
    add("--threads", type=int, default=2, help="on a CPU (default 2)")
    add("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    add("--compile", action="store_true", help="a row with compiled blocks, and the rows after it too")
    add("--cuda-graph", action="store_true", help="a row replayed as CUDA graphs, and the rows after it too")
    add("--no-peers", action="store_true", help="leave out the models of transformers")
    add("--seconds", type=float, default=60.0, help="of measuring, about (default 60)")
    add("--json", type=Path, metavar="FILE", help="append one line of JSON for each row")
    add("--plot", type=Path, metavar="FILE", help="draw the table there (png or svg)")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here; --device cpu measures smaller models")
    if args.cuda_graph and args.device == "cpu":
        parser.error("--cuda-graph: needs --device cuda")
    for name, least in (("batch", 1), ("levels", 1), ("threads", 1), ("seconds", 0), ("frames", 2)):
        given = getattr(args, name)
        if given is not None and given < least:
            parser.error(f"--{name} {given}: must be at least {least}")
    return args


def make_bench(args: argparse.Namespace) -> Bench:
    on_gpu = args.device == "cuda"
    device = torch.device(args.device)
    size = args.size or ("base" if on_gpu else "tiny")
    config = PRESETS[f"mavil-{size}"]
    video = replace(config.model.video, frames=args.frames or 8)
    config = replace(config, model=replace(config.model, views=args.views, video=video))
    config = replace(config, train=replace(config.train, precision=args.precision, compile=args.compile))
    return Bench(
        device=device,
        clock=StepClock(device) if on_gpu else make_clock(device, args.threads),
        batch=args.batch or (64 if on_gpu else 32 if size == "tiny" else 4),
        levels=args.levels or (8 if on_gpu else 2),
        dtype=torch.bfloat16 if use_bf16(config, device) else torch.float32,
        config=config,
    )


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    console = Console()
    if not console.is_terminal:
        console = Console(width=132)
    bench = make_bench(args)
    if bench.device.type == "cpu":
        keep_freed_memory()  # as training does; the baseline benefits equally
    torch.manual_seed(0)
    found = rows(bench, args.compile, args.cuda_graph)
    flops: list[float | None] = [None] * len(found)
    if not args.no_peers:
        for row, counted in peer_rows(bench, args.compile, lambda words: console.print(words, highlight=False)):
            found.append(row)
            flops.append(counted)

    def known(result: dict[str, Any]) -> None:
        if args.json:
            write(args.json, result)
        if bench.device.type == "cuda":
            console.print(f"{result['row']}: {result['ms_per_clip']:.2f} ms a clip", highlight=False)

    results = measure(bench, found, flops, args.seconds, known)
    first = results[0]
    heading = (
        f"one training step, of one clip: {bench.config.model.views} views, {bench.config.model.video.frames} frames, "
        f"{first['dtype']}\n{first['device']}; commit {first['commit']}; matrix product {first['matmul_tflops']:.3g} "
        f"TFLOP/s in this run"
    )
    console.print(show(results, heading))
    if args.plot:
        plot(results, args.plot)
        console.print(str(args.plot), highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
