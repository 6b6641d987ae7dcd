"""Prepared clips in memory: what `diffmavil.prepare` made of a clip, opened like a file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream

from diffmavil.config import Modalities
from diffmavil.config.model import hears, sees
from diffmavil.data.extent import since, tick_of
from diffmavil.data.library import library_errors, open_container, packets_of
from diffmavil.data.media import PREROLL, Deadline, Media, Packets, UnknownLength
from diffmavil.data.tracks import Tracks
from diffmavil.data.windows import Span, Windows


@dataclass(frozen=True)
class Sample:
    """An encoded clip in memory, as `diffmavil.prepare` makes it: picture and sound both start at zero.

    Attributes:
        name: where it comes from, for messages.
        mp4: upright H.264, no sound; empty where it is not wanted.
        flac: 16 kHz mono; empty where it is not wanted.
    """

    name: str
    mp4: bytes
    flac: bytes


def open_media(source: str | Sample, deadline: Deadline, modalities: Modalities = "av") -> Media:
    """A file or a prepared sample, opened; raises as `Media` does."""
    if isinstance(source, Sample):
        return SampleMedia(source, deadline, modalities)
    return Media(source, deadline, modalities)


class SampleMedia(Media):
    """A prepared sample: a container in memory for picture and for sound, one clock."""

    def __init__(self, sample: Sample, deadline: Deadline, modalities: Modalities = "av") -> None:
        self.deadline = deadline
        self.modalities = modalities
        self.sample = sample
        self.containers: list[InputContainer] = []
        try:
            if sees(modalities):
                self.containers.append(open_container(io.BytesIO(sample.mp4), deadline, "mp4"))
            if hears(modalities):
                self.containers.append(open_container(io.BytesIO(sample.flac), deadline, "flac"))
        except BaseException:
            self._close()
            raise
        self.container = self.containers[0]
        self.tracks = Tracks(
            self.containers[0].streams.video[0] if sees(modalities) else None,
            self.containers[-1].streams.audio[0] if hears(modalities) else None,
        )
        for stream in self.tracks.wanted:
            stream.codec_context.thread_count = 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        for container in self.containers:
            container.close()

    @property
    def coded_picture(self) -> bytes:
        return self.sample.mp4

    def promised(self) -> tuple[Span, Span]:
        spans = []
        for stream in self.tracks.wanted:
            if not stream.duration:
                raise UnknownLength
            spans.append(Span(0.0, stream.duration * tick_of(stream)))
        return spans[0], spans[-1]

    def read(self, windows: Windows) -> Packets:
        video: list[Packet] = []
        sound: list[Packet] = []
        if self.tracks.video is not None:
            with library_errors(self.deadline.name):
                self.container.seek(int(windows.video.start / tick_of(self.video)), stream=self.video)
            video = self._until(windows.video.end, self.container, self.video)
        if self.tracks.audio is not None:
            # FLAC frames stand alone and cost little: no search for the first, only those long before are left out.
            early, tick = windows.audio.start - 2 * PREROLL, tick_of(self.audio)
            sound = since(early, self._until(windows.audio.end, self.containers[-1], self.audio), tick)
        return Packets(video, sound)

    def _until(self, end: float, container: InputContainer, stream: Stream) -> list[Packet]:
        packets: list[Packet] = []
        tick = tick_of(stream)
        for packet in packets_of(container, self.deadline, stream):
            if packet.dts is not None and packet.dts * tick > end:
                break
            packets.append(packet)
        return packets

    def _packets(self) -> Iterator[Packet]:
        for container, stream in zip(self.containers, self.tracks.wanted, strict=True):
            yield from packets_of(container, self.deadline, stream)
