"""Which tracks of a file are its picture and its sound.

The tracks that the file names as default come first, as in every player; of equal ones the first. Cover art, thumbnails
and stills are no picture, tracks without a decoder are passed over, and one with comments or for the impaired is taken
when there is no other.
"""

from __future__ import annotations

from typing import NamedTuple, cast

from av.audio.stream import AudioStream
from av.codec.context import Flags2
from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from diffmavil.config import Modalities
from diffmavil.config.model import hears, sees
from diffmavil.data.library import FFMPEG_9, BadClip, library_errors

_STILL = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
_SIDE = (
    Disposition.comment
    | Disposition.hearing_impaired
    | Disposition.visual_impaired
    | Disposition.descriptions
    | Disposition.dependent
)
_IMAGE_CODECS = {"mjpeg", "png", "apng", "bmp", "gif", "webp", "tiff", "jpeg2000", "jpegls", "ppm", "targa"}
"""What covers are coded in; but cameras and editors write whole films in some of them."""


class Tracks(NamedTuple):
    """Picture and sound; None: not wanted."""

    video: VideoStream | None
    audio: AudioStream | None

    @property
    def wanted(self) -> list[VideoStream | AudioStream]:
        """One or both, the picture first."""
        return [stream for stream in self if stream is not None]


def choose_tracks(container: InputContainer, name: str, modalities: Modalities = "av") -> Tracks:
    """The picture and the sound of the file `name`, as far as they are wanted.

    Raises `BadClip` when one that is wanted is missing, or cannot be decoded here.
    """
    video = audio = None
    with library_errors(name):
        if sees(modalities):
            pictures = [stream for stream in container.streams.video if not stream.disposition & _STILL]
            video = cast("VideoStream", _best(pictures, name, "video"))
        if hears(modalities):
            audio = cast("AudioStream", _best(list(container.streams.audio), name, "audio"))
            # FFmpeg 9 takes the samples that prime a decoder from the first packets that it is given, wherever in the
            # file they are. They lie before the track's start, and sound is placed by its time: they are cut off there.
            if FFMPEG_9:
                audio.codec_context.flags2 |= Flags2.skip_manual
        tracks = Tracks(video, audio)
        for stream in tracks.wanted:
            # Every core decodes a clip of its own already; more threads only get in each other's way.
            stream.codec_context.thread_count = 1
    return tracks


def _best(streams: list, name: str, kind: str) -> Stream:
    if not streams:
        raise BadClip(name, f"no {kind} stream")
    decodable = [stream for stream in streams if stream.codec_context is not None]
    if not decodable:
        raise BadClip(name, f"no decoder for its {kind} stream")
    return min(decodable, key=_rank)


def _rank(stream: Stream) -> tuple[bool, bool, bool, bool]:
    """Less is better."""
    disposition = stream.disposition
    return (
        _may_be_cover(stream),
        _without_parameters(stream),
        not disposition & Disposition.default,
        bool(disposition & _SIDE),
    )


def _may_be_cover(stream: Stream) -> bool:
    """A picture track of one frame, or coded as images and of nobody knows how many."""
    if stream.type != "video":
        return False
    return stream.frames == 1 or (stream.frames == 0 and stream.codec_context.name in _IMAGE_CODECS)


def _without_parameters(stream: Stream) -> bool:
    """Whether libav found out nothing of it: a track that the file only announces."""
    if isinstance(stream, AudioStream):
        return not stream.codec_context.sample_rate
    return not getattr(stream.codec_context, "width", 0)
