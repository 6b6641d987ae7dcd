"""Does a cheaper setting learn as much? Probe accuracy at equal samples seen, with FLOPs and seconds.

    python benchmarks/points.py synthetic --json benchmarks/results/quality.jsonl
    python benchmarks/points.py fsdd --fsdd fsdd.tar.gz --json benchmarks/results/quality.jsonl
    python benchmarks/points.py table --json benchmarks/results/quality.jsonl

The studies that made `results/quality.jsonl` and its like, at one number of samples; `quality.py` measures at several.

`synthetic`: whole runs of `diffmavil.train` and `diffmavil.evaluate` on the generated set. `fsdd`: the Free Spoken
Digit Dataset (recordings 0 to 4 of each speaker and digit are held out), audio alone: encoder and decoder of one
modality, no contrast. `cpu_seconds` are those of all cores, for `synthetic` with decoding. Each setting and seed is
one line of JSON, written as soon as it is known; what a file already holds is not run again, so that the study can be
stopped at any time. Lines that do not tell of how much of a set they are (`clips`, `recordings`) are of all of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:
    # Run by path: Python puts this folder first, where kernels.py would hide the package `kernels` of the Hub.
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), str(here.parent / "kernels"), *(p for p in sys.path if Path(p).resolve() != here)]

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.digits import Digits, pretrain_and_probe, read_digits
from benchmarks.identity import identity
from benchmarks.kernels import write
from benchmarks.lines import read
from benchmarks.processes import python
from benchmarks.settings import BASE, CHANGES
from diffmavil.config import Config
from diffmavil.config.cli import parse_train
from diffmavil.config.presets import PRESETS
from diffmavil.data.stats import open_data
from diffmavil.training.costs import scheduled_flops

SYNTHETIC_ONLY = (
    "diffmavil-tiny, adaptive batch",
    "diffmavil-tiny-fast, adaptive batch",
    "diffmavil-tiny-fast, 8 crops kept",
)
COMPARED = (
    "mavil-tiny",
    "diffmavil-tiny",
    "diffmavil-tiny-fast",
    "diffmavil-tiny, audio decoder cross-attends",
    "diffmavil-tiny-fast, half decoded",
    "diffmavil-tiny, fixed ratio",
    "diffmavil-tiny, every timestep",
    *SYNTHETIC_ONLY,
)
# The preset's own; and as many as audio alone needs before reconstruction teaches it more than it costs.
SAMPLES = {"synthetic": PRESETS[BASE].train.steps * PRESETS[BASE].train.batch_size, "fsdd": 128_000}
Result = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run. Its fields are the first keys of its line."""

    study: str
    setting: str
    seed: int
    samples: int
    clips: int | None = None
    """Of the generated set, to train on, and as many to judge by; None: the preset's."""
    recordings: int | None = None
    """Of each speaker and digit; None: all."""


def settings(study: str) -> dict[str, Config]:
    """What is compared: the presets, and changes of them."""
    names = COMPARED if study == "synthetic" else [name for name in COMPARED if name not in SYNTHETIC_ONLY]
    return {name: parse_train([preset_of(name), *CHANGES[name].split()])[1] for name in names}


def preset_of(setting: str) -> str:
    return setting.partition(",")[0]


def cells(args: argparse.Namespace, chosen: Sequence[str]) -> Iterator[Cell]:
    """Seed by seed, so that a study that is stopped early compares every setting."""
    samples = args.samples or SAMPLES[args.study]
    part = {"clips": args.clips} if args.study == "synthetic" else {"recordings": args.recordings}
    for seed in range(args.seeds):
        for name in chosen:
            yield Cell(args.study, name, seed, samples, **part)


def cell_of(result: Result) -> Cell:
    study, setting, seed, samples = (result[name] for name in ("study", "setting", "seed", "samples"))
    return Cell(study, setting, seed, samples, result.get("clips"), result.get("recordings"))


def data_flags(clips: int | None, cache: str | None) -> list[str]:
    """Of the generated set."""
    flags = ["--data.synthetic-train", str(clips), "--data.synthetic-eval", str(clips)] if clips else []
    return [*flags, "--data.cache", cache] if cache else flags


def make_ready(clips: int | None, cache: str | None) -> None:
    """Generate the set and measure its statistics, if they are not in the cache: no cell is to pay for it."""
    open_data(parse_train([BASE, *data_flags(clips, cache)])[1])


def run_synthetic(cell: Cell, config: Config, cache: str | None) -> Result:
    """Train and evaluate in processes of their own: accuracy of every probe, and what training took."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        # Decoding in the process itself: its seconds then count, which those of the workers' server would not.
        flags = [
            *CHANGES[cell.setting].split(),
            "--train.seed",
            str(cell.seed),
            "--train.no-report",
            "--data.workers",
            "0",
        ]
        flags += ["--train.steps", str(max(1, cell.samples // config.train.batch_size))]
        flags += data_flags(cell.clips, cache)
        seconds = python("diffmavil.train", preset_of(cell.setting), "--run-dir", str(run), *flags)
        python("diffmavil.evaluate", "--run-dir", str(run))
        results = json.loads((run / "evaluation.json").read_text())["results"]
    return {"cpu_seconds": seconds} | {
        f"{model}:{metric}": value for model, metrics in results.items() for metric, value in metrics.items()
    }


def run_fsdd(cell: Cell, config: Config, digits: Digits) -> Result:
    """Pretrain on the training recordings and probe on the held-out ones."""
    return pretrain_and_probe(config, digits, samples=cell.samples, seed=cell.seed)


def summary(results: Sequence[Result], study: str, metric: str) -> Table:
    """Mean and spread over seeds, and what each setting loses against MAViL at the same seed."""
    mine = [r for r in results if r["study"] == study and metric in r]
    table = Table(title=f"{study}: {metric}", title_justify="left")
    for name in ("setting", "set", "samples", "seeds", "accuracy", "of MAViL", "GFLOP of a clip", "CPU seconds"):
        table.add_column(name, justify="left" if name in ("setting", "set") else "right")
    base = {(r["seed"], r["samples"], set_of(r)): r[metric] for r in mine if r["setting"] == BASE}
    for name, samples, part in dict.fromkeys((r["setting"], r["samples"], set_of(r)) for r in mine):
        rows = [r for r in mine if (r["setting"], r["samples"], set_of(r)) == (name, samples, part)]
        values = torch.tensor([r[metric] for r in rows], dtype=torch.float64)
        pairs = [(r[metric], base.get((r["seed"], samples, part))) for r in rows]
        gains = [value - other for value, other in pairs if other is not None]
        spread = f" ± {values.std():.1%}" if len(rows) > 1 else ""
        gflops = [r["gflop_per_clip"] for r in rows if "gflop_per_clip" in r]  # not in lines of a patched copy
        table.add_row(
            name,
            part,
            f"{samples:,}",
            str(len(rows)),
            f"{values.mean():.1%}{spread}",
            f"{sum(gains) / len(gains):+.1%}" if gains else "",
            f"{sum(gflops) / len(gflops):.3f}" if gflops else "",
            f"{sum(r['cpu_seconds'] for r in rows) / len(rows):,.0f}",
        )
    return table


def set_of(result: Result) -> str:
    """How much of the set it was measured on."""
    cell = cell_of(result)
    parts = ((cell.clips, "clips"), (cell.recordings, "recordings"))
    return next((f"{number} {name}" for number, name in parts if number), "all")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/points.py", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("study", choices=("synthetic", "fsdd", "table"))
    add("--json", type=Path, metavar="FILE", required=True, help="lines are appended; those there are not run again")
    add("--seeds", type=int, default=3)
    listed = ", ".join(f"{study} {samples}" for study, samples in SAMPLES.items())
    add("--samples", type=int, help=f"clips seen in each pretraining (default: {listed})")
    add("--setting", action="append", choices=COMPARED, help="repeat for several; default all")
    add("--fsdd", type=Path, metavar="TAR", help="the Free Spoken Digit Dataset, fsdd.tar.gz")
    add("--cache", help="synthetic: where the generated set is kept")
    add("--clips", type=int, help="synthetic: clips to train on, and as many to judge by (default: the preset's)")
    add("--recordings", type=int, help="fsdd: read only so many of each speaker and digit, held-out ones included")
    args = parser.parse_args(argv)
    for name in ("seeds", "samples", "clips", "recordings"):
        given = getattr(args, name)
        if given is not None and given < 1:
            parser.error(f"--{name} {given}: must be at least 1")
    for name in args.setting or ():
        if args.study == "fsdd" and name in SYNTHETIC_ONLY:
            parser.error(f"--setting {name!r}: of the generated set alone")
    if args.study == "fsdd" and (args.fsdd is None or not args.fsdd.is_file()):
        parser.error(f"--fsdd {args.fsdd}: must be the dataset's archive, fsdd.tar.gz")
    return args


def measure(args: argparse.Namespace, console: Console) -> None:
    """Run the cells that the file does not hold, and write their lines."""
    known, compared = {cell_of(result) for result in read(args.json)}, settings(args.study)
    wanted = [*cells(args, args.setting or [*compared])]
    left = [cell for cell in wanted if cell not in known]
    for cell in wanted:
        if cell in known:
            console.print(f"known: {cell.setting}, seed {cell.seed}", highlight=False)
    if not left:
        return
    digits = read_digits(args.fsdd, args.recordings) if args.study == "fsdd" else None
    if digits is None:
        make_ready(args.clips, args.cache)
    for cell in left:
        config = compared[cell.setting]
        found = run_synthetic(cell, config, args.cache) if digits is None else run_fsdd(cell, config, digits)
        gflop = scheduled_flops(config.model, config.mask).total * 1e-9
        line = {**vars(cell), "gflop_per_clip": gflop, **found, **identity(torch.device("cpu"))}
        write(args.json, line)
        console.print(f"{cell.setting}, seed {cell.seed}: {line['cpu_seconds']:,.0f} s", highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    console = Console(width=None if sys.stdout.isatty() else 132)
    if args.study != "table":
        measure(args, console)
    results = read(args.json)
    for study, metric in (
        ("synthetic", "trained:probe/fused"),
        ("synthetic", "trained:probe/video"),
        ("fsdd", "probe"),
    ):
        if any(r["study"] == study for r in results):
            console.print(summary(results, study, metric))
    return 0


if __name__ == "__main__":
    sys.exit(main())
