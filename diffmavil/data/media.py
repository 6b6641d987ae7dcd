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
from typing import NamedTuple

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream

from diffmavil.data.awake import awake_seconds
from diffmavil.data.extent import Extent, Slots, due, one_recording, since, tick_of
from diffmavil.data.library import BadClip, library_errors, open_container, packets_of
from diffmavil.data.tracks import choose_tracks
from diffmavil.data.windows import Span, Windows

PREROLL = 0.1
"""Seconds of sound decoded before the window: codecs overlap their blocks, the first after a seek is not exact."""
_MATROSKA = "matroska,webm"
_MOST_REORDERED = 17
"""More pictures than can be decoded ahead of one that is shown before them."""
_WITHOUT_INDEX = ("mpeg", "mpegts")
"""Formats for which libav guesses each stream's length from the file's last packets, and often too short."""
BY_NUMBER = ("avi",)
"""Formats that keep no times but the numbers of the packets: the k-th picture shown belongs to the k-th packet, and may
come out of the decoder after it. libav's guesses of presentation times are off by the delay of B frames."""
_COUNTED = (*BY_NUMBER, "mpeg")
"""Formats whose pictures have a place in the order of decoding alone, at least some of them: AVI, program streams."""
_HELD_BACK = 16
"""Pictures that a decoder holds back at most."""
_STEPS_BACK = (0.0, 2.0, 8.0, 30.0, float("inf"))
"""Seconds to seek further back when a stream was not found from before the window; at last to the start of the file."""
_NEAR = 1.0
"""Seconds from the file's start up to which it is read from there: cheaper than to seek."""
_NEAR_COUNTED = 60.0
"""The same for a program stream, in which libav must count pictures, and miscounts after a seek."""
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


class Packets(NamedTuple):
    """Packets of picture and sound, each in the order in which they are decoded."""

    video: list[Packet]
    audio: list[Packet]


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

    _moved = _sought = False
    """Whether packets were read, and whether from a place in the middle."""

    def __init__(self, path: str, deadline: Deadline) -> None:
        self.deadline = deadline
        if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
            raise BadClip(path, "not a regular file")
        self.path = path
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
        picture, sound = Extent(self.video), Extent(self.audio)
        for packet in self._packets():
            if packet.stream is self.video:
                picture.add(packet)
            elif heard := sound.add(packet):
                self.sounding.update(range(int(heard.start), int(min(heard.end, heard.start + _LONGEST)) + 1))
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
            from_start = begin - back < near or not self._seekable
            found = self._read_from(None if from_start else begin - back, windows)
            covered = self._covered(found, windows)
            rank = covered, bool(found.video) + bool(found.audio)
            if rank >= most:
                best, most = found, rank
            if covered == 2 or from_start:
                break
        return self._trimmed(best, windows)

    @property
    def _seekable(self) -> bool:
        """Whether packets have right times after a seek. Ogg stamps pages, and libav does not know how long a packet of
        FLAC in it is."""
        return not (self.container.format.name == "ogg" and self.audio.codec_context.name == "flac")

    def _covered(self, found: Packets, windows: Windows) -> int:
        """How many of the two streams were read from before their window, or from their first packet."""
        keys = [packet for packet in found.video if packet.is_keyframe]
        starts = windows.video.start - self._reordered, windows.audio.start - PREROLL
        covered = 0
        for stream, packets, start in zip((self.video, self.audio), (keys, found.audio), starts, strict=True):
            tick = tick_of(stream)
            enough = start if stream.start_time is None else max(start, stream.start_time * tick)
            covered += any(due(packet, tick) <= enough for packet in packets)
        return covered

    def _trimmed(self, found: Packets, windows: Windows) -> Packets:
        """The picture from its last keyframe before the window on, the sound from a little before."""
        tick, start = tick_of(self.video), windows.video.start - self._reordered
        keys = [i for i, packet in enumerate(found.video) if packet.is_keyframe and due(packet, tick) <= start]
        early, tick = windows.audio.start - 2 * PREROLL, tick_of(self.audio)
        return Packets(found.video[keys[-1] :] if keys else found.video, since(early, found.audio, tick))

    def _read_from(self, begin: float | None, windows: Windows) -> Packets:
        """Packets from second `begin` of the clock, or from the file's start, to the first past the windows' ends."""
        ticks = {self.video.index: tick_of(self.video), self.audio.index: tick_of(self.audio)}
        ends = {self.video.index: windows.video.end + self._reordered, self.audio.index: windows.audio.end}
        packets: dict[int, list[Packet]] = {self.video.index: [], self.audio.index: []}
        if begin is None:
            self._rewind()
        else:
            self._moved = self._sought = True
            try:
                with library_errors(self.deadline.name):
                    self.container.seek(int(begin / ticks[self.video.index]), stream=self.video)
            except BadClip:
                return Packets([], [])
        past = 0
        for packet in self._packets():
            index = packet.stream_index
            if index not in ends:
                continue
            packets[index].append(packet)
            if index == self.video.index and self.container.format.name == _MATROSKA:
                # It stores no decoding times, and libav's guess may be too late, for frames far apart by far.
                past += due(packet, ticks[index]) > ends[index]
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
            self.container.close()
            self.container = open_container(self.path, self.deadline.name)
            self.video, self.audio = choose_tracks(self.container, self.deadline.name)
        self._moved, self._sought = True, False

    def _packets(self) -> Iterator[Packet]:
        """Packets of both streams until the end of the file, or until where it is cut off or damaged."""
        packets = self._demux(self.container, self.video, self.audio)
        yield from one_recording(self._placed(packets), (self.video, self.audio))

    @property
    def _reordered(self) -> float:
        """Seconds by which the time of a picture may differ from that of its packet."""
        return _HELD_BACK / float(self.video.average_rate or 25) if self.container.format.name in _COUNTED else 0.0

    def _slots(self) -> Slots | None:
        """For pictures of a program stream; those of MPEG's own codecs have times by libav, which are exact to one
        picture, also after a seek."""
        if self.container.format.name != "mpeg":
            return None
        by_libav = self._sought and self.video.codec_context.name in ("mpeg1video", "mpeg2video")
        return None if by_libav else Slots(self.video)

    def _demux(self, container: InputContainer, *streams: Stream) -> Iterator[Packet]:
        for packet in packets_of(container, *streams):
            self.deadline.check()
            yield packet

    def _placed(self, packets: Iterator[Packet]) -> Iterator[Packet]:
        """The packets; those of pictures that are counted with the times that their numbers give, or none."""
        slots = self._slots()
        numbered = self.container.format.name in BY_NUMBER
        for packet in packets:
            if packet.stream is self.video:
                if slots and not slots.place(packet):
                    continue
                if numbered:
                    packet.pts = None
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

    def read(self, windows: Windows) -> Packets:
        with library_errors(self.deadline.name):
            self.container.seek(int(windows.video.start / tick_of(self.video)), stream=self.video)
        video = self._until(windows.video.end, self.container, self.video)
        # FLAC frames stand alone and cost little: no search for the first, only those long before are left out.
        early, tick = windows.audio.start - 2 * PREROLL, tick_of(self.audio)
        sound = self._until(windows.audio.end, self.sound, self.audio)
        return Packets(video, since(early, sound, tick))

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
