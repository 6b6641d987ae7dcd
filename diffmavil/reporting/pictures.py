"""Frames, spectrograms and heat maps as images that stand in a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex
from PIL import Image

from diffmavil.reporting.parts import Picture

COLUMNS = 8
_SIDE = 112
"""Pixels of a frame at most."""
_GAP = 2
_SHARP = 96
"""Frames up to this side are shown pixel by pixel."""
_LONGEST = 1040
HEAT = "inferno"
_SHINE = 0.6
"""How much of the heat covers the frame."""
_WEBP = {"format": "WEBP", "quality": 80, "method": 4}


def webp(image: Image.Image) -> str:
    """A data URI. Of noise, PNG would be several times as large."""
    data = io.BytesIO()
    image.save(data, **_WEBP)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


def as_bytes(video: np.ndarray) -> np.ndarray:
    """Frames in 0..1, or uint8 already, as uint8."""
    return video if video.dtype == np.uint8 else (np.clip(video, 0, 1) * 255).round().astype(np.uint8)


def picks(frames: int, columns: int = COLUMNS) -> list[int]:
    """Which of so many frames are shown: evenly spread, the first and the last among them."""
    return [round(i) for i in np.linspace(0, frames - 1, min(columns, frames))]


def frame_strip(video: np.ndarray, alt: str, columns: int = COLUMNS) -> Picture:
    """Frames `[T, H, W, 3]` side by side, with nothing between them."""
    chosen = as_bytes(video)[picks(len(video), columns)]
    height, width = chosen.shape[1:3]
    side = min(_SIDE, height)
    wide = round(side * width / height)
    sheet = Image.new("RGBA", (len(chosen) * (wide + _GAP) - _GAP, side), (0, 0, 0, 0))
    for number, frame in enumerate(chosen):
        small = Image.fromarray(frame).resize((wide, side), Image.Resampling.LANCZOS)
        sheet.paste(small, (number * (wide + _GAP), 0))
    return Picture(webp(sheet), alt, *sheet.size, sharp=side <= _SHARP)


def spectrogram(spec: np.ndarray, alt: str, low: float, high: float) -> Picture:
    """`[F, M]`, time to the right, low sounds below; colours from `low` to `high`."""
    level = np.clip((spec.T[::-1] - low) / max(high - low, 1e-6), 0, 1)
    coloured = (mpl.colormaps["magma"](level)[..., :3] * 255).round().astype(np.uint8)
    image = Image.fromarray(coloured)
    if image.width > _LONGEST:
        image = image.resize((_LONGEST, image.height), Image.Resampling.BOX)
    return Picture(webp(image), alt, *image.size, sharp=True)


def heat_strip(
    video: np.ndarray, heat: np.ndarray, low: float, high: float, alt: str, columns: int = COLUMNS
) -> Picture:
    """Frames `[T, H, W, 3]` in grey under a heat map `[T', h, w]`, coloured from `low` to `high`."""
    frames = as_bytes(video)
    height, width = frames.shape[1:3]
    shown = []
    for pick in picks(len(frames), columns):
        level = np.clip((heat[pick * len(heat) // len(frames)] - low) / max(high - low, 1e-6), 0, 1)
        soft = Image.fromarray((level * 255).astype(np.uint8)).resize((width, height), Image.Resampling.BILINEAR)
        colour = mpl.colormaps[HEAT](np.asarray(soft) / 255)[..., :3]
        grey = frames[pick].mean(axis=2, keepdims=True) / 255
        shown.append((1 - _SHINE) * grey + _SHINE * colour)
    return frame_strip(np.stack(shown), alt, columns)


def heat_colours(steps: int = 5) -> Sequence[str]:
    """Colours of the scale, for its legend."""
    return [to_hex(mpl.colormaps[HEAT](i / (steps - 1))) for i in range(steps)]
