"""Training beside another busy process: what waiting threads do to its speed.

    python benchmarks/neighbour.py --json benchmarks/results/neighbour-cpu.jsonl

On a CPU the threads of an operator meet at its end. OpenMP lets those that arrive first spin, for about 3 ms with the
libgomp that torch ships; where fewer cores are free than threads run, they spin on the core that the last one needs.
`passive` is what the commands of this project set (`diffmavil.__init__`): they sleep. `spinning` is what torch does by
itself. Each turn trains `diffmavil-tiny` alone and beside one process that counts for ever at nice 10, under either.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
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
from diffmavil.training.metrics import read_metrics

POLICIES = {
    "spinning": {"GOMP_SPINCOUNT": "300000"},  # libgomp's default, in its words
    "passive": {"OMP_WAIT_POLICY": "passive"},
}
PLACES = ("alone", "beside")
Result = dict[str, Any]


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    """One core's worth of work at nice 10, as of another user: in a session of its own.

    Linux groups processes by session (`kernel.sched_autogroup_enabled`), and `nice` counts within a group alone.
    """
    command = ["nice", "-n", "10", sys.executable, "-c", "while True: pass"]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def clips_per_second(policy: str, steps: int, cache: Path | None) -> float:
    """Of a training of `steps` steps, the first interval of ten left out; in a process of its own."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    kept = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        flags = ["--run-dir", str(folder), "--train.no-report", "--train.steps", str(steps)]
        flags += ["--train.log-every", str(max(1, steps // 10)), "--train.checkpoint-every", str(steps)]
        flags += ["--data.cache", str(cache)] if cache else []
        command = [sys.executable, "-m", "diffmavil.train", "diffmavil-tiny", *flags]
        environment = {**kept, **POLICIES[policy], "PYTHONPATH": path}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        records = read_metrics(folder)
    return statistics.harmonic_mean([r["clips_per_second"] for r in records[1:]])


def measure(turns: int, steps: int, cache: Path | None) -> Iterator[Result]:
    """A result for each turn, policy and place; the order of the policies changes from turn to turn."""
    for turn in range(turns):
        policies = sorted(POLICIES, reverse=turn % 2 == 1)
        for place, policy in itertools.product(PLACES, policies):
            with busy_process() if place == "beside" else contextlib.nullcontext():
                rate = clips_per_second(policy, steps, cache)
            yield {"policy": policy, "place": place, "turn": turn, "steps": steps, "clips_per_s": rate}


def table(results: Sequence[Result]) -> Table:
    """Medians over the turns."""
    shown = Table(title="training beside a busy process, clips/s, median", title_justify="left")
    for name in ("policy", *PLACES, "beside / alone"):
        shown.add_column(name, justify="left" if name == "policy" else "right")
    for policy in POLICIES:
        rates = [
            statistics.median(r["clips_per_s"] for r in results if (r["policy"], r["place"]) == (policy, place))
            for place in PLACES
        ]
        shown.add_row(policy, *(f"{rate:.1f}" for rate in rates), f"{rates[1] / rates[0]:.2f}")
    return shown


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/neighbour.py", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--turns", type=int, default=3)
    add("--steps", type=int, default=40, help="of each training (default 40)")
    add("--cache", type=Path, help="where the generated set is kept")
    add("--json", type=Path, metavar="FILE", help="append one line of JSON for each training")
    args = parser.parse_args(argv)
    for name, least in (("turns", 1), ("steps", 2)):
        if getattr(args, name) < least:
            parser.error(f"--{name} {getattr(args, name)}: must be at least {least}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    who = identity(torch.device("cpu"))
    results = []
    for result in measure(args.turns, args.steps, args.cache):
        results.append(result | who)
        if args.json:
            write(args.json, results[-1])
    Console(width=None if sys.stdout.isatty() else 132).print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
