"""Pictures for the report: curves, tables and maps as SVG that follow the page's colours, and strips for files."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from markupsafe import escape
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from diffmavil.training.metrics import Metrics

mpl.rcParams["svg.fonttype"] = "none"  # text stays text: smaller, and searchable
mpl.rcParams["svg.hashsalt"] = "diffmavil"
_INK, _RULE = "#0a0b0c", "#0a0b0d"
COLOURS = tuple(f"#0a0b{number:02x}" for number in range(0xA1, 0xA9))
"""Stand for the page's colours, which are others in the dark: `svg` puts those in their places."""
_OF_PAGE = {_INK: "var(--ink)", _RULE: "var(--rule)"} | {
    colour: f"var(--c{number})" for number, colour in enumerate(COLOURS, 1)
}
_DASHES = ("-", "--", ":", "-.")
"""Runs beyond the number of colours."""
_STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _RULE,
    "axes.grid": True,
    "axes.axisbelow": True,
    "font.size": 9,
}
_FEW = 20
"""Fewer points of a curve than this are marked."""
_MOST = 1000
"""More points of a curve are not drawn one by one."""
_MOST_TOGETHER = 4000
"""Nor more of all curves of a panel."""
_WIDE = 9.3
"""Inches of a table at most: with the names beside it, as wide as the page."""
_NAME = 32
"""Letters of a class's name at most."""
_DARK = 0.55
"""On a darker cell its number is white."""
_CELL = (0.16, 0.42, 0.70)
_NAMESPACE = re.compile(r' xmlns(:\w+)?="[^"]*"')
_ID = re.compile(r' id="([^"]*)"')
MARKS = "osD^vP*X"
"""Of classes beyond the number of colours."""


def svg(figure: Figure, alt: str, *, tight: bool = False) -> str:
    """As it stands in HTML, which needs no namespaces; in the colours of the page.

    tight: cut to what is drawn; else panels of one size stay of one size.
    """
    return _drawn(figure, tight=tight).replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1)


def _drawn(figure: Figure, *, tight: bool = False) -> str:
    text = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(text, format="svg", bbox_inches="tight" if tight else None, transparent=True, metadata=nothing)
    drawn = _NAMESPACE.sub("", text.getvalue()[text.getvalue().index("<svg") :])
    drawn = _ID.sub(lambda found: found[0] if f"#{found[1]}" in drawn else "", drawn)  # a page has several figures
    for colour, of_page in _OF_PAGE.items():
        drawn = drawn.replace(colour, of_page)
    return drawn


class Line(NamedTuple):
    """A line of a panel."""

    label: str
    """Empty: told by the panel's title."""
    points: np.ndarray
    """float64 `[2, N]`: samples seen, value."""
    colour: int

    def in_words(self) -> str:
        first, last = self.points[1, 0], self.points[1, -1]
        return f"{self.label} from {first:.4g} to {last:.4g}".strip()


def points(records: Sequence[Metrics], metric: str) -> np.ndarray:
    """Samples seen and a metric, float64 `[2, N]`; not every record has every metric, and some have no number."""
    told = [(r["samples"], r[metric]) for r in records if np.isfinite(r.get(metric, np.nan)) and "samples" in r]
    return np.array(told, dtype=float).reshape(-1, 2).T


def curves(lines: Sequence[Line], title: str) -> Figure:
    """Lines over samples seen."""
    most = max(100, min(_MOST, _MOST_TOGETHER // len(lines)))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(3.6, 2.6), layout="constrained")
        axis = figure.subplots()
        for line in lines:
            x, y = _thinned(line.points, most)
            colour, dash = COLOURS[line.colour % len(COLOURS)], _DASHES[line.colour // len(COLOURS) % len(_DASHES)]
            mark = "o" if len(x) < _FEW else None
            axis.plot(x, y, label=line.label, color=colour, linestyle=dash, linewidth=1.5, marker=mark, markersize=3)
        axis.set_title(title, loc="left", fontsize=9.5, fontweight="bold")
        axis.set_xlabel("samples seen", fontsize=8)
        axis.locator_params(axis="x", nbins=5)
        if any(line.label for line in lines):
            axis.legend(frameon=False, fontsize=8)
    return figure


def scatter(places: np.ndarray, classes: Sequence[int], title: str) -> Figure:
    """A map: places `[N, 2]`, each with the mark of its class (`class_mark`)."""
    with mpl.rc_context({**_STYLE, "axes.grid": False}):
        figure = Figure(figsize=(3.6, 3.4), layout="constrained")
        axis = figure.subplots()
        for number in sorted(set(classes)):
            x, y = places[[i for i, one in enumerate(classes) if one == number]].T
            colour, mark = class_mark(number)
            axis.scatter(x, y, s=17, color=colour, marker=mark, linewidths=0)
        axis.set_title(title, loc="left", fontsize=9.5, fontweight="bold")
        axis.set_xticks([])
        axis.set_yticks([])
    return figure


def class_mark(number: int) -> tuple[str, str]:
    """Colour and shape; classes beyond the 64 that differ begin anew."""
    return COLOURS[number % len(COLOURS)], MARKS[number // len(COLOURS) % len(MARKS)]


def mark_svg(number: int) -> str:
    """The mark of a class, for a list that tells its name."""
    colour, mark = class_mark(number)
    figure = Figure(figsize=(0.2, 0.2))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.axis("off")
    axis.scatter([0], [0], s=60, color=colour, marker=mark, linewidths=0)
    return _drawn(figure).replace("<svg", '<svg aria-hidden="true"', 1)


def _thinned(points: np.ndarray, most: int) -> np.ndarray:
    """Of more points `[2, N]` than can be seen, means of as many neighbours as make them few enough."""
    together = -(-points.shape[1] // most)
    if together <= 1:
        return points
    whole = points[:, : points.shape[1] // together * together]
    return whole.reshape(2, -1, together).mean(axis=2)


def confusion(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> Figure:
    """Clips by true class (row) and answer (column); cells are coloured by their share of the row."""
    table = np.array(counts)
    shares = table / table.sum(axis=1, keepdims=True).clip(min=1)
    names = [name if len(name) <= _NAME else f"{name[: _NAME - 1]}\N{HORIZONTAL ELLIPSIS}" for name in classes]
    cell = min(0.32, _WIDE / len(classes))
    size = min(8, 42 * cell)
    with mpl.rc_context({**_STYLE, "axes.grid": False}):
        return _confusion(table, shares, names, cell, size)


def _confusion(table: np.ndarray, shares: np.ndarray, names: Sequence[str], cell: float, size: float) -> Figure:
    figure = Figure(figsize=(cell * len(names), cell * len(names)))
    axis = figure.add_axes((0, 0, 1, 1))
    # From nothing to the colour, so that an empty cell has the page's own.
    deeper = ListedColormap([(*_CELL, level / 255) for level in range(256)])
    axis.pcolormesh(shares, cmap=deeper, vmin=0, vmax=1, edgecolors=_RULE, linewidth=0.3)
    for true, answer in zip(*table.nonzero(), strict=True):
        colour = "white" if shares[true, answer] > _DARK else _INK
        where = (answer + 0.5, true + 0.5)
        axis.annotate(f"{table[true, answer]}", where, ha="center", va="center", fontsize=size, color=colour)
    middles = np.arange(len(names)) + 0.5
    axis.set_xticks(middles, names, rotation=90, fontsize=size)
    axis.set_yticks(middles, names, fontsize=size)
    axis.tick_params(length=0)
    axis.invert_yaxis()
    axis.set_xlabel("answer")
    axis.set_ylabel("true class")
    return figure


def frame_strips(rows: Sequence[tuple[str, np.ndarray]], *, columns: int = 8) -> Figure:
    """Rows of frames. Each array is `[T, H, W, 3]` in 0..1, or uint8; `columns` frames of it are shown."""
    figure = Figure(figsize=(1.15 * columns + 1.1, 1.15 * len(rows)))
    grid = figure.add_gridspec(len(rows), columns, wspace=0.04, hspace=0.06)
    for r, (name, video) in enumerate(rows):
        picks = np.linspace(0, len(video) - 1, columns).round().astype(int)
        for c, pick in enumerate(picks):
            axis = figure.add_subplot(grid[r, c])
            axis.imshow(np.clip(video[pick], 0, 1) if video.dtype != np.uint8 else video[pick])
            axis.set_xticks([])
            axis.set_yticks([])
            if c == 0:
                axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    return figure


def spectrogram_rows(rows: Sequence[tuple[str, np.ndarray]]) -> Figure:
    """Spectrograms `[F, M]` one under the other, time to the right, one colour scale (that of the first)."""
    low, high = np.percentile(rows[0][1], [1, 99])
    figure = Figure(figsize=(9.2, 1.0 * len(rows)))
    grid = figure.add_gridspec(len(rows), 1, hspace=0.12)
    for r, (name, spec) in enumerate(rows):
        axis = figure.add_subplot(grid[r, 0])
        axis.imshow(spec.T, origin="lower", aspect="auto", cmap="magma", vmin=low, vmax=high, interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    return figure


def save_png(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=120, bbox_inches="tight", facecolor="white")
