"""Who reaches which score at what cost? Scores at several budgets of pretraining, against CPU seconds and FLOPs.

    python benchmarks/quality.py synthetic
    python benchmarks/quality.py fsdd --data tables/fsdd
    python benchmarks/quality.py esc10 --data tables/esc10          # its first fold; esc10-folds: the mean of all five
    python benchmarks/quality.py grid --data tables/grid --chain
    python benchmarks/quality.py table
    python benchmarks/quality.py board

A set's name runs its study: each setting pretrains with 1/4, 1/2, 1 and 2 times the samples of the set's recipe (the
generated set: of the preset), each with a schedule of that length, then the probes of `diffmavil.evaluate`, and with
--finetune, for esc10 by default, `diffmavil.finetune`. Tables are those of `python -m recipes.NAME.tables`, or prepared
sets of the same names. Each cell is a line of JSON, written as soon as it is known; what the file holds is not run
again, so that the study can be stopped at any time, with Ctrl-C or SIGTERM, and the same command goes on. `table`
prints what the lines say, `plot` draws a picture of each set, `board` writes docs/quality.md and its pictures.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import signal
import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

if not __package__:
    # Run by path: Python puts this folder first, where kernels.py would hide the package `kernels` of the Hub.
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), str(here.parent / "kernels"), *(p for p in sys.path if Path(p).resolve() != here)]

from rich.console import Console

from benchmarks import frontier, quality_earlier
from benchmarks.frontier import SETS, Asked, Cell, cell_of, cells, distinct, kept, make_ready
from benchmarks.identity import ROOT, commit
from benchmarks.kernels import write
from benchmarks.lines import read
from benchmarks.processes import Processes, side_by_side
from benchmarks.quality_board import page
from benchmarks.quality_view import Grid, part, views
from benchmarks.recipes import PRESETS
from benchmarks.settings import BUDGETS, CHAIN, CHANGES
from diffmavil.config import require
from diffmavil.config.errors import UsageError

RESULTS = ROOT / "benchmarks" / "results" / "quality-frontier.jsonl"
LEAN = RESULTS.with_name("quality-lean.jsonl")
"""The study of the lean recipe, which the board shows too."""
DOCS = ROOT / "docs"
PAGE = "quality.md"
STOPPED = 130
Key = tuple[Any, ...]


def parser_of() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks/quality.py", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("what", choices=(*SETS, "table", "plot", "board"), help="a set runs its study; the others show what is known")
    add("--json", type=Path, metavar="FILE", default=RESULTS, help="lines are appended; those there are not run again")
    add("--data", type=Path, metavar="FOLDER", help="the recipe's tables or prepared sets; not for synthetic")
    add("--cache", help="where the generated set and statistics are kept (default: data.cache)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--budget", type=budget, nargs="+", default=list(BUDGETS), help="parts of the recipe's samples, as 1/4 or 2")
    add("--setting", action="append", choices=CHANGES, help="repeat for several; default: the presets")
    add("--without", nargs=2, action="append", default=[], metavar=("SETTING", "BUDGET"), help="cells left out")
    add("--chain", action="store_true", help="from MAViL to -fast, one change at a time")
    add("--finetune", action=argparse.BooleanOptionalAction, help="default: of esc10")
    add("--jobs", type=int, default=2, help="cells side by side, of one thread each")
    add("--keep", type=Path, metavar="FOLDER", help="pretrained runs stay there (default: they do not)")
    add("--extra", default="", help="further flags of the training, in one string")
    add("--out", type=Path, metavar="FOLDER", default=DOCS, help="where plot and board write (default: docs)")
    return parser


def budget(text: str) -> float:
    try:
        value = float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        value = 0.0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a positive number, as 1/4 or 2")
    return value


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit code 2 for arguments that do not go together."""
    if args.jobs < 1:
        parser.error(f"--jobs {args.jobs}: must be at least 1")
    if min(args.seeds) < 0:
        parser.error(f"--seeds {min(args.seeds)}: must be at least 0")
    if args.what not in SETS:
        return
    if args.keep and len(SETS[args.what].splits) > 1:
        parser.error(f"--keep {args.keep}: not of {args.what}, of which a cell has a run for each split")
    if not SETS[args.what].splits:
        if args.data is not None:
            parser.error(f"--data {args.data}: left out of synthetic, which is generated; --cache names its place")
        if args.finetune:
            parser.error("--finetune: there is no recipe for it of synthetic")
    elif args.data is None or not args.data.is_dir():
        parser.error(f"--data {args.data}: must be the folder of the recipe's tables or prepared sets")
    if args.chain and args.setting:
        parser.error("--setting: left out with --chain, which names the settings")


def asked_for(args: argparse.Namespace) -> Asked:
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Asked(
        args.what,
        invocation=f"{started} {commit()}",
        data=args.data.absolute() if args.data else None,
        cache=args.cache,
        extra=tuple(args.extra.split()),
        finetune=SETS[args.what].finetune if args.finetune is None else args.finetune,
        jobs=args.jobs,
        keep=args.keep.absolute() if args.keep else None,
    )


def results_of(path: Path) -> list[frontier.Result]:
    """The lines of a file. Raises `ValueError` for those of something else."""
    results = read(path)
    lines: dict[Key, int] = {}
    for number, result in enumerate(results, 1):
        if "set" not in result:
            raise ValueError(f"{path}, line {number}: must be of benchmarks/quality.py; points.py shows older studies")
        first = lines.setdefault(key(cell_of(result)), number)
        if first != number:
            raise ValueError(f"{path}, line {number}: is the cell of line {first} once more: take one of them out")
    return results


def key(cell: Cell) -> Key:
    """Without the budget, which a line has rounded."""
    return (cell.set, cell.setting, cell.seed, cell.samples)


def run(asked: Asked, wanted: Sequence[Cell], path: Path, console: Console) -> None:
    """Run the cells that are not known and append their lines.

    Raises:
        KeyboardInterrupt: it was stopped; what was running is lost.
        RuntimeError: a command failed; the others that were running have been let end.
    """
    known = {key(cell_of(result)): result for result in results_of(path)}
    left = [cell for cell in wanted if key(cell) not in known]
    console.print(f"{len(wanted) - len(left)} of {len(wanted)} cells are known", highlight=False)
    untuned = sum("finetune_cpu_seconds" not in known[key(cell)] for cell in wanted if key(cell) in known)
    if asked.finetune and untuned:
        console.print(f"{untuned} of them are not fine-tuned, and stay so", highlight=False)
    if not left:
        return
    if asked.keep:
        asked.keep.mkdir(parents=True, exist_ok=True)
        runs = [kept(cell, asked.keep) for cell in left]
        there = [str(run) for run in runs if run.exists()]
        require(not there, "--keep", ", ".join(there), "a folder without the runs that are to come")
    make_ready(asked)
    processes, done = Processes(threads=1), 0

    def work(cell: Cell) -> frontier.Result | None:
        """None: another invocation that writes to the file has run it since."""
        if any(key(cell_of(result)) == key(cell) for result in read(path)):
            return None
        return frontier.run_cell(cell, asked, processes)

    def written(line: frontier.Result | None) -> None:
        nonlocal done
        done += 1
        if line is None:
            return
        write(path, line)
        told = ", ".join(
            f"{name} {100 * line['scores'][name]:.1f} %" for name in asked.study.metrics if name in line["scores"]
        )
        about = f"{line['setting']} × {part(line['budget'])}, seed {line['seed']}: {line['cpu_seconds']:,.0f} s"
        console.print(f"{done}/{len(left)} {about}, {told}", highlight=False, soft_wrap=True)

    with stopped_by_sigterm():
        side_by_side(left, asked.jobs, work, written, processes)


@contextlib.contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM ends as Ctrl-C does: no process is left behind."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def study(args: argparse.Namespace, parser: argparse.ArgumentParser, console: Console) -> int:
    asked = asked_for(args)
    try:
        for result in results_of(args.json):
            if result["set"] == asked.name and result["settings"] != asked.settings():
                parser.error(
                    f"--json {args.json}: its lines of {asked.name} were trained with {result['settings']}, these "
                    f"would be with {asked.settings()}: name another file"
                )
            name, trained = result["setting"], result.get("trained")
            if trained and name in CHANGES and result["set"] == asked.name and trained != asked.trained(name):
                parser.error(
                    f"--json {args.json}: its lines of {asked.name}, {name!r}, were trained with other settings than "
                    f"that means now: name another file"
                )
        same = distinct(asked, CHAIN if args.chain else args.setting or PRESETS)
        for name, other in same.items():
            if other:
                console.print(f"left out: {name}, which trains the very same as {other} here", highlight=False)
        chosen = [name for name, other in same.items() if other is None]
        left = {(name, budget(text)) for name, text in args.without}
        for name, part in left:
            known = name in chosen and part in args.budget
            if not known:
                parser.error(f"--without {name} {part:g}: must be of the settings and budgets that are asked for")
        wanted = [
            cell for cell in cells(asked, chosen, args.budget, args.seeds) if (cell.setting, cell.budget) not in left
        ]
        run(asked, wanted, args.json, console)
    except (UsageError, ValueError, argparse.ArgumentTypeError) as error:
        parser.error(str(error))
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on")
        return STOPPED
    return 0


def show(args: argparse.Namespace, parser: argparse.ArgumentParser, console: Console) -> int:
    try:
        results = results_of(args.json)
    except ValueError as error:
        parser.error(str(error))
    if not results and args.what != "board":
        console.print(f"{args.json} has no lines yet: python benchmarks/quality.py synthetic makes some")
    for view in views(results):
        if args.what == "table":
            for grid in view.grids():
                console.print(grid.rich())
            for note in view.notes():
                console.print(note, highlight=False)
            continue
        from benchmarks.quality_plot import save  # matplotlib, which the study itself does without

        console.print(str(save(view, args.out)), soft_wrap=True)
    if args.what == "board":
        args.out.mkdir(parents=True, exist_ok=True)
        whole = args.json == RESULTS
        lean = read(LEAN) if whole else []
        for view in views(lean):
            from benchmarks.quality_plot import save

            console.print(str(save(view, args.out, "lean")), soft_wrap=True)
        (args.out / PAGE).write_text(page(results, earlier() if whole else (), lean))
        console.print(str(args.out / PAGE), soft_wrap=True)
    return 0


def earlier() -> list[Grid]:
    """Of the project's older studies."""
    return list(quality_earlier.grids(*(read(RESULTS.with_name(name)) for name in ("recipes.jsonl", "quality.jsonl"))))


def main(argv: Sequence[str] | None = None) -> int:
    parser = parser_of()
    args = parser.parse_args(argv)
    check(parser, args)
    console = Console(width=None if sys.stdout.isatty() else 140)
    return (study if args.what in SETS else show)(args, parser, console)


if __name__ == "__main__":
    sys.exit(main())
