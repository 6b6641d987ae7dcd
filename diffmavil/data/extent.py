"""When packets are due, and which seconds they cover: what is shown or heard, for as long as it is."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
from av.audio.frame import AudioFrame
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame

from diffmavil.data.library import FFMPEG_9
from diffmavil.data.windows import Span

_ANEW = 1.0
"""Seconds by which time stamps fall when another recording begins."""
_LEAP = 1.0
"""Seconds from the packets before and after it at which a packet's time stamp is not believed."""
_PATIENCE = 200
"""Packets of other streams, some seconds of sound, that are read before a packet held back is let go."""
_DECODE_TIMES = ("avi", "flv", "mov,mp4,m4a,3gp,3g2,mj2", "mpeg", "mpegts")
"""Formats that store when a picture is decoded; libav guesses it for others, and wrong for few pictures a second."""


def tick_of(stream: Stream) -> float:
    """Seconds of one unit of the stream's time stamps."""
    return float(stream.time_base or 0)


def seconds_of(item: Packet | VideoFrame | AudioFrame, tick: float) -> float | None:
    """When a packet or frame is due. `tick`: the stream's time base; the last frames that a decoder gives know none."""
    stamp = item.dts if item.pts is None else item.pts
    return None if stamp is None else stamp * tick


def due(packet: Packet, tick: float) -> float:
    """When a packet is due; never, if that is not known."""
    when = seconds_of(packet, tick)
    return float("inf") if when is None else when


def since(begin: float, packets: list[Packet], tick: float) -> list[Packet]:
    """The packets from the one in which second `begin` lies on: some containers and codecs have packets of seconds."""
    first = 0
    for index, packet in enumerate(packets):
        when = seconds_of(packet, tick)
        if when is not None and when > begin:
            break
        first = index
    return packets[first:]


def one_recording(packets: Iterable[Packet], streams: Iterable[Stream]) -> Iterator[Packet]:
    """The packets of `streams`; where time stamps start anew, another recording begins, and the stream ends."""
    streams = list(streams)
    ticks = {stream.index: tick_of(stream) for stream in streams}
    sure = {stream.index: ticks[stream.index] for stream in streams if _has_order(stream)}
    newest: dict[int, float] = {}
    ended: set[int] = set()
    for packet in _put_right(packets, sure):
        index = packet.stream_index
        if index in ended:
            continue
        when = seconds_of(packet, ticks[index])
        if when is not None and not packet.is_discard:
            # Sound is in order, and so is a keyframe among the pictures before it.
            ordered = bool(ended) or packet.stream.type == "audio" or packet.is_keyframe
            if ordered and when < newest.get(index, when) - _ANEW:
                ended.add(index)
                if len(ended) == len(ticks):
                    return
                continue
            newest[index] = max(when, newest.get(index, when))
        yield packet


def _has_order(stream: Stream) -> bool:
    """Whether the stamps by `_stamp` of a stream rise."""
    return not stream.codec_context.codec.reorder or stream.container.format.name in _DECODE_TIMES


def _put_right(packets: Iterable[Packet], ticks: dict[int, float]) -> Iterator[Packet]:
    """The packets, each stream's in order; a single one stamped far from those around it gets the time between them.

    It is held back until the next of its stream: when that one goes on from there, the time stamps are true. `ticks`:
    of the streams that have an order; others are passed on.
    """
    before: dict[int, int] = {}
    held: dict[int, Packet] = {}
    waited: dict[int, int] = {}
    for packet in packets:
        index = packet.stream_index
        for other in [one for one in waited if one != index]:
            waited[other] += 1
            if waited[other] > _PATIENCE:
                # No next one comes, as of slides: it is believed, or the rest of the file would be read for it.
                before[other] = _stamp(held[other]) or 0
                del waited[other]
                yield held.pop(other)
        stamp = _stamp(packet) if index in ticks else None
        odd = held.pop(index, None)
        waited.pop(index, None)
        if odd is not None:
            if stamp is not None and abs(stamp - before[index]) * ticks[index] <= _LEAP:
                _move(odd, (before[index] + stamp) // 2)
            before[index] = _stamp(odd) or 0
            yield odd
        if stamp is not None:
            if abs(stamp - before.get(index, stamp)) * ticks[index] > _LEAP:
                held[index] = packet
                waited[index] = 0
                continue
            before[index] = stamp
        yield packet
    yield from held.values()


def _stamp(packet: Packet) -> int | None:
    """When a packet is decoded, which rises from one to the next even where pictures are shown in another order."""
    return packet.pts if packet.dts is None else packet.dts


def _move(packet: Packet, stamp: int) -> None:
    """Put a packet's time stamps off together, so that it is decoded at `stamp`."""
    by = stamp - (_stamp(packet) or 0)
    packet.pts = None if packet.pts is None else packet.pts + by
    packet.dts = None if packet.dts is None else packet.dts + by


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
        self._before: int | None = None
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

    def shown(self, end: float) -> Iterator[Span]:
        """When each picture is on screen: until the next one comes, the last until second `end`."""
        times = sorted(self._times)
        return (Span(*pair) for pair in pairwise([*times, end]))

    def add(self, packet: Packet) -> Span | None:
        """The packet's own span, if it counts."""
        when = seconds_of(packet, self._tick)
        if when is None:
            return None
        begin, end = when, when + (packet.duration * self._tick if packet.duration else self._usual)
        if self._sample_rate and packet.has_sidedata("skip_samples"):
            head, tail = struct.unpack_from("<II", packet.get_sidedata("skip_samples"))
            self._unheard = head / self._sample_rate
            end -= max(0.0, tail / self._sample_rate - self._left_out(packet))
        self._before = packet.duration
        if self._unheard:
            begin = min(end, begin + self._unheard)
            self._unheard -= begin - when
            if begin >= end:
                return None
        if packet.is_discard:
            return None
        self._times.append(when)
        self._start, self._end = min(self._start, begin), max(self._end, end)
        return Span(begin, end)

    def _left_out(self, packet: Packet) -> float:
        """Seconds of what fills up the last packet that its duration leaves out already.

        FFmpeg 9 says of more packets how many of their samples to throw away. The duration beside it is without them
        where libav wrote AAC or Opus, and with them for MP3 and where an edit list ends. The packet before is whole.
        """
        if not FFMPEG_9 or not packet.duration or not self._before:
            return 0.0
        return max(0, self._before - packet.duration) * self._tick


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
