"""Spatial crops: one `Framing` for all frames of a clip.

A framing says how large the whole upright frame is drawn and which `size` x `size` square of that drawing is kept, so
that resizing and conversion to RGB are one pass of swscale, with area averaging when it shrinks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

ASPECT = (3 / 4, 4 / 3)
"""Width over height of the random crop (Inception-style)."""


@dataclass(frozen=True)
class Framing:
    """Draw the frame at `width` x `height`, keep the square of `size` at (`left`, `top`), mirror it if `flip`."""

    width: int
    height: int
    left: int
    top: int
    size: int
    flip: bool = False

    def cut(self, frame: np.ndarray) -> np.ndarray:
        """uint8 `[height, width, 3]` -> view `[size, size, 3]`."""
        square = frame[self.top : self.top + self.size, self.left : self.left + self.size]
        return square[:, ::-1] if self.flip else square


FramingRule = Callable[[float, float], Framing]
"""(width, height) of the upright frame in square pixels -> its framing."""


def centre_framing(size: int) -> FramingRule:
    """The evaluation crop: the short side becomes `size`, the centre is kept."""

    def rule(width: float, height: float) -> Framing:
        scale = size / min(width, height)
        w, h = max(size, round(width * scale)), max(size, round(height * scale))
        return Framing(w, h, (w - size) // 2, (h - size) // 2, size)

    return rule


def random_framing(size: int, scale: tuple[float, float], flip: bool, rng: np.random.Generator) -> FramingRule:
    """The training crop: a share `scale` of the frame's area, aspect ratio 3/4 to 4/3, anywhere, mirrored at random.

    All randomness is drawn here, so that the rule is a pure function of the frame's size. Where the frame is too low
    or too narrow for the drawn crop, the crop is the largest that fits with an aspect ratio in the range.
    """
    area, aspect, x, y, mirror = (float(u) for u in rng.random(5))
    area = scale[0] + area * (scale[1] - scale[0])
    aspect = math.exp(math.log(ASPECT[0]) + aspect * math.log(ASPECT[1] / ASPECT[0]))

    def rule(width: float, height: float) -> Framing:
        w = min(width, math.sqrt(area * width * height * aspect))
        h = min(height, math.sqrt(area * width * height / aspect))
        w, h = min(w, h * ASPECT[1]), min(h, w / ASPECT[0])
        drawn_w, drawn_h = max(size, round(width * size / w)), max(size, round(height * size / h))
        left, top = int(x * (drawn_w - size + 1)), int(y * (drawn_h - size + 1))
        return Framing(drawn_w, drawn_h, left, top, size, flip and mirror < 0.5)

    return rule
