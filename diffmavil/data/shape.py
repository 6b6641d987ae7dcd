"""How a decoded frame is to be shown: turned and mirrored as its display matrix says, with the shape of its pixels."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from av.sidedata.sidedata import SideData, SideDataContainer, Type
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from diffmavil.data.library import library_errors

_Number = TypeVar("_Number", int, float)
_ASPECTS = (0.1, 10.0)
"""Width over height that a pixel can have; what damaged files claim beyond is no shape, and a huge picture."""


class Orientation(NamedTuple):
    """One of eight: the coded picture is transposed first, then mirrored."""

    transposed: bool = False
    left_right: bool = False
    upside_down: bool = False

    def upright(self, pixels: np.ndarray) -> np.ndarray:
        """View `[H, W, ...]` of a coded plane or picture as it is shown."""
        if self.transposed:
            pixels = pixels.swapaxes(0, 1)
        if self.upside_down:
            pixels = pixels[::-1]
        return pixels[:, ::-1] if self.left_right else pixels

    def sides(self, width: _Number, height: _Number) -> tuple[_Number, _Number]:
        """Width and height, coded to shown, or shown to coded."""
        return (height, width) if self.transposed else (width, height)


_TURNS = (Orientation(), Orientation(True, False, True), Orientation(False, True, True), Orientation(True, True, False))
"""By quarters against the clock."""


def orientation_of(frame: VideoFrame) -> Orientation:
    """What the frame's display matrix says, to the nearest quarter.

    The matrix takes column x and row y of the coded picture to (a x + c y, b x + d y) of the shown one; its angle alone
    does not tell a mirrored picture from a turned one.
    """
    try:
        # Not `frame.side_data`: frame and data would hold each other, and the decoder not get its memory back.
        found: SideData | None = cast("Any", SideDataContainer)(frame).get(Type.DISPLAYMATRIX)
    except ValueError:  # PyAV knows not every kind of side data; the angle it still gives
        return _TURNS[round(frame.rotation / 90) % 4]
    if found is None:
        return Orientation()
    a, b, _, c, d = np.frombuffer(memoryview(found), np.int32, 5).astype(float)
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)


class Shape(NamedTuple):
    """How a frame is to be shown. `aspect`: width over height of its pixels."""

    aspect: float
    orientation: Orientation

    def shown(self, frame: VideoFrame) -> tuple[float, float]:
        """Width and height of the upright frame in square pixels."""
        return self.orientation.sides(frame.width * self.aspect, float(frame.height))


UPRIGHT = Shape(1.0, Orientation())
"""Of prepared clips."""


class Shapes:
    """Callable: frame -> `Shape`, for every frame that a decoder gives, when it gives it; made before the first.

    Streams may change both in the middle. Where the container says another aspect ratio than the codec, it knows
    better, and for the whole file. How pictures lie is asked of keyframes; those that follow lie alike.
    """

    def __init__(self, stream: VideoStream) -> None:
        said, coded = stream.sample_aspect_ratio, stream.codec_context.sample_aspect_ratio
        self._context = stream.codec_context
        self._fixed = said if said and said != coded else None
        self._orientation: Orientation | None = None

    def __call__(self, frame: VideoFrame) -> Shape:
        with library_errors():
            if self._orientation is None or frame.key_frame:
                self._orientation = orientation_of(frame)
            aspect = float(self._fixed or self._context.sample_aspect_ratio or 1)
        return Shape(aspect if _ASPECTS[0] <= aspect <= _ASPECTS[1] else 1.0, self._orientation)
