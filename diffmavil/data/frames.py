"""Frames of a window: decoded in order with their times, chosen by time, drawn upright and cropped."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Any

import av.error
import numpy as np
from av.audio.stream import AudioStream
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from diffmavil.config import VideoConfig
from diffmavil.data.extent import seconds_of, tick_of
from diffmavil.data.media import Media
from diffmavil.data.transforms import FramingRule
from diffmavil.data.windows import Span

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
            yield from stream.codec_context.decode(packet)
        except av.error.FFmpegError:
            if damaged is not None:
                damaged.append(packet)


class Disordered(Exception):
    """Frames whose time stamps do not rise: the stamps are not presentation times."""


def timed_frames(
    media: Media, packets: list[Packet], damaged: list[Packet | None]
) -> Iterator[tuple[float, VideoFrame]]:
    """Each frame of the picture with the second at which it appears; packets that cannot be decoded are `damaged`.

    Raises `Disordered` when the stamps turn out not to be presentation times: then `counted_frames` gives them.
    """
    return _timed(decoded_of(media, media.video, packets, damaged), tick_of(media.video))


def counted_frames(
    media: Media, packets: list[Packet], damaged: list[Packet | None]
) -> Iterator[tuple[float, VideoFrame]]:
    """As `timed_frames`, where packets have decoding times alone: frames follow each other as the packets do."""
    damaged.clear()
    tick = tick_of(media.video)
    due = sorted(packet.dts * tick for packet in packets if packet.dts is not None)
    # Pictures that come before the first keyframe are decoded after it, and refer to what was not read.
    first = packets[:_LEADING]
    media.video.codec_context.flush_buffers()
    missing = len(first) - sum(1 for _ in decoded_of(media, media.video, first))
    media.video.codec_context.flush_buffers()
    return zip(due[max(0, missing) :], decoded_of(media, media.video, packets, damaged), strict=False)


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
        aspect = float(media.video.sample_aspect_ratio or 1)
        damaged: list[Packet | None] = []
        try:
            shown = self._shown(timed_frames(media, packets, damaged), times, aspect)
        except Disordered:
            shown = self._shown(counted_frames(media, packets, damaged), times, aspect)
        return shown if 2 * len(damaged) < len(packets) else None

    def _shown(self, frames: Iterable[tuple[float, VideoFrame]], times: np.ndarray, aspect: float) -> np.ndarray | None:
        """Draw the frame on screen at each of `times`; `frames` come with the time at which they appear."""
        out = self.canvas(len(times))
        instants = times.tolist()
        done = 0
        shown: VideoFrame | None = None
        for when, frame in frames:
            # Everything due before this frame appears still shows the one before.
            due = bisect_left(instants, when)
            if due > done and shown is not None:
                draw(out[done:due], self.paint(shown, aspect))
                done = due
            shown = frame
            if done == len(times):
                return out
        if shown is None:
            return None
        draw(out[done:], self.paint(shown, aspect))
        return out

    def canvas(self, count: int) -> np.ndarray:
        """Where `count` frames are drawn: uint8 `[count, size, size, 3]`."""
        size = self.video.size
        return np.empty((count, size, size, 3), np.uint8) if self.out is None else self.out[:count]

    def paint(self, frame: VideoFrame, aspect: float) -> np.ndarray:
        """A view uint8 `[size, size, 3]`. `aspect`: width over height of a pixel."""
        turns = round(frame.rotation / 90) % 4
        width, height = frame.width * aspect, float(frame.height)
        if turns % 2:
            width, height = height, width
        framing = self.framing(width, height)
        w, h = (framing.height, framing.width) if turns % 2 else (framing.width, framing.height)
        drawn = self.reformatter.reformat(frame, w, h, format="rgb24", interpolation=Interpolation.AREA, threads=1)
        plane = drawn.planes[0]
        pixels = np.frombuffer(memoryview(plane), np.uint8).reshape(h, plane.line_size)
        upright = pixels[:, : w * 3].reshape(h, w, 3)
        return framing.cut(np.rot90(upright, turns) if turns else upright)


def draw(out: np.ndarray, picture: np.ndarray) -> None:
    """Copy `picture`, uint8 `[size, size, 3]`, to every frame of `out`, `[n, size, size, 3]`."""
    if picture.strides[1] == 3:
        out[...] = picture
        return
    # Mirrored or turned: numpy would go pixel by pixel; one channel after the other it is four times faster.
    for channel in range(3):
        out[..., channel] = picture[..., channel]
