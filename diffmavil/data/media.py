"""An opened file: which streams are used, which seconds they cover, and their packets around a window.

All times are seconds on the container's clock: presentation time stamp times time base.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import NamedTuple, TypeVar

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.stream import VideoStream

from diffmavil.config import Modalities
from diffmavil.data.extent import Extent, Slots, due, one_recording, since, tick_of
from diffmavil.data.library import BadClip, Deadline, Paused, library_errors, open_container, packets_of
from diffmavil.data.tracks import choose_tracks
from diffmavil.data.windows import Span, Windows

T = TypeVar("T")
PREROLL = 0.1
"""Seconds of sound decoded before the window: codecs overlap their blocks, the first after a seek is not exact."""
_PREROLL_MP3 = 1.0
"""The same for an mp3 file: a frame may lie in the bytes of many before it, at a low bit rate in half a second."""
_MATROSKA = "matroska,webm"
_MOST_REORDERED = 17
"""More pictures than can be decoded ahead of one that is shown before them."""
_WITHOUT_INDEX = ("mpeg", "mpegts")
"""Formats for which libav guesses each stream's length from the file's last packets, and often too short."""
_BARE = ("mp3", "aac", "ac3", "eac3", "amr", "dts")
"""Formats of bare frames, whose length libav guesses from the bit rate of the first ones."""
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
_LONGEST_SHOWN = 3600.0
"""The same of a picture on screen: slides stay for minutes, and a wrong time stamp may mean years."""


class UnknownLength(Exception):
    """The header does not say how long a stream is."""


class Packets(NamedTuple):
    """Packets of picture and sound, each in the order in which they are decoded."""

    video: list[Packet]
    audio: list[Packet]


class Media:
    """A file with its picture and its sound, as `choose_tracks` finds them, or with one alone; a context manager.

    Attributes:
        tracks: those that are wanted.
        filled: once `measured` was called: whole seconds of the clock in which there is sound; of a picture alone, in
            which one is shown.

    Raises:
        BadClip: it cannot be opened, a track that is wanted is missing or has no decoder, or it is not a regular file
            (opening a pipe would wait for ever).
    """

    _moved = _sought = False
    """Whether packets were read, and whether from a place in the middle."""

    def __init__(self, path: str, deadline: Deadline, modalities: Modalities = "av") -> None:
        self.deadline = deadline
        self.modalities: Modalities = modalities
        if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
            raise BadClip(path, "not a regular file")
        self.path = path
        self.container: InputContainer = open_container(path, deadline)
        try:
            self.tracks = choose_tracks(self.container, deadline.name, modalities)
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
    def video(self) -> VideoStream:
        """The picture, where it is wanted."""
        assert self.tracks.video is not None
        return self.tracks.video

    @property
    def audio(self) -> AudioStream:
        """The sound, where it is wanted."""
        assert self.tracks.audio is not None
        return self.tracks.audio

    @property
    def coded_picture(self) -> bytes:
        """All bytes of a prepared sample's picture."""
        raise TypeError("a plain file has picture and sound together")

    @property
    def start(self) -> float:
        """When the file starts."""
        return (self.container.start_time or 0) / av.time_base

    def promised(self) -> tuple[Span, Span]:
        """What the header says that picture and sound cover; `UnknownLength` if it does not say.

        What is not wanted covers what the other does, here and in `measured`.
        """
        if self.container.format.name in _BARE:
            raise UnknownLength
        spans = []
        for stream in self.tracks.wanted:
            tick = float(stream.time_base or 0)
            begin = self.start if stream.start_time is None else stream.start_time * tick
            if stream.duration and self.container.format.name not in _WITHOUT_INDEX:
                spans.append(Span(begin, begin + stream.duration * tick))
            elif self.container.duration:
                spans.append(Span(begin, self.start + self.container.duration / av.time_base))
            else:
                raise UnknownLength
        return spans[0], spans[-1]

    def measured(self) -> tuple[Span, Span]:
        """What the packets cover. Reads the whole of a file just opened, decodes nothing."""
        return self._unpaused(self._measured)

    def _measured(self) -> tuple[Span, Span]:
        self.filled: set[int] = set()
        extents = [Extent(stream) for stream in self.tracks.wanted]
        picture, sound = extents[0], extents[-1]
        for packet in self._packets():
            if packet.stream is self.tracks.video:
                picture.add(packet)
            elif heard := sound.add(packet):
                self.filled.update(_seconds_in(heard, _LONGEST))
        if self.tracks.video is None:
            return sound.span, sound.span
        seen = picture.held_until(self._said_end(picture.span, sound.span))
        if self.tracks.audio is None:
            for shown in picture.shown(seen.end):
                self.filled.update(_seconds_in(shown, _LONGEST_SHOWN))
        return seen, seen if self.tracks.audio is None else sound.span

    def _said_end(self, picture: Span, sound: Span) -> float:
        """When the picture ends by what the container says; without sound beside it, its own span is given twice."""
        if self.video.duration and self.video.start_time is not None and self.container.format.name.startswith("mov"):
            return (self.video.start_time + self.video.duration) * tick_of(self.video)
        # Others say at most how long the file is, for a live recording not even that.
        length = (self.container.duration or 0) / av.time_base
        longest = float("inf") if self.tracks.audio is None else sound.end
        return max(picture.end, min(self.start + length, longest))

    def read(self, windows: Windows) -> Packets:
        """The packets needed for the windows, each stream's from before its window's start.

        A place in a file is sought by the picture alone if there is one, and the sound of that time may lie before it.
        """
        begin = min(start for _, start in self._starts(windows))
        near = self.start + (_NEAR_COUNTED if self.container.format.name == "mpeg" else _NEAR)
        best, most = Packets([], []), (0, 0)
        for back in _STEPS_BACK:
            from_start = begin - back < near or not self._seekable
            place = None if from_start else begin - back
            found = self._unpaused(partial(self._read_from, place, windows))
            covered = self._covered(found, windows)
            rank = covered, bool(found.video) + bool(found.audio)
            if rank >= most:
                best, most = found, rank
            if covered == len(self.tracks.wanted) or from_start:
                break
        return self._trimmed(best, windows)

    @property
    def _seekable(self) -> bool:
        """Whether packets have right times after a seek. Ogg stamps pages, and libav does not know how long a packet of
        FLAC in it is."""
        sound = self.tracks.audio
        return not (self.container.format.name == "ogg" and sound is not None and sound.codec_context.name == "flac")

    def _starts(self, windows: Windows) -> list[tuple[Stream, float]]:
        """Each stream that is wanted, with the second from before which it must be read."""
        starts = windows.video.start - self._reordered, windows.audio.start - self._preroll
        return [(stream, start) for stream, start in zip(self.tracks, starts, strict=True) if stream is not None]

    def _covered(self, found: Packets, windows: Windows) -> int:
        """How many of the streams were read from before their window, or from their first packet."""
        keys = [packet for packet in found.video if packet.is_keyframe]
        covered = 0
        for stream, start in self._starts(windows):
            packets = keys if stream is self.tracks.video else found.audio
            tick = tick_of(stream)
            enough = start if stream.start_time is None else max(start, stream.start_time * tick)
            covered += any(due(packet, tick) <= enough for packet in packets)
        return covered

    def _trimmed(self, found: Packets, windows: Windows) -> Packets:
        """The picture from its last keyframe before the window on, the sound from a little before."""
        video, audio = found
        if self.tracks.video is not None:
            tick, start = tick_of(self.tracks.video), windows.video.start - self._reordered
            keys = [i for i, packet in enumerate(video) if packet.is_keyframe and due(packet, tick) <= start]
            video = video[keys[-1] :] if keys else video
        if self.tracks.audio is not None:
            audio = since(windows.audio.start - 2 * self._preroll, audio, tick_of(self.tracks.audio))
        return Packets(video, audio)

    def _read_from(self, begin: float | None, windows: Windows) -> Packets:
        """Packets from second `begin` of the clock, or from the file's start, to the first past the windows' ends."""
        ends: dict[int, float] = {}
        for stream, end in zip(self.tracks, (windows.video.end + self._reordered, windows.audio.end), strict=True):
            if stream is not None:
                ends[stream.index] = end
        ticks = {stream.index: tick_of(stream) for stream in self.tracks.wanted}
        packets: dict[int, list[Packet]] = {index: [] for index in ends}
        if begin is None:
            self._rewind()
        else:
            self._moved = self._sought = True
            try:
                by = self.tracks.wanted[0]
                with library_errors(self.deadline.name):
                    self.container.seek(int(begin / tick_of(by)), stream=by)
            except BadClip:
                return Packets([], [])
        past = 0
        for packet in self._packets():
            index = packet.stream_index
            if index not in ends:
                continue
            packets[index].append(packet)
            if packet.stream is self.tracks.video and self.container.format.name == _MATROSKA:
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
        return Packets(*([] if stream is None else packets[stream.index] for stream in self.tracks))

    def _rewind(self) -> None:
        """Go to the first packet: opened anew, since a seek finds no keyframe decoded before the start time."""
        if self._moved:
            self._open_anew()
        self._moved, self._sought = True, False

    def _open_anew(self) -> None:
        self.container.close()
        self.container = open_container(self.path, self.deadline)
        self.tracks = choose_tracks(self.container, self.deadline.name, self.modalities)

    def _unpaused(self, read: Callable[[], T]) -> T:
        """What `read` gives of the file, which is opened anew for it when the process was suspended meanwhile."""
        while True:
            try:
                return read()
            except Paused:
                self._open_anew()

    def _packets(self) -> Iterator[Packet]:
        """Packets of the streams until the end of the file, or until where it is cut off or damaged."""
        wanted = self.tracks.wanted
        yield from one_recording(self._placed(packets_of(self.container, self.deadline, *wanted)), wanted)

    @property
    def _preroll(self) -> float:
        return _PREROLL_MP3 if self.container.format.name == "mp3" else PREROLL

    @property
    def _reordered(self) -> float:
        """Seconds by which the time of a picture may differ from that of its packet."""
        if self.tracks.video is None or self.container.format.name not in _COUNTED:
            return 0.0
        return _HELD_BACK / float(self.tracks.video.average_rate or 25)

    def _slots(self) -> Slots | None:
        """For pictures of a program stream; those of MPEG's own codecs have times by libav, which are exact to one
        picture, also after a seek."""
        if self.tracks.video is None or self.container.format.name != "mpeg":
            return None
        by_libav = self._sought and self.video.codec_context.name in ("mpeg1video", "mpeg2video")
        return None if by_libav else Slots(self.video)

    def _placed(self, packets: Iterator[Packet]) -> Iterator[Packet]:
        """The packets; those of pictures that are counted with the times that their numbers give, or none."""
        slots = self._slots()
        numbered = self.container.format.name in BY_NUMBER
        for packet in packets:
            if packet.stream is self.tracks.video:
                if slots and not slots.place(packet):
                    continue
                if numbered:
                    packet.pts = None
            yield packet


def _seconds_in(span: Span, longest: float) -> range:
    """The whole seconds that a packet or a picture lies in, up to `longest`: one that lasts for years does not."""
    return range(int(span.start), int(min(span.end, span.start + longest)) + 1)
