"""Pictures of the study of quality: of each set, every metric against CPU seconds and against TFLOP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.frontier import FROM_SCRATCH
from benchmarks.quality_board import picture
from benchmarks.quality_view import Point, View, measured

# Okabe and Ito's palette, told apart by colour-blind readers too; shapes say it again.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_OF_SETTING = 0.27
"""Inches of the legend's line."""
Cost = Callable[[Point], float | None]


def draw(view: View) -> Figure:
    """A row for each metric: left CPU seconds, of one invocation alone, right TFLOP."""
    metrics, settings = list(view.metrics), len({point.setting for point in view.points})
    with plt.rc_context({"font.size": 12, "xtick.labelsize": 11}):
        size = (7.2, 2.6 * len(metrics) + 1.1 + _OF_SETTING * (settings + 1))
        figure, panels = plt.subplots(
            len(metrics), 2, figsize=size, sharex="col", sharey="row", squeeze=False, layout="constrained"
        )
        costs: list[tuple[str, Cost]] = [
            ("CPU seconds", lambda point: point.seconds(view.invocation)),
            ("TFLOP", lambda point: point.tflop),
        ]
        for metric, row in zip(metrics, panels, strict=True):
            for (_, cost), axes in zip(costs, row, strict=True):
                _panel(axes, view, metric, cost)
            row[0].set_ylabel(f"{view.metrics[metric].replace(', ', chr(10))}, %")
        for (name, _), axes in zip(costs, panels[-1], strict=True):
            axes.set_xlabel(f"{name} of the pretraining")
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=1 if len(labels) > 4 else 2, frameon=False)
        figure.suptitle(_title(view), fontsize=11)
    return figure


def _panel(axes: Axes, view: View, metric: str, cost: Cost) -> None:
    """Lines of settings over their budgets; bars are standard deviations over the seeds."""
    for i, setting in enumerate(dict.fromkeys(point.setting for point in view.points)):
        found = [
            (x, score)
            for point in view.points
            if point.setting == setting and (x := cost(point)) is not None and (score := point.score(metric))
        ]
        axes.errorbar(
            [x for x, _ in found],
            [100 * score.mean for _, score in found],
            yerr=[100 * (score.sd or 0.0) for _, score in found],
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[(i + i // len(COLOURS)) % len(MARKERS)],  # an eighth setting has a colour again, not a shape
            markersize=7,
            capsize=4,
            label=setting,
        )
    nothing = view.untrained(metric)
    if nothing:
        label = (
            f"untrained, or {FROM_SCRATCH}"
            if any(name.startswith("finetune") for name in view.metrics)
            else "untrained"
        )
        axes.axhline(100 * nothing.mean, color="#555555", linestyle="--", linewidth=2, label=label)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.10g}"))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)


def _title(view: View) -> str:
    seconds = [row for row in view.rows if row["invocation"] == view.invocation]
    text = (
        f"{view.study.title}: mean ± standard deviation over the seeds\n{measured(view.rows)}, {view.rows[0]['device']}"
    )
    if len(view.letters) > 1:
        text += f"\nCPU seconds: {len(seconds)} of {len(view.rows)} lines, of one invocation"
    return text


def save(view: View, folder: Path, study: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / picture(view.name, study)
    figure = draw(view)
    figure.savefig(path, dpi=140)
    plt.close(figure)
    return path
