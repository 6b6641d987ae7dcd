"""Drawing for the synthetic clips: anti-aliased outlined shapes, lines and glows, on all frames of a clip at once.

Frames are float32 `[T, H, W, 3]` in grey levels of 0..255 and are changed in place. Positions are in pixels, x to the
right and y down; what lies outside the frame is cut off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

INK = np.array([15, 15, 20], np.float32)
"""Outlines and lines; dark on every background."""
GLOW = np.array([255, 255, 217], np.float32)
_OUTLINE = 1.8

Outline = Literal["disc", "square", "triangle", "bar", "ring", "cross"]
OUTLINES: tuple[Outline, ...] = ("disc", "square", "triangle", "bar", "ring", "cross")


@dataclass(frozen=True)
class Pose:
    """A shape and where it is in each frame: `[T]` positions, turns in radians, stretches."""

    outline: Outline
    radius: float
    x: np.ndarray
    y: np.ndarray
    turn: np.ndarray
    stretch: np.ndarray
    """Factor on the width; the height is divided by it."""


def draw_shape(frames: np.ndarray, pose: Pose, colour: np.ndarray) -> None:
    """Fill the shape with `colour` (`[3]`) and outline it in ink, which keeps it legible on any background."""
    reach = math.ceil(1.6 * pose.radius) + 3
    side = 2 * reach + 1
    left, top = (np.floor(centre).astype(int) - reach for centre in (pose.x, pose.y))
    grid = np.arange(side, dtype=np.float32)
    dx = grid[None, None, :] + _per_frame(left - pose.x)
    dy = grid[None, :, None] + _per_frame(top - pose.y)
    cos, sin, stretch = _per_frame(np.cos(pose.turn)), _per_frame(np.sin(pose.turn)), _per_frame(pose.stretch)
    distance = _distance(pose.outline, pose.radius, (cos * dx + sin * dy) / stretch, (cos * dy - sin * dx) * stretch)
    outer, inner = (np.clip(0.5 - inset - distance, 0, 1) for inset in (0, _OUTLINE))
    # Premultiplied paint: the colour inside, ink on the rim.
    paint = np.stack([outer, inner], -1) @ np.stack([INK, colour - INK])
    background = 1 - outer[..., None]
    height, width = frames.shape[1:3]
    for t, (x, y) in enumerate(zip(left, top, strict=True)):
        x0, x1, y0, y1 = max(x, 0), min(x + side, width), max(y, 0), min(y + side, height)
        if x0 < x1 and y0 < y1:
            here = t, slice(y0 - y, y1 - y), slice(x0 - x, x1 - x)
            part = frames[t, y0:y1, x0:x1]
            part *= background[here]
            part += paint[here]


def draw_line(frames: np.ndarray, begin: np.ndarray, end: np.ndarray) -> None:
    """Draw a line of ink, 2 pixels wide, between two points `[T, 2]` (x, y)."""
    steps = np.linspace(0, 1, 2 * math.ceil(float(np.abs(end - begin).max())) + 1)
    points = begin[:, None] + steps[:, None] * (end - begin)[:, None]
    height, width = frames.shape[1:3]
    for shift in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x, y = np.moveaxis(np.floor(points + shift).astype(int), -1, 0)
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        frames[np.nonzero(inside)[0], y[inside], x[inside]] = INK


def draw_glow(frames: np.ndarray, centre: np.ndarray, width: np.ndarray, level: np.ndarray) -> None:
    """Add a round glow at `[T, 2]` (x, y); `width` `[T]` is its radius to 1/e, `level` `[T]` 1 for full white."""
    grid = np.arange(frames.shape[1], dtype=np.float32)
    for frame, power, wide, point in zip(frames, level, width, centre, strict=True):
        if power > 0.01:
            column, row = (np.exp(-(((grid - c) / np.float32(wide)) ** 2)).astype(np.float32) for c in point)
            frame += (np.float32(power) * row)[:, None, None] * (column[:, None] * GLOW)


def _per_frame(values: np.ndarray) -> np.ndarray:
    """`[T]` -> float32 `[T, 1, 1]`."""
    return values.astype(np.float32)[:, None, None]


def _distance(outline: Outline, radius: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance in pixels, negative inside, of points in the shape's own axes; its y points down too."""
    if outline == "disc":
        return np.sqrt(x * x + y * y) - radius
    if outline == "triangle":  # one corner up: faces look down and to either side
        slant = math.sqrt(3) / 2 * abs(x) - 0.5 * y
        return np.maximum(slant, y) - radius / 2
    if outline == "ring":
        return abs(np.sqrt(x * x + y * y) - 0.72 * radius) - 0.28 * radius
    if outline == "cross":
        along, across = (np.maximum(abs(a) - radius, abs(b) - 0.34 * radius) for a, b in ((x, y), (y, x)))
        return np.minimum(along, across)
    half_width, half_height = {"square": (0.8, 0.8), "bar": (0.4, 1.3)}[outline]
    return np.maximum(abs(x) - half_width * radius, abs(y) - half_height * radius)
