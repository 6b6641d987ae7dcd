"""One clip from a file: the frames and the samples of a window, by their true presentation timestamps.

Frames are chosen by time, never by number, so variable frame rates, streams that start late and edit lists come out
right; sound and picture are cut on the same clock. Decoding starts at the last keyframe before the window. Rotation
and pixel aspect ratio are applied. What cannot be used raises `BadClip` with the reason.

Tried and left: letting the decoder drop frames that are neither shown nor referred to (skip_frame NONREF). It saved
nothing on half of 26 real clips, a quarter at most, and changed the frames of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import av.error
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.packet import Packet

from diffmavil.config import AudioConfig, DecoderName, VideoConfig
from diffmavil.data.decoders import Later, painter_of
from diffmavil.data.extent import seconds_of, span_of, tick_of
from diffmavil.data.frames import Painter, decoded_of
from diffmavil.data.media import BadClip, Deadline, Media, Sample, UnknownLength, open_media
from diffmavil.data.transforms import FramingRule, centre_framing
from diffmavil.data.windows import MIN_SECONDS, Span, Windows, choose_windows

__all__ = ["DEADLINE", "BadClip", "Decoded", "Sample", "decode_clip", "decode_sound"]

DEADLINE = 60.0
"""Seconds after which a clip is given up."""

_MISSING = 0.25
"""Seconds that may be missing at a window's end before the header is mistrusted."""
_LATE = 0.05
"""The same at a window's start."""
_GAP = 0.05
"""Seconds by which one time stamp may disagree with the samples counted before it means a gap."""
_JITTER = 0.005
"""Seconds by which they may disagree for ever (webm rounds to 1 ms, recorders to more)."""
_ROUNDED = 0.002
"""Seconds by which rounded time stamps differ from each other."""
_LASTS = 4, 12
"""Frames whose stamps all disagree with the count, by the same, or in one direction only: then the stamps are right."""
_NO_FRAMES = np.empty((0, 0, 0, 3), np.uint8)


@dataclass(frozen=True)
class Decoded:
    """A window of a clip.

    Attributes:
        video: uint8 `[T, H, W, 3]`, RGB, upright; empty from `decode_sound`.
        wave: float32 `[S]`, mono, 16 kHz; zeros from `wave_valid` on.
        wave_valid: samples before the sound's end.
        windows: which seconds these are, on the container's clock.
        later: the picture, still coded, for a decoder that takes whole batches; then `video` is empty.
    """

    video: np.ndarray
    wave: np.ndarray
    wave_valid: int
    windows: Windows
    later: Later | None = None


def decode_clip(
    source: str | Sample,
    video: VideoConfig,
    audio: AudioConfig,
    *,
    start: float | None = None,
    duration: float | None = None,
    rng: np.random.Generator | None = None,
    crop: tuple[int, int] = (0, 1),
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
        start, duration: the part of the file that is the clip, in seconds from the file's start; None: all of it.
        rng: where the windows lie; None for evaluation: crop `crop[0]` of `crop[1]`, evenly spaced (one: the centre).
        framing: the spatial crop; None: short side to `video.size`, centre.
        deadline: seconds after which the clip is given up.
        decoder: what decodes the picture; all but pyav take prepared samples alone.
        out: uint8 `[T, size, size, 3]`, where the frames are drawn; None: memory of their own.

    Raises:
        BadClip: no picture, no sound, less than 0.5 s of both together, undecodable, or not done by the deadline.
    """
    place = ((crop[0] + 0.5) / crop[1], 0.5) if rng is None else (float(rng.random()), float(rng.random()))
    painter = painter_of(decoder)(video, framing or centre_framing(video.size), out)
    return _Job(source, start, duration, audio, place, painter, deadline).run()


def decode_sound(
    source: str | Sample,
    audio: AudioConfig,
    *,
    start: float | None = None,
    duration: float | None = None,
    deadline: float = DEADLINE,
) -> Decoded:
    """The sound alone, at the centre of the clip. Arguments and errors as of `decode_clip`."""
    return _Job(source, start, duration, audio, (0.5, 0.5), None, deadline).run()


@dataclass(frozen=True)
class _Job:
    source: str | Sample
    start: float | None
    duration: float | None
    audio: AudioConfig
    place: tuple[float, float]
    painter: Painter | None
    deadline: float

    @property
    def path(self) -> str:
        return self.source.name if isinstance(self.source, Sample) else self.source

    def run(self) -> Decoded:
        deadline = Deadline(self.deadline, self.path)
        try:
            with open_media(self.source, deadline) as media:
                decoded = self._try_promised(media)
            if decoded is not None:
                return decoded
            with open_media(self.source, deadline) as media:
                spans = media.measured()
            with open_media(self.source, deadline) as media:
                decoded = self._decode(media, *self._limit(media, spans))
            assert decoded is not None
            return decoded
        except (av.error.FFmpegError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise BadClip(self.path, f"cannot be decoded: {reason}") from error

    def _try_promised(self, media: Media) -> Decoded | None:
        """Decode where the header says there is something; None when there is less than it says."""
        try:
            picture, sound = self._limit(media, media.promised())
        except UnknownLength:
            return None
        if picture.intersect(sound).length < MIN_SECONDS:
            return None
        return self._decode(media, picture, sound, trust=False)

    def _limit(self, media: Media, spans: tuple[Span, Span]) -> tuple[Span, Span]:
        return limited(media, spans, self.start, self.duration)

    def _decode(self, media: Media, picture: Span, sound: Span, trust: bool = True) -> Decoded | None:
        """Decode both windows. Without `trust` in the spans: None when the file holds less than they say."""
        common = picture.intersect(sound).length
        if common < MIN_SECONDS:
            raise BadClip(
                self.path,
                f"only {common:.2f} s with both picture ({picture.length:.2f} s) and sound ({sound.length:.2f} s), "
                f"at least {MIN_SECONDS} s are needed",
            )
        seconds = self.painter.video.seconds if self.painter else 0.0
        rate = self.audio.sample_rate
        windows = choose_windows(picture, sound, seconds, self.audio.samples / rate, self.place)
        video_packets, audio_packets = media.read(windows)
        wave, first, valid = sound_of(media, audio_packets, windows.audio, sound.end, self.audio.samples, rate)
        expected = min(windows.audio.end, sound.end) - windows.audio.start
        if not trust and (valid / rate < expected - _MISSING or first > _LATE * rate):
            return None
        if valid < rate // 40:
            raise BadClip(self.path, "no sound could be decoded")
        if self.painter is None:
            return Decoded(_NO_FRAMES, wave, valid, windows)
        if not trust and span_of(media.video, video_packets).end < windows.video.end - _MISSING:
            return None
        frames = self.painter.frames(media, video_packets, windows.video)
        if frames is None:
            raise BadClip(self.path, "most of the picture, or all of it, cannot be decoded")
        if isinstance(frames, Later):
            return Decoded(_NO_FRAMES, wave, valid, windows, frames)
        return Decoded(frames, wave, valid, windows)


def limited(media: Media, spans: tuple[Span, Span], start: float | None, duration: float | None) -> tuple[Span, Span]:
    """The spans of picture and sound inside `duration` seconds from second `start` of the file."""
    begin = media.start + start if start else float("-inf")
    end = float("inf") if duration is None else media.start + (start or 0.0) + duration
    return spans[0].intersect(Span(begin, end)), spans[1].intersect(Span(begin, end))


def sound_of(
    media: Media, packets: list[Packet], window: Span, end: float, samples: int, rate: int
) -> tuple[np.ndarray, int, int]:
    """The window's `samples` at `rate`, mono, each run of frames placed by its own time; and which are real.

    Returns:
        float32 `[samples]`, the number of samples before the sound's start, and of those before its end, which is at
        `end` at the latest.
    """
    wave = np.zeros(samples, np.float32)
    limit = min(samples, round((end - window.start) * rate))
    start, valid = limit, 0
    for begin, run in _runs(media, packets, rate):
        first = round((begin - window.start) * rate)
        low, high = max(0, first), min(limit, first + len(run))
        if high > low:
            wave[low:high] = run[low - first : high - first]
            start, valid = min(start, low), max(valid, high)
    return wave, max(0, min(start, valid)), valid


def _runs(media: Media, packets: list[Packet], rate: int) -> Iterator[tuple[float, np.ndarray]]:
    """(start in seconds, mono float32 at `rate`) of each stretch of sound without a gap or a change of format."""
    frames = decoded_of(media, media.audio, packets)
    vorbis = media.audio.codec_context.name == "vorbis"
    for start, stretch in _stretches(frames, tick_of(media.audio), vorbis):
        run = _Run(_kind(stretch[0]), rate)
        for frame in stretch:
            run.add(frame)
        yield start, run.samples()


def _stretches(frames: Iterator[AudioFrame], tick: float, vorbis: bool) -> Iterator[tuple[float, list[AudioFrame]]]:
    """(start in seconds, frames) of each stretch. Frames follow each other, whatever the jitter of their time stamps;
    where the stamps leave that count for good, by less than one can tell from jitter at once, a stretch ends too."""
    held: list[AudioFrame] = []
    start = end = 0.0
    doubts: list[float] = []  # by how much the last frames' time stamps are off, all in one direction
    # By how much Vorbis's frames of so many samples are off for ever: its encoders stamp the long ones late.
    usual: dict[int, float] = {}
    for frame in frames:
        when = seconds_of(frame, tick)
        off = (doubts or [0.0])[-1] if when is None else when - end
        if when is not None and vorbis and abs(off) <= _GAP:
            off -= usual.setdefault(frame.samples, off if held else 0.0)
        if not held or _kind(frame) != _kind(held[-1]) or abs(off) > _GAP:
            if held:
                yield start + min(usual.values()), held
            elif when is None:
                continue
            start = end = end if when is None else when
            held, doubts, off = [], [], 0.0
            usual = {frame.samples: 0.0}
        held.append(frame)
        end += frame.samples / frame.sample_rate
        if abs(off) <= _JITTER or (doubts and off * doubts[-1] < 0):
            doubts = []
        if abs(off) > _JITTER:
            doubts.append(off)
        steady = bool(doubts) and max(doubts) - min(doubts) <= _ROUNDED
        if len(doubts) >= _LASTS[0 if steady else 1]:
            yield start + min(usual.values()), held[: -len(doubts)]
            start, held, end = _anchored(held, doubts, end)
            doubts = []
    if len(doubts) > 1 and max(doubts) - min(doubts) <= _ROUNDED:
        yield start + min(usual.values()), held[: -len(doubts)]
        start, held, _ = _anchored(held, doubts, end)
    if held:
        yield start + min(usual.values()), held


def _anchored(held: list[AudioFrame], doubts: list[float], end: float) -> tuple[float, list[AudioFrame], float]:
    """The frames that are in doubt as a stretch of their own: its start, the frames and its end by their stamps."""
    apart = held[-len(doubts) :]
    end += float(np.median(doubts))
    return end - sum(frame.samples / frame.sample_rate for frame in apart), apart, end


def _kind(frame: AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


class _Run:
    """Frames of one format that follow each other; mono is the mean of the channels."""

    def __init__(self, kind: tuple[str, str, int], rate: int) -> None:
        self.kind = kind
        self.rate = rate
        # FLAC's 16 bits of one channel, which prepared clips are, become floats all at once.
        self.dtype = np.dtype(np.int16 if kind[:2] == ("s16", "mono") else np.float32)
        # libav's own mono is 3 dB louder for two equal channels than for one.
        self.to_float = None if kind[0] == "fltp" or self.dtype == np.int16 else AudioResampler(format="fltp")
        self.channels: list[list[np.ndarray]] = []

    def add(self, frame: AudioFrame) -> None:
        for piece in [frame] if self.to_float is None else self.to_float.resample(frame):
            planes = piece.planes
            self.channels = self.channels or [[] for _ in planes]
            for pieces, plane in zip(self.channels, planes, strict=True):
                # `to_ndarray` makes three arrays and a copy of each frame: a tenth of a short clip's decoding.
                pieces.append(np.frombuffer(memoryview(plane), self.dtype, piece.samples))

    def samples(self) -> np.ndarray:
        """Float32 at `rate`."""
        if not self.channels:
            return np.empty(0, np.float32)
        channels = np.stack([np.concatenate(pieces) for pieces in self.channels])
        if self.dtype == np.int16:
            samples = channels[0].astype(np.float32) * np.float32(2.0**-15)
        else:
            samples = channels.mean(0)
        source_rate = self.kind[2]
        if source_rate == self.rate or not samples.size:
            return samples
        whole = AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        whole.sample_rate = source_rate
        resampler = AudioResampler(format="fltp", layout="mono", rate=self.rate)
        return np.concatenate([piece.to_ndarray()[0] for piece in resampler.resample(whole) + resampler.resample(None)])
