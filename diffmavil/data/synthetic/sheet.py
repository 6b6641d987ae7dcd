"""Contact sheet: a clip of each class, its frames over time beside its spectrogram."""

from __future__ import annotations

import csv
from pathlib import Path

import av
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffmavil.data.synthetic.latents import KINDS
from diffmavil.data.synthetic.scene import FPS
from diffmavil.data.synthetic.sound import RATE

_SHOWN = [kind.name for kind in KINDS if kind.bright == kind.humming]
"""Half of the classes: every material twice."""
_FRAMES = 8
_EVERY = 3  # of the clip's frames
_FIRST = 8
_WINDOW, _HOP = 512, 64


def contact_sheet(folder: Path, path: Path) -> None:
    """Draw the last clip of each class of a set made by `ensure_synthetic` and save it as PNG.

    Everything is decoded from the mp4 files. Both halves of a row show the same seconds.
    """
    with open(folder / "clips.csv", newline="") as handle:
        clips = {row["labels"]: row["path"] for row in csv.DictReader(handle)}
    missing = sorted(set(_SHOWN) - set(clips))
    if missing:
        raise ValueError(f"folder={str(folder)!r}: must hold a clip of every class shown, lacks {', '.join(missing)}")
    figure = Figure(figsize=(14, 0.3 + 1.06 * len(_SHOWN)), dpi=72)
    rows = figure.subplots(
        len(_SHOWN), _FRAMES + 1, gridspec_kw={"width_ratios": [1] * _FRAMES + [3.4], "wspace": 0.04, "hspace": 0.04}
    )
    figure.subplots_adjust(left=0.075, right=0.965, top=0.972, bottom=0.025)
    for name, axes in zip(_SHOWN, rows, strict=True):
        frames, wave = _decode(folder / clips[name])
        _draw_row(name, frames, wave, axes)
    for index, axis in enumerate(rows[0][:-1]):
        axis.set_title(f"{(_FIRST + index * _EVERY) / FPS:.2f} s", fontsize=9, pad=3)
    rows[0][-1].set_title("the same seconds, 0 to 8 kHz; ticks: the frames", fontsize=9, pad=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_row(name: str, frames: np.ndarray, wave: np.ndarray, axes: np.ndarray) -> None:
    for index, axis in enumerate(axes[:-1]):
        axis.imshow(frames[_FIRST + index * _EVERY], interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_visible(False)
    axes[0].set_ylabel(name.replace("-", "\n"), rotation=0, ha="right", va="center", fontsize=8, labelpad=6)
    _draw_spectrogram(wave, axes[-1])


def _draw_spectrogram(wave: np.ndarray, axis: Axes) -> None:
    """Power in dB of the seconds that the frames span, half a frame's step more at either end."""
    half = _EVERY / FPS / 2
    begin, end = _FIRST / FPS - half, (_FIRST + _FRAMES * _EVERY) / FPS - half
    part = wave[round(begin * RATE) - _WINDOW // 2 : round(end * RATE) + _WINDOW // 2]
    windows = np.lib.stride_tricks.sliding_window_view(part, _WINDOW)[::_HOP] * np.hanning(_WINDOW)
    decibel = 20 * np.log10(np.abs(np.fft.rfft(windows)) + 1e-3)
    axis.imshow(
        decibel.T, origin="lower", aspect="auto", cmap="magma", vmin=-45, vmax=35, extent=(begin, end, 0, RATE / 2000)
    )
    axis.set_xticks((_FIRST + np.arange(_FRAMES) * _EVERY) / FPS, labels=[])
    axis.tick_params(length=2.5)
    axis.yaxis.tick_right()
    axis.set_yticks([2, 4, 6], labels=["2", "4", "6"], fontsize=7)


def _decode(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """All frames uint8 `[T, H, W, 3]` and the mono waveform `[S]`."""
    frames, parts = [], []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0, audio=0):
            if isinstance(frame, av.VideoFrame):
                frames.append(frame.to_ndarray(format="rgb24"))
            elif isinstance(frame, av.AudioFrame):
                parts.append(frame.to_ndarray()[0])
    return np.stack(frames), np.concatenate(parts)
