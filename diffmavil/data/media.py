"""An opened file: which streams are used, which seconds they cover, and their packets around a window.

All times are seconds on the container's clock: presentation time stamp times time base.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

import av
from av.audio.frame import AudioFrame
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame

from diffmavil.data.awake import awake_seconds
from diffmavil.data.library import BadClip, library_errors, open_container, packets_of
from diffmavil.data.tracks import choose_tracks
from diffmavil.data.windows import Span, Windows

PREROLL = 0.1
"""Seconds of sound decoded before the window: codecs overlap their blocks, the first after a seek is not exact."""
_WITHOUT_INDEX = ("mpeg", "mpegts")
"""Formats for which libav guesses each stream's length from the file's last packets, and often too short."""
BY_NUMBER = ("avi",)
"""Formats that keep no times but the numbers of the packets: the k-th picture shown belongs to the k-th packet, and may
come out of the decoder after it. libav's guesses of presentation times are off by the delay of B frames."""
_HELD_BACK = 16
"""Pictures that a decoder holds back at most."""
_STEPS_BACK = (0.0, 2.0, 8.0, float("inf"))
"""Seconds to seek further back when no keyframe was found before the window; at last to the start of the file."""
_LONGEST = 60.0
"""Seconds that a packet of sound can be believed to last."""


class UnknownLength(Exception):
    """The header does not say how long a stream is."""


@dataclass(frozen=True)
class Sample:
    """An encoded clip in memory, as `diffmavil.prepare` makes it: picture and sound both start at zero.

    Attributes:
        name: where it comes from, for messages.
        mp4: upright H.264, no sound.
        flac: 16 kHz mono.
    """

    name: str
    mp4: bytes
    flac: bytes


class Deadline:
    """Seconds that a clip may take, while the process runs; looked at between packets and between frames."""

    def __init__(self, seconds: float, name: str) -> None:
        self.seconds = seconds
        self.name = name
        self._end = awake_seconds() + seconds

    def check(self) -> None:
        if awake_seconds() > self._end:
            raise BadClip(self.name, f"not decoded within the deadline of {self.seconds:g} s")


def open_media(source: str | Sample, deadline: Deadline) -> Media:
    """A file or a prepared sample, opened; raises as `Media` does."""
    return SampleMedia(source, deadline) if isinstance(source, Sample) else Media(source, deadline)


class Media:
    """A file with its picture and its sound, as `choose_tracks` finds them; a context manager.

    Attributes:
        sounding: once `measured` was called: whole seconds of the clock in which there is sound.

    Raises:
        BadClip: it cannot be opened, one of the tracks is missing or has no decoder, or it is not a regular file
            (opening a pipe would wait for ever).
    """

    def __init__(self, path: str, deadline: Deadline) -> None:
        self.deadline = deadline
        if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
            raise BadClip(path, "not a regular file")
        self.container: InputContainer = open_container(path, deadline.name)
        try:
            self.video, self.audio = choose_tracks(self.container, deadline.name)
        except BaseException:
            self.container.close()
            raise

    def __enter__(self) -> Media:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.container.close()

    @property
    def coded_picture(self) -> bytes:
        """All bytes of a prepared sample's picture."""
        raise TypeError("a plain file has picture and sound together")

    @property
    def start(self) -> float:
        """When the file starts."""
        return (self.container.start_time or 0) / av.time_base

    def promised(self) -> tuple[Span, Span]:
        """What the header says that picture and sound cover; `UnknownLength` if it does not say."""
        spans = []
        for stream in (self.video, self.audio):
            tick = float(stream.time_base or 0)
            begin = self.start if stream.start_time is None else stream.start_time * tick
            if stream.duration and self.container.format.name not in _WITHOUT_INDEX:
                spans.append(Span(begin, begin + stream.duration * tick))
            elif self.container.duration:
                spans.append(Span(begin, self.start + self.container.duration / av.time_base))
            else:
                raise UnknownLength
        return spans[0], spans[1]

    def measured(self) -> tuple[Span, Span]:
        """What the packets cover. Reads the whole of a file just opened, decodes nothing."""
        self.sounding: set[int] = set()
        picture, sound = span_of(self.video, []), span_of(self.audio, [])
        for packet in self._packets():
            added = span_of(packet.stream, [packet])
            if packet.stream is self.video:
                picture = Span(min(picture.start, added.start), max(picture.end, added.end))
            elif added.start <= added.end:
                sound = Span(min(sound.start, added.start), max(sound.end, added.end))
                self.sounding.update(range(int(added.start), int(min(added.end, added.start + _LONGEST)) + 1))
        return picture, sound

    def read(self, windows: Windows) -> tuple[list[Packet], list[Packet]]:
        """The packets of picture and sound needed for the windows, from the last keyframe before the picture's."""
        windows = self._widened(windows)
        begin = min(windows.video.start, windows.audio.start - PREROLL)
        video_tick, audio_tick = tick_of(self.video), tick_of(self.audio)
        video: list[Packet] = []
        audio: list[Packet] = []
        for back in _STEPS_BACK:
            video, audio = self._read_from(max(self.start, begin - back), windows)
            keys = [
                index
                for index, packet in enumerate(video)
                if packet.is_keyframe and (seconds_of(packet, video_tick) or 0.0) <= windows.video.start
            ]
            if keys:
                video = video[keys[-1] :]
                break
        early = windows.audio.start - 2 * PREROLL
        return video, since(early, audio, audio_tick)

    def _widened(self, windows: Windows) -> Windows:
        """Where packets count and do not tell times: with those that the decoder may need around them."""
        if self.container.format.name not in BY_NUMBER:
            return windows
        extra = _HELD_BACK / float(self.video.average_rate or 25)
        picture = Span(max(self.start, windows.video.start - extra), windows.video.end + extra)
        return Windows(picture, windows.audio)

    def _read_from(self, begin: float, windows: Windows) -> tuple[list[Packet], list[Packet]]:
        ticks = {self.video.index: tick_of(self.video), self.audio.index: tick_of(self.audio)}
        ends = {self.video.index: windows.video.end, self.audio.index: windows.audio.end}
        packets: dict[int, list[Packet]] = {self.video.index: [], self.audio.index: []}
        with library_errors(self.deadline.name):
            self.container.seek(int(begin / ticks[self.video.index]), stream=self.video)
        for packet in self._packets():
            index = packet.stream_index
            if index not in ends:
                continue
            # Decoding times only rise, and no frame is shown before it is decoded.
            stamp = packet.pts if packet.dts is None else packet.dts
            if stamp is not None and stamp * ticks[index] > ends[index]:
                del ends[index]
                if not ends:
                    break
            else:
                packets[index].append(packet)
        return packets[self.video.index], packets[self.audio.index]

    def _packets(self) -> Iterator[Packet]:
        """Packets of both streams until the end of the file, or until where it is cut off or damaged."""
        for packet in self._demux(self.container, self.video, self.audio):
            if packet.stream is self.video and self.container.format.name in BY_NUMBER:
                packet.pts = None
            yield packet

    def _demux(self, container: InputContainer, *streams: Stream) -> Iterator[Packet]:
        for packet in packets_of(container, *streams):
            self.deadline.check()
            yield packet


class SampleMedia(Media):
    """A prepared sample: two containers in memory, one clock."""

    def __init__(self, sample: Sample, deadline: Deadline) -> None:
        self.deadline = deadline
        self.sample = sample
        self.container = open_container(io.BytesIO(sample.mp4), deadline.name, "mp4")
        try:
            self.sound: InputContainer = open_container(io.BytesIO(sample.flac), deadline.name, "flac")
        except BaseException:
            self.container.close()
            raise
        self.video = self.container.streams.video[0]
        self.audio = self.sound.streams.audio[0]
        for stream in (self.video, self.audio):
            stream.codec_context.thread_count = 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.container.close()
        self.sound.close()

    @property
    def coded_picture(self) -> bytes:
        return self.sample.mp4

    def promised(self) -> tuple[Span, Span]:
        if not self.video.duration or not self.audio.duration:
            raise UnknownLength
        return Span(0.0, self.video.duration * tick_of(self.video)), Span(
            0.0, self.audio.duration * tick_of(self.audio)
        )

    def read(self, windows: Windows) -> tuple[list[Packet], list[Packet]]:
        with library_errors(self.deadline.name):
            self.container.seek(int(windows.video.start / tick_of(self.video)), stream=self.video)
        video = self._until(windows.video.end, self.container, self.video)
        # FLAC frames stand alone and cost little: no search for the first, only those long before are left out.
        early, tick = windows.audio.start - 2 * PREROLL, tick_of(self.audio)
        sound = self._until(windows.audio.end, self.sound, self.audio)
        return video, since(early, sound, tick)

    def _until(self, end: float, container: InputContainer, stream: Stream) -> list[Packet]:
        packets: list[Packet] = []
        tick = tick_of(stream)
        for packet in self._demux(container, stream):
            if packet.dts is not None and packet.dts * tick > end:
                break
            packets.append(packet)
        return packets

    def _packets(self) -> Iterator[Packet]:
        yield from self._demux(self.container, self.video)
        yield from self._demux(self.sound, self.audio)


def tick_of(stream: Stream) -> float:
    """Seconds of one unit of the stream's time stamps."""
    return float(stream.time_base or 0)


def seconds_of(item: Packet | VideoFrame | AudioFrame, tick: float) -> float | None:
    """When a packet or frame is due. `tick`: the stream's time base; the last frames that a decoder gives know none."""
    stamp = item.dts if item.pts is None else item.pts
    return None if stamp is None else stamp * tick


def since(begin: float, packets: list[Packet], tick: float) -> list[Packet]:
    """The packets from the one in which second `begin` lies on: some containers and codecs have packets of seconds."""
    first = 0
    for index, packet in enumerate(packets):
        when = seconds_of(packet, tick)
        if when is not None and when > begin:
            break
        first = index
    return packets[first:]


def span_of(stream: Stream, packets: list[Packet]) -> Span:
    """From the first packet's time to the last one's end; an empty list gives an empty span."""
    tick = tick_of(stream)
    rate = getattr(stream, "average_rate", None)
    usual = 1 / float(rate) if rate else 0.0
    begin, end = float("inf"), float("-inf")
    for packet in packets:
        when = seconds_of(packet, tick)
        if when is not None:
            begin = min(begin, when)
            end = max(end, when + (packet.duration * tick if packet.duration else usual))
    return Span(begin, end)
