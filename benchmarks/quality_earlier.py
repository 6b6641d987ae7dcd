"""What was measured at one budget alone: the lines of `points.py` and `recipes.py`, as tables of the board."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks.quality_view import Grid, measured, percent, summed
from benchmarks.recipes import SCRATCH, by_seed, probe_of, tuned_by

Result = dict[str, Any]
HEADS = ["score", "setting", "samples", "seeds", "%", "untrained, or from scratch, %", "CPU s", "commit, date"]


class Shown(NamedTuple):
    """A row for each setting: one score of a recipe."""

    words: str
    task: str | None
    """Of fine-tuning; None: a probe."""
    kinds: tuple[str, ...] = ()
    """Of features, for a probe."""


RECIPES = {
    "grid": (
        "GRID, words of one speaker",
        128_000,
        (
            Shown("probe, audio", None, ("audio",)),
            Shown("probe, video", None, ("video",)),
            Shown("probe, fused", None, ("fused",)),
            Shown("fine-tuned, audio", "audio"),
            Shown("fine-tuned, fused", "av"),
        ),
    ),
    "esc10": (
        "ESC-10, mean of five folds",
        38_400,
        (Shown("probe", None, ("audio",)), Shown("fine-tuned", "auto")),
    ),
    "fsdd": (
        "Free Spoken Digits",
        64_000,
        (Shown("probe", None, ("audio",)), Shown("fine-tuned", "auto")),
    ),
}
"""Recipe -> title, samples of the pretraining, what is shown."""
POINTS = {
    "synthetic": ("Generated set", "trained:probe/fused", "untrained:probe/fused", "probe, fused"),
    "fsdd": ("Free Spoken Digits, mean token, the step alone", "probe", "untrained_probe", "probe"),
}
"""Study -> title, key of the score, key of the untrained one, words."""
ONE_MODEL = " ± 0.0"
"""What the untrained model of several seeds ends in where it was the same."""
SETTINGS = ("mavil-tiny", "diffmavil-tiny", "diffmavil-tiny-fast")


def grids(recipes: Sequence[Result], points: Sequence[Result]) -> Iterator[Grid]:
    """A table for each set that has lines."""
    for study, (title, score, untrained, words) in POINTS.items():
        mine = [row for row in points if row["study"] == study]
        if mine:
            yield Grid(f"{title}, %", HEADS, list(_points(mine, score, untrained, words)), words=2)
    for recipe, (title, samples, shown) in RECIPES.items():
        mine = [row for row in recipes if row["recipe"] == recipe]
        if mine:
            yield Grid(f"{title}, %", HEADS, [row for one in shown for row in _recipe(mine, samples, one)], words=2)


def _points(rows: Sequence[Result], score: str, untrained: str, words: str) -> Iterator[list[str]]:
    groups = dict.fromkeys((row["setting"], row["samples"]) for row in rows)
    for setting, samples in sorted(groups, key=lambda one: (one[0].partition(",")[0] not in SETTINGS[:1], *one)):
        mine = [row for row in rows if (row["setting"], row["samples"]) == (setting, samples)]
        yield [
            words,
            setting,
            f"{samples:,}",
            str(len(mine)),
            percent(summed([row[score] for row in mine], [])),
            percent(summed([row[untrained] for row in mine], [])).removesuffix(ONE_MODEL),
            f"{statistics.mean(row['cpu_seconds'] for row in mine):,.0f}",
            measured(mine),
        ]


def _recipe(rows: Sequence[Result], samples: int, shown: Shown) -> Iterator[list[str]]:
    value = probe_of("trained", shown.kinds) if shown.task is None else tuned_by(shown.task)
    scratch = [row for row in rows if row["source"] == SCRATCH]
    for setting in SETTINGS:
        mine = [row for row in rows if row["source"] == setting]
        if not mine:
            continue
        nothing = by_seed(mine, probe_of("untrained", shown.kinds)) if shown.task is None else by_seed(scratch, value)
        yield [
            shown.words,
            setting,
            f"{samples:,}",
            str(len({row["seed"] for row in mine})),
            by_seed(mine, value),
            nothing.removesuffix(ONE_MODEL),
            f"{statistics.mean(row['pretrain_cpu_seconds'] for row in mine):,.0f}",
            measured(mine),
        ]
