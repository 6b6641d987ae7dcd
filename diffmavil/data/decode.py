"""One clip from a file: the frames and the samples of a window, by their true presentation timestamps.

Frames are chosen by time, never by number, so variable frame rates, streams that start late and edit lists come out
right; sound and picture are cut on the same clock. Decoding starts at the last keyframe before the window. Rotation
and pixel aspect ratio are applied. What cannot be used raises `BadClip` with the reason.

Tried and left: letting the decoder drop frames that are neither shown nor referred to (skip_frame NONREF). It saved
nothing on half of 26 real clips, a quarter at most, and changed the frames of one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from av.packet import Packet

from diffmavil.config import AudioConfig, DecoderName, Modalities, VideoConfig
from diffmavil.config.model import hears
from diffmavil.data.decoders import Later, painter_of
from diffmavil.data.extent import span_of
from diffmavil.data.frames import Painter
from diffmavil.data.media import BadClip, Deadline, Media, UnknownLength
from diffmavil.data.modalities import too_short
from diffmavil.data.samples import Sample, open_media
from diffmavil.data.sound import MOST_DAMAGED, Sound, sound_of
from diffmavil.data.transforms import FramingRule, centre_framing
from diffmavil.data.windows import Span, Windows, choose_windows, free_seconds

__all__ = ["DEADLINE", "BadClip", "Decoded", "Sample", "clip_spans", "decode_clip", "decode_sound"]

DEADLINE = 60.0
"""Seconds after which a clip is given up."""

_MISSING = 0.25
"""Seconds that may be missing at a window's end before the header is mistrusted."""
_LATE = 0.05
"""The same at a window's start."""
_NO_FRAMES = np.empty((0, 0, 0, 3), np.uint8)
_NO_SOUND = Sound(np.empty(0, np.float32), 0, 0, np.empty(0, bool))


@dataclass(frozen=True)
class Decoded:
    """A window of a clip.

    Attributes:
        video: uint8 `[T, H, W, 3]`, RGB, upright; `[0, 0, 0, 3]` of sound alone.
        wave: float32 `[S]`, mono, 16 kHz; zeros from `wave_valid` on; `[0]` of a picture alone.
        wave_valid: samples before the sound's end.
        windows: which seconds these are, on the container's clock.
        later: the picture, still coded, for a decoder that takes whole batches; then `video` is empty.
        origin: the file's start on that clock.
    """

    video: np.ndarray
    wave: np.ndarray
    wave_valid: int
    windows: Windows
    later: Later | None = None
    origin: float = 0.0


def decode_clip(
    source: str | Sample,
    video: VideoConfig,
    audio: AudioConfig,
    *,
    modalities: Modalities = "av",
    start: float | None = None,
    duration: float | None = None,
    rng: np.random.Generator | None = None,
    crop: tuple[int, int] = (0, 1),
    at: float | None = None,
    framing: FramingRule | None = None,
    deadline: float = DEADLINE,
    decoder: DecoderName = "pyav",
    out: np.ndarray | None = None,
) -> Decoded:
    """Decode `video.frames` frames spread evenly over `video.seconds`, and the sound around them.

    Frame k is the one on screen at (k + 1/2) / frames of the window. A picture shorter than `video.seconds` is taken
    whole, its frames spread evenly over what there is. A file that is cut off, or whose header promises too much, is
    used as far as it goes.

    Args:
        source: path of any file libav reads, or a prepared sample.
        modalities: what is decoded; audio and video ask for that track alone, and the other one may be missing.
        start, duration: the part of the file that is the clip, in seconds from the file's start; None: all of it.
        rng: where the windows lie; None for evaluation: crop `crop[0]` of `crop[1]`, evenly spaced (one: the centre).
        at: instead, the second of the clip at which the longer window begins, or so late that it ends with the clip.
        framing: the spatial crop; None: short side to `video.size`, centre.
        deadline: seconds after which the clip is given up.
        decoder: what decodes the picture; all but pyav take prepared samples alone.
        out: uint8 `[T, size, size, 3]`, where the frames are drawn; None: memory of their own.

    Raises:
        BadClip: no picture or no sound, where it is wanted; less than 0.5 s of both together, or of a picture alone, or
            less than 0.1 s of sound alone; undecodable, or not done by the deadline.
    """
    place = ((crop[0] + 0.5) / crop[1], 0.5) if rng is None else (float(rng.random()), float(rng.random()))
    painter = None
    if modalities != "audio":
        painter = painter_of(decoder)(video, framing or centre_framing(video.size), out)
    return _Job(source, modalities, start, duration, audio, place, painter, deadline, at).run()


def clip_spans(
    source: str | Sample,
    *,
    modalities: Modalities = "av",
    start: float | None = None,
    duration: float | None = None,
    deadline: float = DEADLINE,
) -> tuple[Span, Span]:
    """Seconds from the file's start that the clip's picture and sound cover, by all of its packets: nothing is decoded.

    What is not wanted covers what the other does. Arguments and errors as of `decode_clip`.
    """
    path = source.name if isinstance(source, Sample) else source
    with open_media(source, Deadline(deadline, path), modalities) as media:
        picture, sound = limited(media, media.measured(), start, duration)
        if reason := too_short(modalities, picture, sound):
            raise BadClip(path, reason)
        return picture.later(-media.start), sound.later(-media.start)


def decode_sound(
    source: str | Sample,
    audio: AudioConfig,
    *,
    modalities: Modalities = "av",
    start: float | None = None,
    duration: float | None = None,
    deadline: float = DEADLINE,
) -> Decoded:
    """The sound at the centre of the clip, without its picture. Arguments and errors as of `decode_clip`.

    With `modalities` av, of the time that has a picture too.
    """
    return _Job(source, modalities, start, duration, audio, (0.5, 0.5), None, deadline).run()


@dataclass(frozen=True)
class _Job:
    source: str | Sample
    modalities: Modalities
    start: float | None
    duration: float | None
    audio: AudioConfig
    place: tuple[float, float]
    painter: Painter | None
    deadline: float
    at: float | None = None

    @property
    def path(self) -> str:
        return self.source.name if isinstance(self.source, Sample) else self.source

    def run(self) -> Decoded:
        deadline = Deadline(self.deadline, self.path)
        try:
            with open_media(self.source, deadline, self.modalities) as media:
                decoded = self._try_promised(media)
            if decoded is not None:
                return decoded
            with open_media(self.source, deadline, self.modalities) as media:
                spans = media.measured()
            with open_media(self.source, deadline, self.modalities) as media:
                decoded = self._decode(media, *self._limit(media, spans))
            assert decoded is not None
            return decoded
        except BadClip as error:
            if error.path:
                raise
            raise BadClip(self.path, error.reason) from error

    def _try_promised(self, media: Media) -> Decoded | None:
        """Decode where the header says there is something; None when there is less than it says."""
        try:
            picture, sound = self._limit(media, media.promised())
        except UnknownLength:
            return None
        if too_short(self.modalities, picture, sound):
            return None
        return self._decode(media, picture, sound, trust=False)

    def _limit(self, media: Media, spans: tuple[Span, Span]) -> tuple[Span, Span]:
        return limited(media, spans, self.start, self.duration)

    def _decode(self, media: Media, picture: Span, sound: Span, trust: bool = True) -> Decoded | None:
        """Decode the windows. Without `trust` in the spans: None when the file holds less than they say."""
        if reason := too_short(self.modalities, picture, sound):
            raise BadClip(self.path, reason)
        video_seconds = self.painter.video.seconds if self.painter else 0.0
        audio_seconds = self.audio.samples / self.audio.sample_rate if hears(self.modalities) else 0.0
        place = self.place
        if self.at is not None:
            free = free_seconds(picture, sound, video_seconds, audio_seconds)
            place = (min(1.0, self.at / free) if free else 0.0, 0.5)
        windows = choose_windows(picture, sound, video_seconds, audio_seconds, place)
        video_packets, audio_packets = media.read(windows)
        heard = self._sound(media, audio_packets, windows, sound, trust) if hears(self.modalities) else _NO_SOUND
        if heard is None:
            return None
        wave, valid = heard.wave, heard.valid
        if self.painter is None:
            return Decoded(_NO_FRAMES, wave, valid, windows, origin=media.start)
        if not trust and span_of(media.video, video_packets).end < windows.video.end - _MISSING:
            return None
        frames = self.painter.frames(media, video_packets, windows.video)
        if frames is None:
            raise BadClip(self.path, "most of the picture, or all of it, cannot be decoded")
        if isinstance(frames, Later):
            return Decoded(_NO_FRAMES, wave, valid, windows, frames, media.start)
        return Decoded(frames, wave, valid, windows, origin=media.start)

    def _sound(self, media: Media, packets: list[Packet], windows: Windows, sound: Span, trust: bool) -> Sound | None:
        """The sound of its window; None without `trust` in its span, when there is less than that says."""
        rate = self.audio.sample_rate
        found = sound_of(media, packets, windows.audio, sound.end, self.audio.samples, rate)
        expected = min(windows.audio.end, sound.end) - windows.audio.start
        if not trust and (found.valid / rate < expected - _MISSING or found.first > _LATE * rate):
            return None
        if np.count_nonzero(found.heard) < rate // 40:
            raise BadClip(self.path, "no sound could be decoded")
        if found.damaged > MOST_DAMAGED:
            raise BadClip(self.path, "most of the sound cannot be decoded")
        return found


def limited(media: Media, spans: tuple[Span, Span], start: float | None, duration: float | None) -> tuple[Span, Span]:
    """The spans of picture and sound inside `duration` seconds from second `start` of the file."""
    begin = media.start + start if start else float("-inf")
    end = float("inf") if duration is None else media.start + (start or 0.0) + duration
    return spans[0].intersect(Span(begin, end)), spans[1].intersect(Span(begin, end))
