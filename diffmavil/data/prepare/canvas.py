"""Frames of any size, shape and orientation drawn to one size: upright, square pixels, limited-range BT.601.

One matrix and range for all clips: decoders differ in what they do about others.
"""

from __future__ import annotations

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from diffmavil.data.library import BadClip
from diffmavil.data.prepare.settings import SMALLEST, Settings
from diffmavil.data.shape import UPRIGHT, Orientation, Shape


class Canvas:
    """The picture of a piece: a region of it as in the first frame, with a short side of `short_side` at most.

    A later frame of another shape fills the whole undistorted; what sticks out is cut off evenly on both sides.

    Attributes:
        size: width and height, even.
    """

    def __init__(self, first: VideoFrame, shape: Shape, settings: Settings) -> None:
        """Raises `BadClip` for a picture, or a region of it, that is too small."""
        if min(first.width, first.height) < SMALLEST:
            size = f"{first.width}x{first.height}"
            raise BadClip("", f"a picture of {size} pixels: both sides must have {SMALLEST} at least")
        width, height = shape.shown(first)
        left, top, right, bottom = settings.region
        wide, high = width * (right - left), height * (bottom - top)
        scale = min(1.0, settings.short_side / min(wide, high))
        self._whole = _even(width * scale), _even(height * scale)
        self.size = _even(wide * scale), _even(high * scale)
        self._corner = _corner(left, self._whole[0], self.size[0]), _corner(top, self._whole[1], self.size[1])
        if min(self._corner) < 0 or min(wide, high) < SMALLEST:
            raise BadClip("", f"a region of {wide:.0f}x{high:.0f} pixels: both sides must have {SMALLEST} at least")
        self._reformatter = VideoReformatter()

    def draw(self, frame: VideoFrame, shape: Shape) -> VideoFrame:
        """The frame as yuv420p of `size`."""
        wide, high = shape.orientation.sides(*self._whole)
        width, height = _covering(frame.width * shape.aspect / frame.height, wide, high)
        drawn = self._reformatter.reformat(
            frame, width, height, format="yuv420p", dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.MPEG,
            interpolation=Interpolation.AREA, threads=1,
        )  # fmt: skip
        if (width, height) != (wide, high) or shape.orientation != UPRIGHT.orientation:
            middle = (drawn.width - wide) // 4 * 2, (drawn.height - high) // 4 * 2
            drawn = _cut(drawn, middle, (wide, high), shape.orientation)
        return drawn if self.size == self._whole else _cut(drawn, self._corner, self.size, UPRIGHT.orientation)


def _corner(share: float, whole: int, part: int) -> int:
    """Where a part begins, even, so that it ends inside the whole; negative if it is longer."""
    return min(2 * round(share * whole / 2), whole - part)


def _even(pixels: float) -> int:
    return max(SMALLEST, 2 * round(pixels / 2))


def _covering(aspect: float, width: int, height: int) -> tuple[int, int]:
    """The least even size of this width over height that covers `width` x `height`; that itself if it is near."""
    wide, high = max(width, 2 * round(height * aspect / 2)), max(height, 2 * round(width / aspect / 2))
    # The canvas was rounded to even pixels: a frame of its own shape may be off by some.
    near = 2 + max(width, height) / min(width, height)
    return (width, height) if wide - width <= near and high - height <= near else (wide, high)


def _cut(frame: VideoFrame, corner: tuple[int, int], size: tuple[int, int], orientation: Orientation) -> VideoFrame:
    """`size` (width, height) of a yuv420p frame from `corner` (left, top) on, all even, turned and mirrored."""
    packed = frame.to_ndarray().astype(np.uint8, copy=False)
    luma = packed[: frame.height]
    chroma = packed[frame.height :].reshape(2, frame.height // 2, frame.width // 2)
    (left, top), (width, height) = corner, size
    planes = [luma[top : top + height, left : left + width]]
    half = slice(top // 2, (top + height) // 2), slice(left // 2, (left + width) // 2)
    planes += [plane[half] for plane in chroma]
    shown = [orientation.upright(plane) for plane in planes]
    flat = np.concatenate([plane.reshape(-1) for plane in shown])
    placed = VideoFrame.from_ndarray(flat.reshape(-1, shown[0].shape[1]), format="yuv420p")
    placed.colorspace, placed.color_range = frame.colorspace, frame.color_range
    return placed
