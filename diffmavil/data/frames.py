"""Frames of a window: decoded in order with their times, chosen by time, drawn upright and cropped."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from av.audio.stream import AudioStream
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from diffmavil.config import VideoConfig
from diffmavil.data.extent import seconds_of, tick_of
from diffmavil.data.library import library_errors
from diffmavil.data.media import BY_NUMBER, Media
from diffmavil.data.shape import Shape, Shapes
from diffmavil.data.transforms import FramingRule
from diffmavil.data.windows import Span

_ANY_DELAY = ("h264", "hevc", "vvc")
"""Codecs that may hold back any number of frames. Others hold back one, and leave out B frames that belong to what came
before the keyframe."""
_LEADING = 32
"""More packets than those of a keyframe and of pictures that appear before it."""


def decoded_of(
    media: Media,
    stream: VideoStream | AudioStream,
    packets: list[Packet],
    damaged: list[Packet | None] | None = None,
) -> Iterator[Any]:
    """Frames in presentation order; packets that cannot be decoded are left out, and put into `damaged`."""
    for packet in [*packets, None]:
        media.deadline.check()
        try:
            frames = stream.codec_context.decode(packet)
        except Exception:  # the library's, of whatever class
            frames = []
            if damaged is not None:
                damaged.append(packet)
        yield from frames


class Disordered(Exception):
    """Frames whose time stamps do not rise, or are guesses: the stamps are not presentation times."""


def timed_frames(
    media: Media, packets: list[Packet], damaged: list[Packet | None]
) -> Iterator[tuple[float, VideoFrame]]:
    """Each frame of the picture with the second at which it appears; packets that cannot be decoded are `damaged`.

    Raises `Disordered` when the stamps turn out not to be presentation times: then `counted_frames` gives them.
    """
    if media.container.format.name in BY_NUMBER:
        raise Disordered
    return _timed(decoded_of(media, media.video, packets, damaged), tick_of(media.video))


def counted_frames(
    media: Media, packets: list[Packet], damaged: list[Packet | None]
) -> Iterator[tuple[float, VideoFrame]]:
    """As `timed_frames`, where there are no presentation times: frames follow each other as the packets do."""
    context = media.video.codec_context
    context.flush_buffers()
    damaged.clear()
    due = sorted(packet.dts for packet in packets if packet.dts is not None)
    counted = _by_order if context.name in _ANY_DELAY else _by_packet
    tick = tick_of(media.video)
    return ((stamp * tick, frame) for stamp, frame in counted(media, packets, damaged, due))


def _by_packet(
    media: Media, packets: list[Packet], damaged: list[Packet | None], due: list[int]
) -> Iterator[tuple[int, VideoFrame]]:
    """A frame knows the packet that brought it out: its own, or with B frames the one behind."""
    context = media.video.codec_context
    place = -1
    for frame in decoded_of(media, media.video, packets, damaged):
        place = place + 1 if frame.dts is None else bisect_left(due, frame.dts) - bool(context.has_b_frames)
        if due:
            yield due[max(0, min(place, len(due) - 1))], frame


def _by_order(
    media: Media, packets: list[Packet], damaged: list[Packet | None], due: list[int]
) -> Iterator[tuple[int, VideoFrame]]:
    """The k-th frame belongs to the k-th packet of those that give one."""
    due = due[_leading(media, packets) :]
    lost = 0
    for frame in decoded_of(media, media.video, packets, damaged):
        for packet in damaged[lost:]:
            if packet is not None and packet.dts in due:
                due.remove(packet.dts)
        lost = len(damaged)
        if due:
            yield due.pop(0), frame


def _leading(media: Media, packets: list[Packet]) -> int:
    """Pictures that appear before the first keyframe: they are decoded after it, and refer to what was not read."""
    first = packets[:_LEADING]
    damaged: list[Packet | None] = []
    shown = sum(1 for _ in decoded_of(media, media.video, first, damaged))
    media.video.codec_context.flush_buffers()
    return max(0, len(first) - shown - len(damaged))


def _timed(frames: Iterable[VideoFrame], tick: float) -> Iterator[tuple[float, VideoFrame]]:
    """Each frame with the time at which it appears, in seconds."""
    last = float("-inf")
    for frame in frames:
        when = seconds_of(frame, tick)
        if when is None or when < last:
            raise Disordered
        last = when
        yield when, frame


class Painter:
    """Chooses the frames of a window and draws them upright, cropped, in RGB."""

    def __init__(self, video: VideoConfig, framing: FramingRule, out: np.ndarray | None = None) -> None:
        """`out`: uint8 `[T, size, size, 3]`, where the frames are drawn; None: memory of their own."""
        self.video = video
        self.framing = framing
        self.out = out
        self.reformatter = VideoReformatter()

    def times(self, window: Span) -> np.ndarray:
        """The instants shown: float64 `[T]`, evenly spread."""
        return window.start + (np.arange(self.video.frames) + 0.5) * (window.length / self.video.frames)

    def frames(self, media: Media, packets: list[Packet], window: Span) -> np.ndarray | None:
        """uint8 `[T, size, size, 3]`; None when half of the packets, or more, cannot be decoded."""
        times = self.times(window)
        shapes = Shapes(media.video)
        damaged: list[Packet | None] = []
        try:
            shown = self._shown(timed_frames(media, packets, damaged), times, shapes)
        except Disordered:
            shown = self._shown(counted_frames(media, packets, damaged), times, shapes)
        return shown if 2 * len(damaged) < len(packets) else None

    def _shown(
        self, frames: Iterable[tuple[float, VideoFrame]], times: np.ndarray, shapes: Shapes
    ) -> np.ndarray | None:
        """Draw the frame on screen at each of `times`; `frames` come with the time at which they appear."""
        out = self.canvas(len(times))
        instants = times.tolist()
        done = 0
        shown: tuple[VideoFrame, Shape] | None = None
        for when, frame in frames:
            # Everything due before this frame appears still shows the one before.
            due = bisect_left(instants, when)
            if due > done and shown is not None:
                draw(out[done:due], self.paint(*shown))
                done = due
            shown = frame, shapes(frame)
            if done == len(times):
                return out
        if shown is None:
            return None
        draw(out[done:], self.paint(*shown))
        return out

    def canvas(self, count: int) -> np.ndarray:
        """Where `count` frames are drawn: uint8 `[count, size, size, 3]`."""
        size = self.video.size
        return np.empty((count, size, size, 3), np.uint8) if self.out is None else self.out[:count]

    def paint(self, frame: VideoFrame, shape: Shape) -> np.ndarray:
        """A view uint8 `[size, size, 3]`."""
        framing = self.framing(*shape.shown(frame))
        w, h = shape.orientation.sides(framing.width, framing.height)
        with library_errors():
            drawn = self.reformatter.reformat(frame, w, h, format="rgb24", interpolation=Interpolation.AREA, threads=1)
            plane = drawn.planes[0]
            pixels = np.frombuffer(memoryview(plane), np.uint8).reshape(h, plane.line_size)
        coded = pixels[:, : w * 3].reshape(h, w, 3)
        return framing.cut(shape.orientation.upright(coded))


def draw(out: np.ndarray, picture: np.ndarray) -> None:
    """Copy `picture`, uint8 `[size, size, 3]`, to every frame of `out`, `[n, size, size, 3]`."""
    if picture.strides[1] == 3:
        out[...] = picture
        return
    # Mirrored or turned: numpy would go pixel by pixel; one channel after the other it is four times faster.
    for channel in range(3):
        out[..., channel] = picture[..., channel]
