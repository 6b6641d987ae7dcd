"""An opened file: which streams are used, which seconds they cover, and their packets around a window.

All times are seconds on the container's clock: presentation time stamp times time base.
"""

from __future__ import annotations

import io
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, cast

import av
import av.error
import av.logging
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from diffmavil.data.extent import Extent, Slots, seconds_of, tick_of
from diffmavil.data.windows import Span, Windows

# libav writes a line for every damaged packet; what matters reaches the user as BadClip.
av.logging.set_level(None)
av.logging.set_libav_level(av.logging.PANIC)

PREROLL = 0.1
"""Seconds of sound decoded before the window: codecs overlap their blocks, the first after a seek is not exact."""
_MATROSKA = "matroska,webm"
_MOST_REORDERED = 17
"""More pictures than can be decoded ahead of one that is shown before them."""
_WITHOUT_INDEX = ("mpeg", "mpegts")
"""Formats for which libav guesses each stream's length from the file's last packets, and often too short."""
_STEPS_BACK = (0.0, 2.0, 8.0, 30.0, float("inf"))
"""Seconds to seek further back when a stream was not found from before the window; at last to the start of the file."""
_NEAR = 1.0
"""Seconds from the file's start up to which it is read from there: cheaper than to seek."""
_NEAR_COUNTED = 60.0
"""The same for a program stream, in which libav must count pictures, and miscounts after a seek."""
_COUNTED = ("avi", "mpeg")
"""Formats whose pictures have a place in the order of decoding alone, at least some of them: AVI, program streams."""
_REORDERED = 0.5
"""Seconds around a window in which they hold frames of it."""
_ANEW = 1.0
"""Seconds by which time stamps fall when another recording begins."""


class BadClip(Exception):
    """A clip that cannot be used, and why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


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


class Packets(NamedTuple):
    """Packets of picture and sound, each in the order in which they are decoded."""

    video: list[Packet]
    audio: list[Packet]


class Deadline:
    """Seconds that a clip may take; looked at between packets and between frames."""

    def __init__(self, seconds: float, name: str) -> None:
        self.seconds = seconds
        self.name = name
        self._end = time.monotonic() + seconds

    def check(self) -> None:
        if time.monotonic() > self._end:
            raise BadClip(self.name, f"not decoded within the deadline of {self.seconds:g} s")


def open_media(source: str | Sample, deadline: Deadline) -> Media:
    """A file or a prepared sample, opened; raises as `Media` does."""
    return SampleMedia(source, deadline) if isinstance(source, Sample) else Media(source, deadline)


class Media:
    """A file with its first picture stream (cover art is none) and its first sound stream; a context manager.

    Raises:
        BadClip: one of the streams is missing, or it is not a regular file (opening a pipe would wait for ever).
        av.error.FFmpegError: the file cannot be opened.
    """

    _moved = _sought = False
    """Whether packets were read, and whether from a place in the middle."""

    def __init__(self, path: str, deadline: Deadline) -> None:
        self.deadline = deadline
        if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
            raise BadClip(path, "not a regular file")
        self.path = path
        self.container: InputContainer = av.open(path)
        try:
            pictures = [s for s in self.container.streams.video if not s.disposition & Disposition.attached_pic]
            if not pictures:
                raise BadClip(path, "no video stream")
            if not self.container.streams.audio:
                raise BadClip(path, "no audio stream")
            self.video: VideoStream = pictures[0]
            self.audio: AudioStream = self.container.streams.audio[0]
            for stream in (self.video, self.audio):
                # Every core decodes a clip of its own already; more threads only get in each other's way.
                stream.codec_context.thread_count = 1
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
        picture, sound = Extent(self.video), Extent(self.audio)
        for packet in self._packets():
            (picture if packet.stream_index == self.video.index else sound).add(packet)
        return picture.held_until(self._said_end(picture.span, sound.span)), sound.span

    def _said_end(self, picture: Span, sound: Span) -> float:
        """When the picture ends by what the container says."""
        if self.video.duration and self.video.start_time is not None and self.container.format.name.startswith("mov"):
            return (self.video.start_time + self.video.duration) * tick_of(self.video)
        # Others say at most how long the file is, for a live recording not even that.
        length = (self.container.duration or 0) / av.time_base
        return max(picture.end, min(self.start + length, sound.end))

    def read(self, windows: Windows) -> Packets:
        """The packets needed for the windows, each stream's from before its window's start.

        A place in a file is sought by the picture alone, and the sound of that time may lie before it.
        """
        begin = min(windows.video.start - self._reordered, windows.audio.start - PREROLL)
        near = self.start + (_NEAR_COUNTED if self.container.format.name == "mpeg" else _NEAR)
        best, most = Packets([], []), (0, 0)
        for back in _STEPS_BACK:
            from_start = begin - back < near
            found = self._read_from(None if from_start else begin - back, windows)
            covered = self._covered(found, windows)
            rank = covered, bool(found.video) + bool(found.audio)
            if rank >= most:
                best, most = found, rank
            if covered == 2 or from_start:
                break
        return self._trimmed(best, windows)

    def _covered(self, found: Packets, windows: Windows) -> int:
        """How many of the two streams were read from before their window, or from their first packet."""
        keys = [packet for packet in found.video if packet.is_keyframe]
        starts = windows.video.start - self._reordered, windows.audio.start - PREROLL
        covered = 0
        for stream, packets, start in zip((self.video, self.audio), (keys, found.audio), starts, strict=True):
            tick = tick_of(stream)
            enough = start if stream.start_time is None else max(start, stream.start_time * tick)
            covered += any(_due(packet, tick) <= enough for packet in packets)
        return covered

    def _trimmed(self, found: Packets, windows: Windows) -> Packets:
        """The picture from its last keyframe before the window on, the sound from a little before."""
        tick, start = tick_of(self.video), windows.video.start - self._reordered
        keys = [i for i, packet in enumerate(found.video) if packet.is_keyframe and _due(packet, tick) <= start]
        early, tick = windows.audio.start - 2 * PREROLL, tick_of(self.audio)
        audio = [packet for packet in found.audio if _due(packet, tick) >= early]
        return Packets(found.video[keys[-1] :] if keys else found.video, audio)

    def _read_from(self, begin: float | None, windows: Windows) -> Packets:
        """Packets from second `begin` of the clock, or from the file's start, to the first past the windows' ends."""
        ticks = {self.video.index: tick_of(self.video), self.audio.index: tick_of(self.audio)}
        ends = {self.video.index: windows.video.end + self._reordered, self.audio.index: windows.audio.end}
        packets: dict[int, list[Packet]] = {self.video.index: [], self.audio.index: []}
        if begin is None:
            self._rewind()
        else:
            try:
                self._moved = self._sought = True
                self.container.seek(int(begin / ticks[self.video.index]), stream=self.video)
            except av.error.FFmpegError:
                return Packets([], [])
        past = 0
        for packet in self._packets():
            index = packet.stream_index
            if index not in ends:
                continue
            packets[index].append(packet)
            if index == self.video.index and self.container.format.name == _MATROSKA:
                # It stores no decoding times, and libav's guess may be too late, for frames far apart by far.
                past += _due(packet, ticks[index]) > ends[index]
                done = past == _MOST_REORDERED
            else:
                # Decoding times only rise, and no frame is shown before it is decoded.
                done = packet.dts is not None and packet.dts * ticks[index] > ends[index]
            if done:
                # This packet stays: it shows that the frame before it lasts until the window's end.
                del ends[index]
                if not ends:
                    break
        return Packets(packets[self.video.index], packets[self.audio.index])

    def _rewind(self) -> None:
        """Go to the first packet: opened anew, since a seek finds no keyframe decoded before the start time."""
        if self._moved:
            video, audio = self.video.index, self.audio.index
            self.container.close()
            self.container = av.open(self.path)
            self.video = cast("VideoStream", self.container.streams[video])
            self.audio = cast("AudioStream", self.container.streams[audio])
            for stream in (self.video, self.audio):
                stream.codec_context.thread_count = 1
        self._moved, self._sought = True, False

    def _packets(self) -> Iterator[Packet]:
        """Packets of both streams until the end of the file, or until where it is cut off or damaged."""
        yield from self._demux(self.container, self.video, self.audio)

    @property
    def _reordered(self) -> float:
        """Seconds by which the time of a picture may differ from that of its packet."""
        return _REORDERED if self.container.format.name in _COUNTED else 0.0

    def _slots(self) -> Slots | None:
        """For pictures of a program stream; those of MPEG's own codecs have times by libav, which are exact to one
        picture, also after a seek."""
        if self.container.format.name != "mpeg":
            return None
        by_libav = self._sought and self.video.codec_context.name in ("mpeg1video", "mpeg2video")
        return None if by_libav else Slots(self.video)

    def _demux(self, container: InputContainer, *streams: Stream) -> Iterator[Packet]:
        """Packets of the streams; where time stamps start anew, another recording begins, and the stream ends."""
        ticks = {stream.index: tick_of(stream) for stream in streams}
        newest: dict[int, float] = {}
        ended: set[int] = set()
        slots = self._slots()
        only_decoding_times = self.container.format.name == "avi"
        try:
            for packet in container.demux(*streams):
                self.deadline.check()
                index = packet.stream_index
                if not packet.size or index in ended:
                    continue
                if slots and index == self.video.index and not slots.place(packet):
                    continue
                if only_decoding_times and index == self.video.index:
                    packet.pts = packet.dts  # libav's own guess is a picture or more too late
                when = seconds_of(packet, ticks[index])
                if when is not None and not packet.is_discard:
                    # Sound is in order, and so is a keyframe among the pictures before it.
                    ordered = bool(ended) or index == self.audio.index or packet.is_keyframe
                    if ordered and when < newest.get(index, when) - _ANEW:
                        ended.add(index)
                        if len(ended) == len(streams):
                            return
                        continue
                    newest[index] = max(when, newest.get(index, when))
                yield packet
        except av.error.FFmpegError:
            return


class SampleMedia(Media):
    """A prepared sample: two containers in memory, one clock."""

    def __init__(self, sample: Sample, deadline: Deadline) -> None:
        self.deadline = deadline
        self.sample = sample
        self.container = av.open(io.BytesIO(sample.mp4), "r", format="mp4")
        try:
            self.sound: InputContainer = av.open(io.BytesIO(sample.flac), "r", format="flac")
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

    def read(self, windows: Windows) -> Packets:
        self.container.seek(int(windows.video.start / tick_of(self.video)), stream=self.video)
        video = self._until(windows.video.end, self.container, self.video)
        # FLAC frames stand alone and cost little: no search for the first, only those long before are left out.
        early, tick = windows.audio.start - 2 * PREROLL, tick_of(self.audio)
        sound = self._until(windows.audio.end, self.sound, self.audio)
        return Packets(video, [packet for packet in sound if (seconds_of(packet, tick) or 0.0) >= early])

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


def _due(packet: Packet, tick: float) -> float:
    """When a packet is due; never, if that is not known."""
    when = seconds_of(packet, tick)
    return float("inf") if when is None else when
