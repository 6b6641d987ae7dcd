"""Pictures for the report: curves as SVG, reconstructions as PNG, both ready to stand in an HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
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


def svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def png_tag(figure: Figure, alt: str) -> str:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110, bbox_inches="tight", facecolor="white")
    return f'<img alt="{alt}" src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}">'


def curves(records: Sequence[Metrics], panels: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> Figure:
    """One panel for each (title, [(metric, label), ...]), over samples seen; not every record has every metric."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(3.6 * len(panels), 2.6), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, (title, lines) in zip(axes, panels, strict=True):
            for name, label in lines:
                told = [r for r in records if name in r]
                x, y = [r["samples"] for r in told], [r[name] for r in told]
                axis.plot(x, y, label=label, linewidth=1.4, marker="o" if len(told) < _FEW else None, markersize=3)
            axis.set_title(title, loc="left", fontsize=9)
            axis.set_xlabel("samples seen")
            if len(lines) > 1:
                axis.legend(frameon=False, fontsize=8)
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
