"""When packets are due, and which seconds they cover: what is shown or heard, for as long as it is."""

from __future__ import annotations

import struct

import numpy as np
from av.audio.frame import AudioFrame
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame

from diffmavil.data.windows import Span


def tick_of(stream: Stream) -> float:
    """Seconds of one unit of the stream's time stamps."""
    return float(stream.time_base or 0)


def seconds_of(item: Packet | VideoFrame | AudioFrame, tick: float) -> float | None:
    """When a packet or frame is due. `tick`: the stream's time base; the last frames that a decoder gives know none."""
    stamp = item.dts if item.pts is None else item.pts
    return None if stamp is None else stamp * tick


def span_of(stream: Stream, packets: list[Packet]) -> Span:
    """From the first packet's time to the last one's end; an empty list gives an empty span."""
    extent = Extent(stream)
    for packet in packets:
        extent.add(packet)
    return extent.span


class Extent:
    """The time covered by packets, given one after the other.

    What the decoder throws away does not count: packets before an edit list's start, samples that only prime it.
    """

    def __init__(self, stream: Stream) -> None:
        self._tick = tick_of(stream)
        rate = getattr(stream, "average_rate", None)
        self._usual = 1 / float(rate) if rate else 0.0
        self._sample_rate = getattr(stream, "sample_rate", None)
        self._start, self._end = float("inf"), float("-inf")
        self._unheard = 0.0
        self._times: list[float] = []

    @property
    def span(self) -> Span:
        return Span(self._start, self._end)

    def held_until(self, said: float) -> Span:
        """The span of pictures, the last of which stays until `said`, if it is not far longer than any before it did.

        Packets tell it badly: Matroska's have no length, and those of mp4 are from one decoding to the next.
        """
        last = max(self._times, default=float("-inf"))
        longest = max([self._usual, *np.diff(np.sort(self._times))])
        return Span(self._start, said if last < said <= last + 2 * longest else self._end)

    def add(self, packet: Packet) -> None:
        when = seconds_of(packet, self._tick)
        if when is None:
            return
        begin, end = when, when + (packet.duration * self._tick if packet.duration else self._usual)
        if self._sample_rate and packet.has_sidedata("skip_samples"):
            head, tail = struct.unpack_from("<II", packet.get_sidedata("skip_samples"))
            self._unheard = head / self._sample_rate
            end -= tail / self._sample_rate
        if self._unheard:
            begin = min(end, begin + self._unheard)
            self._unheard -= begin - when
            if begin >= end:
                return
        if packet.is_discard:
            return
        self._times.append(when)
        self._start, self._end = min(self._start, begin), max(self._end, end)


class Slots:
    """Times of pictures of which only a few have a time stamp: H.264 in a program stream has one a packet of these.

    They are counted, as AVI's are: each gets the time of the next picture to appear as its only stamp, in whatever
    order they appear.
    """

    def __init__(self, stream: Stream) -> None:
        self._tick = tick_of(stream)
        rate = getattr(stream, "average_rate", None)
        self._usual = round(1 / float(rate) / self._tick) if rate and self._tick else 0
        self._next: int | None = None
        self._delay = 0

    def place(self, packet: Packet) -> bool:
        """Give the packet its time; False before the first keyframe with a time stamp."""
        length = packet.duration or self._usual
        if packet.dts is not None:
            if self._next is None and packet.is_keyframe:
                self._delay = max(0, (packet.dts if packet.pts is None else packet.pts) - packet.dts)
                self._next = packet.dts + self._delay
            # The stamp of a picture that begins before its packet is one picture late.
            elif self._next is not None and abs(packet.dts + self._delay - self._next) > 2.5 * length:
                self._next = packet.dts + self._delay
        if self._next is None:
            return False
        packet.pts = packet.dts = self._next
        self._next += length
        return True
