"""What pretraining is worth on a recipe's set: fine-tuned from pretrained weights and from scratch, and probed frozen.

    python benchmarks/recipes.py fsdd --data TABLES --json benchmarks/results/recipes.jsonl
    python benchmarks/recipes.py table --json benchmarks/results/recipes.jsonl

TABLES is the folder that `python -m recipes.NAME.tables` wrote, or one of prepared sets of the same names. The settings
are those of recipes/NAME/pretrain.yaml and finetune.yaml. Each seed and split (ESC's folds) is pretrained by every
preset, once, probed, and fine-tuned for each task; from scratch is fine-tuned alone. One line of JSON for each, written
as soon as it is known; what a file already holds is not run again, so that the study can be stopped at any time. A
file whose lines of the recipe had other settings or other clips, or do not tell, is refused. `cpu_seconds` are
those of all cores, decoding included.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:
    # Run by path: Python puts this folder first, where kernels.py would hide the package `kernels` of the Hub.
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), str(here.parent / "kernels"), *(p for p in sys.path if Path(p).resolve() != here)]

import torch
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.identity import ROOT, identity
from benchmarks.kernels import write
from benchmarks.lines import read
from benchmarks.processes import Python, python
from diffmavil.config.cli import parse_train
from diffmavil.data.shards.index import INDEX_FILE
from diffmavil.evaluation.classification import Classification, read_classification
from diffmavil.evaluation.result import Evaluation, read_evaluation

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
    names = RECIPES[cell.recipe][cell.split]
    common = ["--train.seed", str(cell.seed), *extra]
    scored = scored_on(data, names)
    found: Result = {}
    source = SCRATCH
    if cell.source != SCRATCH:
        source = str(folder / "pretrained")
        flags = [*pretrain_settings(cell.recipe, cell.source), *scored, *common]
        seconds, evaluation = pretrain(python, cell.source, folder / "pretrained", flags, scored)
        found |= {"pretrain_cpu_seconds": seconds, "probes": evaluation.results}
    flags = ["--config", str(config_of(cell.recipe, "finetune")), *scored, *common]
    found["tuned"] = {}
    for task in names.tasks:
        seconds, scores = tune(python, source, task, folder / task, flags)
        found["tuned"][task] = {
            "cpu_seconds": seconds,
            "headline": scores.headline,
            "results": scores.results,
            "clips": scores.clips,
        }
    return found


def pretrain_settings(recipe: str, preset: str) -> list[str]:
    """Flags that lay the recipe over a preset."""
    flags = ["--config", str(config_of(recipe, "pretrain"))]
    return [*flags, *held_ratios([preset, *flags])]


def held_ratios(arguments: Sequence[str]) -> list[str]:
    """Flags by which a ratio that does not fall stays at what the others' falls to."""
    mask = parse_train(arguments)[1].mask
    schedules = (("video", mask.video), ("audio", mask.audio))
    return [
        flag
        for name, schedule in schedules
        if schedule.kind == "constant"
        for flag in (f"--mask.{name}.start", str(schedule.end))
    ]


def pretrain(
    python: Python, preset: str, run: Path, flags: Sequence[str], judged: Sequence[str]
) -> tuple[float, Evaluation]:
    """CPU seconds of the training, and what the probes say. `flags` are of the training, `judged` of the evaluation."""
    seconds = train(python, preset, run, flags)
    python("diffmavil.evaluate", "--run-dir", str(run), *judged)
    evaluation = read_evaluation(run)
    assert evaluation
    return seconds, evaluation


def train(python: Python, preset: str, run: Path, flags: Sequence[str]) -> float:
    """CPU seconds of a pretraining."""
    return python("diffmavil.train", preset, "--run-dir", str(run), "--train.no-report", *flags)


def tune(python: Python, source: str, task: str, run: Path, flags: Sequence[str]) -> tuple[float, Classification]:
    """CPU seconds of fine-tuning `source`, a run's folder or `SCRATCH`, and the scores."""
    if source == SCRATCH:  # what is learnt from nothing is learnt at every height alike
        flags = ["--optim.layer-decay", "1", *flags]
    common = ["--task", task, "--run-dir", str(run), "--train.no-report"]
    seconds = python("diffmavil.finetune", "--from", source, *common, *flags)
    scores = read_classification(run)
    assert scores
    return seconds, scores


def config_of(recipe: str, stage: str) -> Path:
    """The recipe's settings; `stage`: pretrain or finetune."""
    return ROOT / "recipes" / recipe / f"{stage}.yaml"


def scored_on(data: Path, split: Split) -> list[str]:
    """Flags of every command: learn from the one part, and be scored on the other."""
    return ["--data.root", place(data, split.train), "--data.eval-root", place(data, split.test)]


def place(data: Path, name: str) -> str:
    """A prepared set of that name, or the table."""
    return str(data / name if (data / name).is_dir() else data / f"{name}.csv")


def settings_of(recipe: str, split: str, data: Path, extra: Sequence[str]) -> Result:
    """What a line was measured with besides its first keys: others are not put beside it."""
    files = {stage: yaml.safe_load(config_of(recipe, stage).read_text()) for stage in ("pretrain", "finetune")}
    names = RECIPES[recipe][split]
    return {**files, "extra": [*extra], "data": [digest(place(data, name)) for name in (names.train, names.test)]}


def digest(place: str) -> str | None:
    """Of a table, or of the index of a prepared set, neither of which tells where it lies; None: there is none."""
    file = Path(place) / INDEX_FILE if Path(place).is_dir() else Path(place)
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12] if file.is_file() else None


def check_alike(path: Path, recipe: str, splits: Sequence[str], data: Path, extra: Sequence[str]) -> None:
    """`ValueError` if lines of the recipe have other settings, or clips in one of `splits`, than they would get now."""
    for number, line in enumerate(read(path), 1):
        if line["recipe"] != recipe:
            continue
        if "settings" not in line:
            raise ValueError(f"--json {path}: line {number} does not tell its settings: name another file")
        then, now = line["settings"], settings_of(recipe, line["split"], data, extra)
        for name in now:
            if then[name] != now[name] and (name != "data" or line["split"] in splits):
                raise ValueError(
                    f"--json {path}: line {number} was measured with {name} {then[name]}, now it would be {now[name]}: "
                    f"name another file"
                )


def summary(results: Sequence[Result]) -> Table:
    """A row for each recipe, task and source: mean and deviation over the seeds, each a mean over all splits."""
    table = Table(title="held-out clips; mean and standard deviation over the seeds", title_justify="left")
    for name in ("recipe", "source", "seeds", "splits", "fine-tuned", "probe", "untrained probe", "CPU s of a split"):
        table.add_column(name, justify="left" if name in ("recipe", "source") else "right")
    rows_of = {(r["recipe"], task, r["source"]) for r in results for task in r["tuned"]}
    left_out = []
    for recipe, task, source in sorted(rows_of):
        splits = {r["split"] for r in results if r["recipe"] == recipe}
        mine = [r for r in results if (r["recipe"], r["source"]) == (recipe, source)]
        rows = of_whole_seeds(mine, splits)
        seeds = sorted({r["seed"] for r in rows})
        left_out += [(recipe, source, seed) for seed in {r["seed"] for r in mine}.difference(seeds)]
        seconds = [r.get("pretrain_cpu_seconds", 0) + r["tuned"][task]["cpu_seconds"] for r in rows]
        kinds = KINDS if task == "auto" else ("fused" if task == "av" else task,)
        values = (tuned_by(task), probe_of("trained", kinds), probe_of("untrained", kinds))
        numbers = [f"{number} %" if number else "" for number in (by_seed(rows, value) for value in values)]
        spent = f"{statistics.mean(seconds):,.0f}" if seconds else ""
        cells = (", ".join(map(str, seeds)), str(len(splits)), *numbers, spent)
        name = recipe if task == "auto" else f"{recipe}, {task}"
        table.add_row(name, "from scratch" if source == SCRATCH else source, *cells)
    if left_out:
        names = (f"{recipe}, {source}, seed {seed}" for recipe, source, seed in sorted(set(left_out)))
        table.caption = f"left out, without a line for every split: {'; '.join(names)}"
    return table


def of_whole_seeds(rows: Sequence[Result], splits: Collection[str]) -> list[Result]:
    """Those of seeds with all of `splits`: means over other splits are not put beside one another."""
    found = {seed: {r["split"] for r in rows if r["seed"] == seed} for seed in {r["seed"] for r in rows}}
    return [r for r in rows if found[r["seed"]].issuperset(splits)]


def by_seed(rows: Sequence[Result], value: Value) -> str:
    """Mean and deviation over the seeds, in %, of each seed's mean over the splits; "": some have no such value."""
    means = []
    for seed in sorted({row["seed"] for row in rows}):
        mine = [r for r in rows if r["seed"] == seed]
        found = [x for x in map(value, mine) if x is not None]
        if len(found) < len(mine):
            return ""
        means.append(statistics.mean(found))
    spread = f" ± {100 * statistics.stdev(means):.1f}" if len(means) > 1 else ""
    return f"{100 * statistics.mean(means):.1f}{spread}" if means else ""


def tuned_by(task: str) -> Value:
    def value(result: Result) -> float | None:
        tuned = result["tuned"].get(task)
        if tuned is None:
            return None
        weights, crops, metric = (tuned["headline"][name] for name in ("weights", "crops", "metric"))
        return tuned["results"][weights][crops][metric]

    return value


def probe_of(model: str, kinds: Sequence[str]) -> Value:
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


def measure(args: argparse.Namespace, console: Console) -> None:
    """Run the cells that the file does not hold, and write their lines."""
    data, extra = args.data.absolute(), args.extra.split()
    known = {Cell(r["recipe"], r["split"], r["source"], r["seed"]) for r in read(args.json)}
    for cell in cells(args.recipe, args.seeds, args.split, args.source or (SCRATCH, *PRESETS)):
        if cell in known:
            console.print(f"known: {cell}", highlight=False)
            continue
        settings = settings_of(cell.recipe, cell.split, data, extra)
        with tempfile.TemporaryDirectory() as folder:
            found = run(cell, data, Path(folder), extra)
        write(args.json, {**vars(cell), **found, "settings": settings, **identity(torch.device("cpu"))})
        told = ", ".join(f"{task} {100 * (tuned_by(task)(found) or 0):.1f} %" for task in found["tuned"])
        console.print(f"{cell}: {told}", highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    console = Console(width=None if sys.stdout.isatty() else 132)
    if args.recipe != "table":
        try:
            check_alike(args.json, args.recipe, args.split or [*RECIPES[args.recipe]], args.data, args.extra.split())
        except ValueError as error:
            print(f"benchmarks/recipes.py: {error}", file=sys.stderr)
            return 2
        measure(args, console)
    results = read(args.json)
    if results:
        console.print(summary(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
