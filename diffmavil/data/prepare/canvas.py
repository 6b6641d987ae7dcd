"""Frames of any size, shape and orientation drawn to one size: upright, square pixels, limited-range BT.601.

One matrix and range for all clips: decoders differ in what they do about others.
"""

from __future__ import annotations

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from diffmavil.data.library import BadClip
from diffmavil.data.prepare.settings import SMALLEST
from diffmavil.data.shape import UPRIGHT, Orientation, Shape


class Canvas:
    """The picture of a piece: as the first frame's, with a short side of `short_side` at most.

    A later frame of another shape fills it undistorted; what sticks out is cut off evenly on both sides.

    Attributes:
        size: width and height, even.
    """

    def __init__(self, first: VideoFrame, shape: Shape, short_side: int) -> None:
        """Raises `BadClip` for a picture that is too small."""
        if min(first.width, first.height) < SMALLEST:
            size = f"{first.width}x{first.height}"
            raise BadClip("", f"a picture of {size} pixels: both sides must have {SMALLEST} at least")
        width, height = shape.shown(first)
        scale = min(1.0, short_side / min(width, height))
        self.size = _even(width * scale), _even(height * scale)
        self._reformatter = VideoReformatter()

    def draw(self, frame: VideoFrame, shape: Shape) -> VideoFrame:
        """The frame as yuv420p of `size`."""
        wide, high = shape.orientation.sides(*self.size)
        width, height = _covering(frame.width * shape.aspect / frame.height, wide, high)
        drawn = self._reformatter.reformat(
            frame, width, height, format="yuv420p", dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.MPEG,
            interpolation=Interpolation.AREA, threads=1,
        )  # fmt: skip
        if (width, height) == (wide, high) and shape.orientation == UPRIGHT.orientation:
            return drawn
        return _placed(drawn, shape.orientation, wide, high)


def _even(pixels: float) -> int:
    return max(SMALLEST, 2 * round(pixels / 2))


def _covering(aspect: float, width: int, height: int) -> tuple[int, int]:
    """The least even size of this width over height that covers `width` x `height`; that itself if it is near."""
    wide, high = max(width, 2 * round(height * aspect / 2)), max(height, 2 * round(width / aspect / 2))
    # The canvas was rounded to even pixels: a frame of its own shape may be off by some.
    near = 2 + max(width, height) / min(width, height)
    return (width, height) if wide - width <= near and high - height <= near else (wide, high)


def _placed(frame: VideoFrame, orientation: Orientation, width: int, height: int) -> VideoFrame:
    """The middle `width` x `height` of a yuv420p frame, turned and mirrored."""
    packed = frame.to_ndarray().astype(np.uint8, copy=False)
    luma = packed[: frame.height]
    chroma = packed[frame.height :].reshape(2, frame.height // 2, frame.width // 2)
    left, top = (frame.width - width) // 4, (frame.height - height) // 4  # of the half-size planes
    planes = [luma[2 * top : 2 * top + height, 2 * left : 2 * left + width]]
    planes += [plane[top : top + height // 2, left : left + width // 2] for plane in chroma]
    shown = [orientation.upright(plane) for plane in planes]
    flat = np.concatenate([plane.reshape(-1) for plane in shown])
    placed = VideoFrame.from_ndarray(flat.reshape(-1, shown[0].shape[1]), format="yuv420p")
    placed.colorspace, placed.color_range = frame.colorspace, frame.color_range
    return placed
