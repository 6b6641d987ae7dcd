"""What the lines of `benchmarks/quality.py` say: a table for each set, and who reaches which score at what cost.

CPU seconds depend on the machine and on what else it does, so they are compared within one invocation of the study
alone: of each set the one that has the most lines. What another one measured is marked with its letter and takes no
part in comparisons by seconds; scores and FLOPs, which depend on neither, are means over all lines.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

from rich.table import Table

from benchmarks.frontier import FROM_SCRATCH, SETS
from benchmarks.settings import BASE, CHANGES

Result = dict[str, Any]
# Student's t at 97.5 % for one to nine degrees of freedom; beyond, the last: a little wider than need be.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


class Score(NamedTuple):
    """Of one metric over seeds."""

    mean: float
    sd: float | None
    """None: of one seed."""
    half: float | None
    """Half of the 95 % interval; None: no interval is known."""


class Grid(NamedTuple):
    """A table, for a terminal or a page. Cells may be **strong**."""

    title: str
    heads: list[str]
    rows: list[list[str]]
    words: int = 1
    """So many columns hold words; the others numbers."""

    def rich(self) -> Table:
        table = Table(title=self.title, title_justify="left")
        for i, head in enumerate(self.heads):
            table.add_column(head, justify="left" if i < self.words else "right")
        for row in self.rows:
            table.add_row(*(re.sub(r"\*\*(.+?)\*\*", r"[bold]\1[/bold]", cell) for cell in row))
        return table

    def markdown(self) -> str:
        rule = ["---" if i < self.words else "---:" for i in range(len(self.heads))]
        return "\n".join(f"| {' | '.join(row)} |" for row in (self.heads, rule, *self.rows))


@dataclass(frozen=True)
class Point:
    """One setting at one budget, over its seeds."""

    setting: str
    budget: float
    rows: tuple[Result, ...]

    @property
    def samples(self) -> int:
        return self.rows[0]["samples"]

    @property
    def tflop(self) -> float:
        return statistics.mean(row["tflop"] for row in self.rows)

    def score(self, metric: str) -> Score | None:
        rows = [row for row in self.rows if metric in row["scores"]]
        intervals = [row["intervals"][metric] for row in rows if metric in row["intervals"]]
        return summed([row["scores"][metric] for row in rows], intervals)

    def seconds(self, invocation: str) -> float | None:
        """Mean CPU seconds of what that invocation measured."""
        found = [row["cpu_seconds"] for row in self.rows if row["invocation"] == invocation]
        return statistics.mean(found) if found else None


def summed(values: Sequence[float], intervals: Sequence[Sequence[float]]) -> Score | None:
    """Mean, deviation and interval of the scores of several seeds, whose own intervals know of the clips alone.

    The clips are the same for all seeds, so that their part does not shrink with more of these. To draw three seeds
    again and again would tell too little of their spread; hence Student's t.
    """
    if not values:
        return None
    mean, n = statistics.mean(values), len(values)
    clips = statistics.mean((high - low) / 2 for low, high in intervals) if intervals else None
    if n == 1:
        return Score(mean, None, clips)
    sd = statistics.stdev(values)
    seeds = T_QUANTILES[min(n - 1, len(T_QUANTILES)) - 1] * sd / n**0.5
    return Score(mean, sd, None if clips is None else (seeds**2 + clips**2) ** 0.5)


class View:
    """The lines of one set."""

    def __init__(self, results: Sequence[Result], name: str) -> None:
        self.name, self.study = name, SETS[name]
        self.rows = [row for row in results if row["set"] == name]
        names = dict.fromkeys((*CHANGES, *(row["setting"] for row in self.rows)))
        keys = {(row["setting"], row["samples"]): row["budget"] for row in self.rows}
        self.points = [
            Point(name, budget, tuple(row for row in self.rows if (row["setting"], row["samples"]) == (name, samples)))
            for name in names
            for (setting, samples), budget in sorted(keys.items())
            if setting == name and name != FROM_SCRATCH
        ]
        lines = Counter(row["invocation"] for row in self.rows)
        self.letters = {name: _letter(i) for i, name in enumerate(sorted(lines))}
        self.invocation = max(sorted(lines), key=lambda name: lines[name]) if lines else ""
        """The one whose CPU seconds are compared."""

    @property
    def metrics(self) -> dict[str, str]:
        return {
            name: words for name, words in self.study.metrics.items() if any(name in r["scores"] for r in self.rows)
        }

    def headlines(self) -> list[str]:
        """What costs are set against: the first metric, and fine-tuning where it is measured."""
        tuned = [name for name in self.metrics if name.startswith("finetune")]
        return list(dict.fromkeys([*list(self.metrics)[:1], *tuned[:1]]))

    def untrained(self, metric: str) -> Score | None:
        """What no pretraining gives: of the untrained model, or of fine-tuning from scratch."""
        if metric.startswith("finetune"):
            rows = tuple(row for row in self.rows if row["setting"] == FROM_SCRATCH)
            return Point(FROM_SCRATCH, 0.0, rows).score(metric)
        found: dict[int, set[float]] = defaultdict(set)
        for row in self.rows:  # models of one kind and seed are one, under whatever setting they stand
            if metric in row["untrained"]:
                found[row["seed"]].add(row["untrained"][metric])
        return summed([statistics.mean(values) for values in found.values()], [])

    def chance(self, metric: str) -> float | None:
        return next((r["chance"][metric] for r in self.rows if metric in r.get("chance", {})), None)

    def seconds(self, point: Point) -> str:
        mine = point.seconds(self.invocation)
        if mine is not None:
            return f"{mine:,.0f}"
        other = min(row["invocation"] for row in point.rows)
        return f"{point.seconds(other):,.0f} ({self.letters[other]})"

    def grids(self) -> Iterator[Grid]:
        for metric in self.headlines():
            yield self.scores(metric)
            yield self.reached(metric)
        if len(self.metrics) > len(self.headlines()):
            yield self.others()

    def scores(self, metric: str) -> Grid:
        """Settings and budgets by one metric, with what they cost."""
        heads = ["setting", "×", "samples", "seeds", "score", "95 %", "of MAViL", "CPU s", "TFLOP"]
        base = {(r["seed"], r["samples"]): r["scores"].get(metric) for r in self.rows if r["setting"] == BASE}
        rows = []
        nothing, chance = self.untrained(metric), self.chance(metric)
        if nothing:
            name = FROM_SCRATCH if metric.startswith("finetune") else "untrained"
            rows.append([name, "0", "0", "", percent(nothing), interval(nothing), "", "0", "0"])
        for point in self.points:
            score = point.score(metric)
            if score is None:
                continue
            pairs = [(r["scores"].get(metric), base.get((r["seed"], r["samples"]))) for r in point.rows]
            both = [a - b for a, b in pairs if a is not None and b is not None]
            gains = summed(both, [])
            some = f" ({len(both)} of {len(pairs)})" if len(both) < len(pairs) else ""
            rows.append(
                [
                    point.setting,
                    part(point.budget),
                    f"{point.samples:,}",
                    str(len(point.rows)),
                    percent(score),
                    interval(score),
                    percent(gains, "+") + some if gains and point.setting != BASE else "",
                    self.seconds(point),
                    f"{point.tflop:,.1f}",
                ]
            )
        title = f"{self.study.title}: {self.metrics[metric]}, %" + (f" (chance {100 * chance:.1f})" if chance else "")
        return Grid(title, heads, rows)

    def others(self) -> Grid:
        """The other metrics, means and deviations alone."""
        names = [name for name in self.metrics if name not in self.headlines()]
        rows = [["untrained, or from scratch", "0", *(percent(self.untrained(name)) for name in names)]]
        rows += [[p.setting, part(p.budget), *(percent(p.score(name)) for name in names)] for p in self.points]
        chances = [self.chance(name) for name in names]
        rows.append(["chance", "", *("" if chance is None else f"{100 * chance:.1f}" for chance in chances)])
        return Grid(f"{self.study.title}, %", ["setting", "×", *(self.metrics[name] for name in names)], rows)

    def thresholds(self, metric: str) -> Iterator[tuple[str, float, Point | None]]:
        """Name, score, and whose it is: a point is held against the same seeds of that alone. None: nobody's."""
        nothing = self.untrained(metric)
        if nothing:
            yield (FROM_SCRATCH if metric.startswith("finetune") else "untrained"), nothing.mean, None
        base = next((p for p in self.points if (p.setting, p.budget) == (BASE, 1)), None)
        whole = base and base.score(metric)
        if whole and whole.sd is not None:
            yield f"{BASE} × 1, less its deviation", whole.mean - whole.sd, base
        if whole:
            yield f"{BASE} × 1", whole.mean, base

    def reached(self, metric: str) -> Grid:
        """Who reaches which score at what cost: of each setting the fewest samples measured that did."""
        rows = []
        for name, value, base in self.thresholds(metric):
            first: dict[str, Point | None] = {}
            for point in self.points:
                above = self._above(point, metric, value, base)
                if above is not None and first.setdefault(point.setting, None) is None and above >= 0:
                    first[point.setting] = point
            found = [point for point in first.values() if point]
            least = min((point.tflop for point in found), default=None)
            timed = [s for s in (point.seconds(self.invocation) for point in found) if s is not None]
            goal = f"{name}: {100 * value:.1f}"
            for setting, point in first.items():
                if point is None:
                    continue
                seconds = self.seconds(point)
                rows.append(
                    [
                        goal,
                        setting,
                        part(point.budget),
                        percent(point.score(metric)),
                        strong(seconds, bool(timed) and point.seconds(self.invocation) == min(timed)),
                        strong(f"{point.tflop:,.1f}", point.tflop == least),
                        measured(point.rows),
                    ]
                )
            missed = [setting for setting, point in first.items() if point is None]
            if missed:
                rows.append([goal, "; ".join(missed), "not reached", "", "", "", ""])
        title = f"{self.study.title}: who reaches which score of {self.metrics[metric]} at what cost"
        heads = ["at least, %", "setting", "×", "score", "CPU s", "TFLOP", "commit, date"]
        return Grid(title, heads, rows, words=2)

    def _above(self, point: Point, metric: str, value: float, base: Point | None) -> float | None:
        """How far a point's score is above `value`, a mean of `base` over all of its seeds or a part of that; where
        only some seeds are common, by these alone. None: none is."""
        scores = {row["seed"]: row["scores"][metric] for row in point.rows if metric in row["scores"]}
        if base is None:
            return statistics.mean(scores.values()) - value if scores else None
        theirs = {row["seed"]: row["scores"][metric] for row in base.rows if metric in row["scores"]}
        common = scores.keys() & theirs.keys()
        if not common:
            return None
        gain = statistics.mean(scores[seed] - theirs[seed] for seed in common)
        return gain + statistics.mean(theirs.values()) - value

    def notes(self) -> list[str]:
        """What is to be known of the lines: when, where, and what cannot be compared."""
        clips = sorted({row["clips"] for row in self.rows})
        notes = [f"Held-out clips: {' or '.join(map(str, clips))}."]
        for name, letter in self.letters.items():
            rows = [row for row in self.rows if row["invocation"] == name]
            versions = ", ".join(f"{package} {version}" for package, version in rows[0]["versions"].items())
            loads = [row["load"] for row in rows]
            jobs = " and ".join(map(str, sorted({row["jobs"] for row in rows})))
            count = f"{len(rows)} line{'s' * (len(rows) > 1)}"
            notes.append(
                f"Invocation {letter}: {count}, {measured(rows)}, {rows[0]['device']}, {jobs} side by side in it, "
                f"load {min(loads):.1f} to {max(loads):.1f}; {versions}."
            )
        if len(self.letters) > 1:
            notes.append(
                f"CPU seconds are of invocation {self.letters[self.invocation]}, and compared within it alone; those "
                "with another letter in brackets take no part in that."
            )
        if len({frozenset(row["seed"] for row in point.rows) for point in self.points}) > 1:
            notes.append(
                f"The study is not complete: rows differ in their seeds. Who reaches a score of {BASE} is decided by "
                "the seeds that both have."
            )
        return notes


def _letter(index: int) -> str:
    """a to z, then aa."""
    return (_letter(index // 26 - 1) if index >= 26 else "") + chr(ord("a") + index % 26)


def part(budget: float) -> str:
    """1/4, 1, 3/2."""
    return str(Fraction(budget).limit_denominator(1000))


def percent(score: Score | None, sign: str = "") -> str:
    if score is None:
        return ""
    return f"{100 * score.mean:{sign}.1f}" + (f" ± {100 * score.sd:.1f}" if score.sd is not None else "")


def interval(score: Score) -> str:
    if score.half is None:
        return ""
    low, high = max(0.0, score.mean - score.half), min(1.0, score.mean + score.half)
    return f"{100 * low:.1f} to {100 * high:.1f}"


def strong(cell: str, wanted: bool) -> str:
    return f"**{cell}**" if wanted else cell


def measured(rows: Sequence[Result]) -> str:
    """Commits, and from which day to which."""
    days = sorted({row["date"][:10] for row in rows})
    return f"{' '.join(sorted({row['commit'] for row in rows}))}, {' to '.join(dict.fromkeys((days[0], days[-1])))}"


def views(results: Sequence[Result]) -> list[View]:
    """Of the sets that have lines."""
    return [View(results, name) for name in SETS if any(row["set"] == name for row in results)]
