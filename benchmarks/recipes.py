"""What pretraining is worth on a recipe's set: fine-tuned from pretrained weights and from scratch, and probed frozen.

    python benchmarks/recipes.py fsdd --data TABLES --json benchmarks/results/recipes.jsonl
    python benchmarks/recipes.py table --json benchmarks/results/recipes.jsonl

TABLES is the folder that `python -m recipes.NAME.tables` wrote, or one of prepared sets of the same names. The settings
are those of recipes/NAME/pretrain.yaml and finetune.yaml. Each seed and split (ESC's folds) is pretrained by every
preset, once, probed, and fine-tuned for each task; from scratch is fine-tuned alone. One line of JSON for each, written
as soon as it is known; what a file already holds is not run again, so that the study can be stopped at any time.
`cpu_seconds` are those of all cores, decoding included.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
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

from benchmarks.identity import ROOT, identity
from benchmarks.kernels import write
from benchmarks.quality import cpu_seconds_of_children, python, read
from diffmavil.config.cli import parse_train
from diffmavil.evaluation.classification import read_classification
from diffmavil.evaluation.result import read_evaluation

SCRATCH = "none"
PRESETS = ("mavil-tiny", "diffmavil-tiny", "diffmavil-tiny-fast")
KINDS = ("fused", "audio", "video")
Result = dict[str, Any]
Value = Callable[[Result], float | None]


@dataclass(frozen=True)
class Split:
    """Names in the folder of tables: what is pretrained, fine-tuned and probed on, and what is scored on."""

    train: str
    test: str
    tasks: tuple[str, ...] = ("auto",)
    """By which modalities classes are told, one fine-tuning each."""


RECIPES = {
    "fsdd": {"": Split("train", "test")},
    "esc10": {f"fold {k}": Split(f"fold{k}-train", f"fold{k}-test") for k in range(1, 6)},
    "grid": {"words": Split("train-words", "test-words", ("audio", "video", "av"))},
}


@dataclass(frozen=True)
class Cell:
    """One line's first keys. `source`: the preset that it was pretrained by, or "none"."""

    recipe: str
    split: str
    source: str
    seed: int


def cells(recipe: str, seeds: Sequence[int], splits: Sequence[str], sources: Sequence[str]) -> Iterator[Cell]:
    for seed in seeds:
        for split in splits or RECIPES[recipe]:
            for source in sources:
                yield Cell(recipe, split, source, seed)


def run(cell: Cell, data: Path, folder: Path, extra: Sequence[str]) -> Result:
    """Pretrain, probe and fine-tune in processes of their own."""
    names, settings = RECIPES[cell.recipe][cell.split], ROOT / "recipes" / cell.recipe
    common = ["--train.seed", str(cell.seed), "--train.no-report", *extra]
    scored = ["--data.root", place(data, names.train), "--data.eval-root", place(data, names.test)]
    found: Result = {}
    source = SCRATCH
    if cell.source != SCRATCH:
        source = str(folder / "pretrained")
        config = ["--config", str(settings / "pretrain.yaml")]
        before = cpu_seconds_of_children()
        ratio = fixed_ratio(cell.source, settings / "pretrain.yaml")
        python("diffmavil.train", cell.source, *config, *ratio, "--run-dir", source, *scored, *common)
        found["pretrain_cpu_seconds"] = cpu_seconds_of_children() - before
        python("diffmavil.evaluate", "--run-dir", source, *scored)
        evaluation = read_evaluation(Path(source))
        assert evaluation
        found["probes"] = evaluation.results
    config = ["--config", str(settings / "finetune.yaml"), "--from", source]
    if source == SCRATCH:  # what is learnt from nothing is learnt at every height alike
        config += ["--optim.layer-decay", "1"]
    found["tuned"] = {}
    for task in names.tasks:
        before = cpu_seconds_of_children()
        tuned = folder / task
        python("diffmavil.finetune", *config, "--task", task, "--run-dir", str(tuned), *scored, *common)
        scores = read_classification(tuned)
        assert scores
        found["tuned"][task] = {
            "cpu_seconds": cpu_seconds_of_children() - before,
            "headline": scores.headline,
            "results": scores.results,
            "clips": scores.clips,
        }
    return found


def fixed_ratio(preset: str, settings: Path) -> list[str]:
    """Flags of a preset whose ratio does not fall: it stays at what the recipe's falls to."""
    mask = parse_train([preset, "--config", str(settings)])[1].mask
    schedules = {name: schedule for name, schedule in (("video", mask.video), ("audio", mask.audio))
                 if schedule.kind == "constant"}  # fmt: skip
    return [part for name, schedule in schedules.items() for part in (f"--mask.{name}.start", str(schedule.end))]


def place(data: Path, name: str) -> str:
    """A prepared set of that name, or the table."""
    return str(data / name if (data / name).is_dir() else data / f"{name}.csv")


def summary(results: Sequence[Result]) -> Table:
    """A row for each recipe, task and source: mean and deviation over the seeds, each a mean over its splits."""
    table = Table(title="held-out clips; mean and standard deviation over the seeds", title_justify="left")
    for name in ("recipe", "source", "seeds", "splits", "fine-tuned", "probe", "untrained probe", "CPU s of a split"):
        table.add_column(name, justify="left" if name in ("recipe", "source") else "right")
    rows_of = {(r["recipe"], task, r["source"]) for r in results for task in r["tuned"]}
    for recipe, task, source in sorted(rows_of):
        rows = [r for r in results if (r["recipe"], r["source"]) == (recipe, source)]
        seeds = sorted({r["seed"] for r in rows})
        splits = sorted({r["split"] for r in rows})
        seconds = [r.get("pretrain_cpu_seconds", 0) + r["tuned"][task]["cpu_seconds"] for r in rows]
        kinds = KINDS if task == "auto" else ("fused" if task == "av" else task,)
        values = (_tuned(task), _probe("trained", kinds), _probe("untrained", kinds))
        numbers = [_by_seed(rows, seeds, value) for value in values]
        cells = (str(len(seeds)), str(len(splits)), *numbers, f"{statistics.mean(seconds):,.0f}")
        name = recipe if task == "auto" else f"{recipe}, {task}"
        table.add_row(name, "from scratch" if source == SCRATCH else source, *cells)
    return table


def _by_seed(rows: Sequence[Result], seeds: Sequence[int], value: Value) -> str:
    means = []
    for seed in seeds:
        mine = [r for r in rows if r["seed"] == seed]
        found = [x for x in map(value, mine) if x is not None]
        if len(found) < len(mine):
            return ""
        means.append(statistics.mean(found))
    spread = f" ± {100 * statistics.stdev(means):.1f}" if len(means) > 1 else ""
    return f"{100 * statistics.mean(means):.1f}{spread} %"


def _tuned(task: str) -> Value:
    def value(result: Result) -> float | None:
        tuned = result["tuned"].get(task)
        if tuned is None:
            return None
        weights, crops, metric = (tuned["headline"][name] for name in ("weights", "crops", "metric"))
        return tuned["results"][weights][crops][metric]

    return value


def _probe(model: str, kinds: Sequence[str]) -> Value:
    """Of the first kind of features that there is."""

    def value(result: Result) -> float | None:
        metrics = result.get("probes", {}).get(model, {})
        names = (f"probe/{kind}" for kind in kinds)
        return next((metrics[name] for name in names if name in metrics), None)

    return value


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/recipes.py", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("recipe", choices=(*RECIPES, "table"))
    add("--json", type=Path, metavar="FILE", required=True, help="lines are appended; those there are not run again")
    add("--data", type=Path, metavar="TABLES", help="folder of the recipe's tables or prepared sets")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--split", action="append", default=[], help="repeat for several; default all of the recipe")
    add("--source", action="append", choices=(SCRATCH, *PRESETS), help="repeat for several; default all")
    add("--extra", default="", help="further flags of both commands, in one string")
    args = parser.parse_args(argv)
    if args.recipe != "table":
        if args.data is None or not args.data.is_dir():
            parser.error(f"--data {args.data}: must be the folder of the recipe's tables")
        for split in args.split:
            if split not in RECIPES[args.recipe]:
                parser.error(f"--split {split!r}: must be one of {', '.join(RECIPES[args.recipe])}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    console = Console(width=None if sys.stdout.isatty() else 132)
    if args.recipe != "table":
        known = {Cell(r["recipe"], r["split"], r["source"], r["seed"]) for r in read(args.json)}
        for cell in cells(args.recipe, args.seeds, args.split, args.source or (SCRATCH, *PRESETS)):
            if cell in known:
                console.print(f"known: {cell}", highlight=False)
                continue
            with tempfile.TemporaryDirectory() as folder:
                found = run(cell, args.data.absolute(), Path(folder), args.extra.split())
            write(args.json, {**vars(cell), **found, **identity(torch.device("cpu"))})
            told = ", ".join(f"{task} {100 * (_tuned(task)(found) or 0):.1f} %" for task in found["tuned"])
            console.print(f"{cell}: {told}", highlight=False)
    results = read(args.json)
    if results:
        console.print(summary(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
