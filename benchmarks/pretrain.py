"""Short real pretrainings of MAViL, DiffMAViL and its fast preset on the generated set: accuracy, FLOPs, seconds.

    python benchmarks/pretrain.py --json benchmarks/results/pretrain-cuda.jsonl              # on this machine's GPU
    python benchmarks/pretrain.py --size tiny --pixels 32 --samples 64 --clips 24            # a rehearsal

Each is `diffmavil.train` and `diffmavil.evaluate` as a user starts them, decoding included. `clips_per_s` is the median
of the run's log lines after its first quarter; `audioset_hours` is what AudioSet-2M for 20 epochs, 4e7 clips, takes at
that rate. With a file of results, presets that it already holds at the same settings, of this device, commit, native
library and versions, are not run again; those of a commit that is unknown or dirty are.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if not __package__:
    # Run by path: Python puts this folder first, where kernels.py would hide the package `kernels` of the Hub.
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), str(here.parent / "kernels"), *(p for p in sys.path if Path(p).resolve() != here)]

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.identity import DIRTY, ROOT, UNKNOWN, identity
from benchmarks.kernels import write
from benchmarks.lines import read
from diffmavil.config import Config
from diffmavil.config.cli import parse_train
from diffmavil.config.presets import PRESETS, SIZES
from diffmavil.data.stats import open_data
from diffmavil.training.costs import scheduled_flops
from diffmavil.training.metrics import read_metrics

AUDIOSET_CLIPS = 2_000_000 * 20
SETTINGS = ("pixels", "frames", "batch", "samples", "seed", "clips", "workers", "compile")
Result = dict[str, Any]


def run(preset: str, args: argparse.Namespace) -> Result:
    """Train and evaluate one preset."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        steps = max(1, args.samples // args.batch)
        flags = [
            *("--model.video.size", str(args.pixels), "--model.video.frames", str(args.frames)),
            *("--train.batch-size", str(args.batch), "--train.steps", str(steps), "--train.seed", str(args.seed)),
            *("--train.log-every", str(max(1, steps // 20)), "--train.checkpoint-every", str(steps)),
            *("--data.workers", str(args.workers), "--train.no-report"),
            *data_flags(args),
        ]
        flags += ["--train.compile"] if args.compile else []
        begin = time.perf_counter()
        python("diffmavil.train", preset, "--run-dir", str(folder), *flags)
        seconds = time.perf_counter() - begin
        python("diffmavil.evaluate", "--run-dir", str(folder))
        scores = json.loads((folder / "evaluation.json").read_text())["results"]
        records = read_metrics(folder)
    steady = records[len(records) // 4 :]
    rate = statistics.median(r["clips_per_second"] for r in steady)
    return {
        "seconds": seconds,
        "clips_per_s": rate,
        "data_wait": statistics.median(r["data_wait"] for r in steady),
        "tflops": statistics.median(r["gflop_per_second"] for r in steady) * 1e-3,
        "gflop_per_clip": scheduled_flops(sized(preset, args).model, sized(preset, args).mask).total * 1e-9,
        "audioset_hours": AUDIOSET_CLIPS / rate / 3600,
        "loss": [r["loss"] for r in records],
    } | {f"{model}:{metric}": value for model, metrics in scores.items() for metric, value in metrics.items()}


def data_flags(args: argparse.Namespace) -> list[str]:
    """Of the generated set."""
    clips = str(args.clips)
    flags = ["--data.synthetic-train", clips, "--data.synthetic-eval", clips] if args.clips else []
    return [*flags, "--data.cache", str(args.cache)] if args.cache else flags


def make_ready(preset: str, args: argparse.Namespace) -> None:
    """Generate the set and measure its statistics, if they are not in the cache: no pretraining is to pay for it."""
    open_data(parse_train([preset, *data_flags(args)])[1])


def sized(preset: str, args: argparse.Namespace) -> Config:
    config = PRESETS[preset]
    video = replace(config.model.video, size=args.pixels, frames=args.frames)
    return replace(config, model=replace(config.model, video=video))


def python(*arguments: str) -> None:
    """`python -m` in this checkout; raises with the end of what it said when it fails."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    if done.returncode:
        end = (done.stdout + done.stderr)[-4000:]
        raise RuntimeError(f"python -m {' '.join(arguments)} ended with {done.returncode}:\n{end}")


def table(results: Sequence[Result]) -> Table:
    shown = Table(title="pretraining on the generated set", title_justify="left")
    columns = ("preset", "probe fused", "untrained", "GFLOP of a clip", "seconds", "clips/s", "data wait", "AudioSet h")
    for name in columns:
        shown.add_column(name, justify="left" if name == "preset" else "right")
    for r in results:
        shown.add_row(
            r["preset"],
            f"{r['trained:probe/fused']:.1%}",
            f"{r['untrained:probe/fused']:.1%}",
            f"{r['gflop_per_clip']:.1f}",
            f"{r['seconds']:,.0f}",
            f"{r['clips_per_s']:,.1f}",
            f"{r['data_wait']:.0%}",
            f"{r['audioset_hours']:,.0f}",
        )
    return shown


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/pretrain.py", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--size", choices=SIZES, default="small")
    add("--pixels", type=int, default=224, help="side of a frame (default 224)")
    add("--frames", type=int, default=8, help="of a clip (default 8)")
    add("--batch", type=int, default=128, help="clips of a step (default 128)")
    add("--samples", type=int, default=19_200, help="clips seen in each pretraining (default 19200)")
    add("--seed", type=int, default=0)
    add("--clips", type=int, help="clips to train on, and as many to judge by (default: the preset's)")
    add("--workers", type=int, default=len(os.sched_getaffinity(0)), help="decoding processes (default: the cores)")
    add("--cache", type=Path, help="where the generated set is kept")
    add("--compile", action="store_true", help="with compiled blocks")
    add("--json", type=Path, metavar="FILE", help="append one line of JSON for each preset")
    args = parser.parse_args(argv)
    least = {"pixels": 1, "frames": 2, "batch": 1, "samples": 1, "clips": 1, "workers": 0, "seed": 0}
    for name, allowed in least.items():
        given = getattr(args, name)
        if given is not None and given < allowed:
            parser.error(f"--{name} {given}: must be at least {allowed}")
    try:
        for preset in presets(args.size):
            sized(preset, args)
    except ValueError as error:
        parser.error(str(error))
    return args


def presets(size: str) -> tuple[str, ...]:
    return f"mavil-{size}", f"diffmavil-{size}", f"diffmavil-{size}-fast"


def known(lines: Sequence[Result], wanted: Result) -> Result | None:
    """The last line of the same settings, device, commit and versions; a line that lacks one of them is another's."""
    if wanted["commit"] == UNKNOWN or wanted["commit"].endswith(DIRTY):
        return None
    same = {name: value for name, value in wanted.items() if name != "date"}
    return next((line for line in reversed(lines) if same.items() <= line.items()), None)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lines = read(args.json) if args.json else []
    results = []
    for preset in presets(args.size):
        cell, who = {"preset": preset, **{name: getattr(args, name) for name in SETTINGS}}, identity(device)
        found = known(lines, cell | who)
        if found is None:
            make_ready(preset, args)
            found = cell | run(preset, args) | who
            if args.json:
                write(args.json, found)
        results.append(found)
    console = Console(width=None if sys.stdout.isatty() else 132)
    console.print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
