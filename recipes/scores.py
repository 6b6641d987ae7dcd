"""What several fine-tuned runs score together, as the folds of ESC: `python -m recipes.scores runs/esc10/fold*`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from diffmavil.config import require
from diffmavil.config.cli import parse_flags, run_main
from diffmavil.config.errors import usage_errors
from diffmavil.evaluation.classification import CLASSIFICATION_FILE, Classification, read_classification, shown


@dataclass(frozen=True)
class Options:
    """The chosen score of each run, their mean, and how much they spread."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of fine-tuned runs."""

    def __post_init__(self) -> None:
        require(len(self.runs) > 0, "RUNS", self.runs, "folders of fine-tuned runs")


def main(argv: Sequence[str]) -> None:
    with usage_errors():
        options = parse_flags(Options, argv, prog="python -m recipes.scores")
        found = {run: scores(run) for run in options.runs}
        metrics = {classification.headline["metric"] for classification in found.values()}
        require(len(metrics) == 1, "RUNS", sorted(metrics), "scored by one metric")
    Console(soft_wrap=True, highlight=False).print(table(found, metrics.pop()))


def scores(run: Path) -> Classification:
    """What the run scored. Raises `ValueError` for a folder without."""
    found = read_classification(run)
    require(found is not None, "RUNS", str(run), f"a run that was fine-tuned to its end (no {CLASSIFICATION_FILE})")
    assert found
    return found


def table(found: dict[Path, Classification], metric: str) -> Table:
    """A row for each run: the metric by the weights that were chosen; then the mean, with the standard deviation."""
    rows = Table("run", "weights", metric)
    values = []
    for run, scored in found.items():
        weights, crops = scored.headline["weights"], scored.headline["crops"]
        values.append(scored.results[weights][crops][metric])
        rows.add_row(str(run), weights, shown(metric, values[-1], scored.intervals[weights][crops].get(metric)))
    spread = f" ± {shown(metric, statistics.stdev(values))}" if len(values) > 1 else ""
    rows.add_row(f"mean of {len(values)}", "", shown(metric, statistics.mean(values)) + spread)
    return rows


if __name__ == "__main__":
    run_main(main)
