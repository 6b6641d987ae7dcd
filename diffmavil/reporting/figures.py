"""Pictures for the report: curves and tables as SVG, reconstructions as WebP, both ready to stand in an HTML page."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import escape
from matplotlib.figure import Figure

from diffmavil.training.metrics import Metrics

mpl.rcParams["svg.fonttype"] = "none"  # text stays text: smaller, and searchable
mpl.rcParams["svg.hashsalt"] = "diffmavil"
_STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 9,
}
_FEW = 20
"""Fewer points of a curve than this are marked."""
_MOST = 1000
"""More points of a curve are not drawn one by one."""
_WIDE = 9.3
"""Inches of a table at most: with the names beside it, as wide as the page."""
_NAME = 32
"""Letters of a class's name at most."""
_DARK = 0.55
"""On a darker cell its number is white."""
_NAMESPACE = re.compile(r' xmlns(:\w+)?="[^"]*"')


def svg(figure: Figure) -> str:
    """As it stands in HTML, which needs no namespaces."""
    text = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(text, format="svg", bbox_inches="tight", metadata=nothing)
    return _NAMESPACE.sub("", text.getvalue()[text.getvalue().index("<svg") :])


def picture_tag(figure: Figure, alt: str) -> str:
    """As WebP: of noise, PNG is several times as large."""
    data = io.BytesIO()
    options = {"quality": 90, "method": 4}
    figure.savefig(data, format="webp", dpi=110, bbox_inches="tight", facecolor="white", pil_kwargs=options)
    return f'<img alt="{escape(alt)}" src="data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}">'


def curves(records: Sequence[Metrics], title: str, lines: Sequence[tuple[str, str]]) -> Figure:
    """A line for each (metric, label), over samples seen; not every record has every metric."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(3.6, 2.6), layout="constrained")
        axis = figure.subplots()
        for name, label in lines:
            told = [r for r in records if name in r and "samples" in r]
            x, y = _thinned(np.array([(r["samples"], r[name]) for r in told], dtype=float).T)
            axis.plot(x, y, label=label, linewidth=1.4, marker="o" if len(x) < _FEW else None, markersize=3)
        axis.set_title(title, loc="left", fontsize=9)
        axis.set_xlabel("samples seen")
        if any(label for _, label in lines):
            axis.legend(frameon=False, fontsize=8)
    return figure


def _thinned(points: np.ndarray) -> np.ndarray:
    """Of more points `[2, N]` than can be seen, means of as many neighbours as make them few enough."""
    together = -(-points.shape[1] // _MOST)
    if together == 1:
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
    figure = Figure(figsize=(cell * len(classes), cell * len(classes)))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1, edgecolors="#e4e4e4", linewidth=0.3)
    for true, answer in zip(*table.nonzero(), strict=True):
        colour = "white" if shares[true, answer] > _DARK else "black"
        where = (answer + 0.5, true + 0.5)
        axis.annotate(f"{table[true, answer]}", where, ha="center", va="center", fontsize=size, color=colour)
    middles = np.arange(len(classes)) + 0.5
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
