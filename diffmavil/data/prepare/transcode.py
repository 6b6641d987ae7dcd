"""One clip to H.264 and FLAC: decoded fully, upright, square pixels, cut into pieces whose streams start together.

Sound or picture alone give FLAC or H.264 alone, and a piece of them starts where that stream does.

A piece starts where picture and sound have both begun; its first frame is the one on screen then, at time 0, and its
first sample belongs to the same instant. True times are kept, so a variable frame rate stays one. The same input gives
the same bytes: one thread each, and none of x264's look-ahead, which does not hold that promise.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import av.error
import numpy as np
import torch
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from diffmavil.config.model import hears, sees
from diffmavil.data.audio import log_mel, moments
from diffmavil.data.decode import limited
from diffmavil.data.extent import seconds_of, tick_of
from diffmavil.data.frames import Disordered, counted_frames, timed_frames
from diffmavil.data.library import library_errors, reason_of
from diffmavil.data.media import BadClip, Deadline, Media
from diffmavil.data.modalities import least_seconds, too_short
from diffmavil.data.prepare.canvas import Canvas
from diffmavil.data.prepare.items import Item
from diffmavil.data.prepare.settings import MELS, SAMPLE_RATE, Settings
from diffmavil.data.shape import Shape, Shapes
from diffmavil.data.sound import MOST_DAMAGED, sound_of
from diffmavil.data.windows import Span, Windows

_TICK = Fraction(1, 90_000)
_X264 = {"preset": "veryfast", "tune": "fastdecode", "bf": "0", "threads": "1", "mbtree": "0", "rc-lookahead": "0",
         "sc_threshold": "0"}  # fmt: skip
_CUT_SLACK = 1.0
"""Seconds by which a file may be longer than its row's segment and still be that segment alone."""


@dataclass(frozen=True)
class Piece:
    """A coded piece of a clip; what was not wanted of it has no bytes, frames or samples.

    Attributes:
        start: second of the file at which it starts.
        seconds: how long its picture is; without one, its sound.
        frames, width, height: its picture.
        samples: its sound, at 16 kHz.
        heard: samples of it that were decoded; the others fill gaps.
        damaged: packets of its picture that could not be decoded.
        silent: its sound is digital silence.
        log_mel: for each number of mel filters: how many values count, their sum, the sum of their squares.
    """

    mp4: bytes
    flac: bytes
    start: float
    seconds: float
    frames: int
    width: int
    height: int
    samples: int
    heard: int
    damaged: int
    silent: bool
    log_mel: dict[str, tuple[int, float, float]]


def transcode(
    item: Item, settings: Settings, deadline: float, begun: Callable[[], None] = lambda: None
) -> Iterator[Piece | BadClip]:
    """Every piece of an item, or why it cannot be used.

    Args:
        deadline: seconds for the look at the whole file, and for each piece.
        begun: called before each piece.
    """
    try:
        with Media(item.path, Deadline(deadline, item.source), settings.modalities) as media:
            spans = _part(item, media, media.measured())
            origin = media.start
        windows, empty = _pieces(item, spans, media.filled, settings)
    except (av.error.FFmpegError, BadClip, OSError) as error:
        yield _bad(item, error)
        return
    if empty:
        what = "sound" if hears(settings.modalities) else "picture"
        yield BadClip(item.source, f"{empty} pieces without any {what}, where its time stamps jump")
    for window in windows:
        begun()
        try:
            with Media(item.path, Deadline(deadline, item.source), settings.modalities) as media:
                yield _piece(media, item, window, spans, origin, settings)
        except (av.error.FFmpegError, BadClip, OSError) as error:
            yield _bad(item, error)


def _bad(item: Item, error: Exception) -> BadClip:
    if isinstance(error, BadClip):
        return BadClip(item.source, error.reason)
    return BadClip(item.source, reason_of(error, item.path))


def _part(item: Item, media: Media, spans: tuple[Span, Span]) -> tuple[Span, Span]:
    """Where the item's picture and sound lie."""
    if item.maybe_cut and item.duration is not None:
        end = max(span.end for span in spans if span.length) if any(span.length for span in spans) else 0.0
        if end - media.start <= item.duration + _CUT_SLACK:
            return spans
    return limited(media, spans, item.start, item.duration)


def _pieces(item: Item, spans: tuple[Span, Span], filled: set[int], settings: Settings) -> tuple[list[Span], int]:
    """Even pieces of the time that has all that is wanted, and how many are left out since nothing lies in them.

    `filled`: as of `Media`. The last one keeps what is left of either. One damaged time stamp makes years of a file:
    those are never listed.
    """
    if reason := too_short(settings.modalities, *spans):
        raise BadClip(item.source, reason)
    common = spans[0].intersect(spans[1])
    # A tenth too long is no reason to cut in two.
    count = max(1, math.ceil(common.length / settings.cut - 0.1))
    length = common.length / count
    held: set[int] = set()
    for second in filled:
        first, after = ((edge - common.start) / length for edge in (second, second + 1))
        held.update(range(math.floor(first), math.floor(after) + 1))
    last = min(max(span.end for span in spans), common.start + (count - 1) * length + max(length, settings.cut))
    ends = {count - 1: last}
    windows = [
        Span(common.start + index * length, ends.get(index, common.start + (index + 1) * length))
        for index in sorted(held)
        if 0 <= index < count
    ]
    return windows, count - len(windows)


def _piece(
    media: Media, item: Item, window: Span, spans: tuple[Span, Span], origin: float, settings: Settings
) -> Piece:
    picture, sound = (Span(window.start, min(window.end, span.end)) for span in spans)
    video_packets, audio_packets = media.read(Windows(picture, sound))
    start, wave, heard = window.start, np.empty(0, np.float32), np.empty(0, bool)
    if hears(settings.modalities):
        length = round(sound.length * SAMPLE_RATE)
        wave, first, valid, heard, lost = sound_of(media, audio_packets, sound, sound.end, length, SAMPLE_RATE)
        if lost > MOST_DAMAGED:
            raise BadClip(item.source, "most of the sound cannot be decoded")
        wave, heard = wave[:valid], heard[:valid]
        start += first / SAMPLE_RATE
    coded = _NO_PICTURE
    damaged: list[Packet | None] = []
    if sees(settings.modalities):
        coded = _picture(media, item, video_packets, Span(start, picture.end), damaged, settings)
        start = coded.start
    # Both begin with whichever comes later.
    kept = slice(round((start - window.start) * SAMPLE_RATE), None)
    sounding = _sounding(item, wave[kept], heard[kept], settings) if hears(settings.modalities) else _NO_SOUND
    return Piece(
        mp4=coded.mp4,
        flac=sounding.flac,
        start=round(start - origin, 6),
        seconds=coded.seconds if sees(settings.modalities) else sounding.samples / SAMPLE_RATE,
        frames=coded.frames,
        width=coded.width,
        height=coded.height,
        samples=sounding.samples,
        heard=sounding.heard,
        damaged=len(damaged),
        silent=sounding.silent,
        log_mel=sounding.log_mel,
    )


_MOST_CLIPPED = 0.1
"""Above which a clip is bad. Loud recordings pass full scale where a lossy codec overshot (in GRID 3 % of the energy
did at most): that is cut off, as it is wherever sound is kept in 16 bits."""


@dataclass(frozen=True)
class _Sounding:
    flac: bytes
    samples: int
    heard: int
    silent: bool
    log_mel: dict[str, tuple[int, float, float]]


_NO_SOUND = _Sounding(b"", 0, 0, False, {})


def _sounding(item: Item, wave: np.ndarray, heard: np.ndarray, settings: Settings) -> _Sounding:
    """The sound of a piece, coded and measured; raises `BadClip` for too little of it."""
    if (lost := _clipped(wave)) > _MOST_CLIPPED:
        peak = f"reaches {np.abs(wave).max():.2g} where full scale is 1"
        raise BadClip(item.source, f"its sound {peak}: what FLAC of 16 bits would cut off has {lost:.1%} of its energy")
    samples, decoded = _quantized(wave), int(np.count_nonzero(heard))
    if decoded < least_seconds(settings.modalities) * SAMPLE_RATE:
        raise BadClip(item.source, f"only {decoded / SAMPLE_RATE:.2f} s of its sound can be decoded")
    silent = not samples.any()
    if silent and settings.drop_silent:
        raise BadClip(item.source, "its sound is digital silence")
    waves = torch.from_numpy(samples.astype(np.float32) / 32768.0)[None]
    found = {str(mels): moments(log_mel(waves, mels, SAMPLE_RATE)) for mels in MELS}
    padded = sees(settings.modalities)
    return _Sounding(_encode_sound(samples, padded), len(samples), decoded, silent, found)


@dataclass(frozen=True)
class _Picture:
    mp4: bytes
    start: float
    seconds: float
    frames: int
    width: int
    height: int


_NO_PICTURE = _Picture(b"", 0.0, 0.0, 0, 0, 0)


def _picture(
    media: Media, item: Item, packets: list[Packet], window: Span, damaged: list[Packet | None], settings: Settings
) -> _Picture:
    """The picture of a piece, coded; raises `BadClip` for too little of it. `damaged`: as of `_encode_picture`."""
    try:
        coded = _encode_picture(media, timed_frames(media, packets, damaged), window, damaged, settings)
    except Disordered:
        coded = _encode_picture(media, counted_frames(media, packets, damaged), window, damaged, settings)
    if 2 * len(damaged) >= len(packets):
        raise BadClip(item.source, "most of the picture, or all of it, cannot be decoded")
    if coded.seconds < least_seconds(settings.modalities):
        raise BadClip(item.source, f"only {coded.seconds:.2f} s of its picture can be decoded")
    return coded


def _encode_picture(
    media: Media,
    frames: Iterable[tuple[float, VideoFrame]],
    window: Span,
    damaged: list[Packet | None],
    settings: Settings,
) -> _Picture:
    """The frames on screen during `window`, or from the first frame on if that comes later; the first appears at 0.

    A frame is on screen until the next one comes, or would have come: `damaged` grows with the packets that give none.
    """
    encoder: _Encoder | None = None
    before: tuple[VideoFrame, Shape] | None = None
    start, last = window.start, float("-inf")
    shapes = Shapes(media.video)
    for when, frame in frames:
        if when >= window.end:
            break
        last = when
        shown = frame, shapes(frame)
        if when <= window.start:
            before = shown
            continue
        if encoder is None:
            encoder = _Encoder(*(before or shown), settings)
            start = window.start if before else when
            encoder.add(0.0, *(before or shown))
        encoder.add(when - start, *shown)
    if encoder is None and before is not None:
        encoder = _Encoder(*before, settings)
        encoder.add(0.0, *before)
    if encoder is None:
        raise BadClip("", "no frame of its picture can be decoded")
    tick = tick_of(media.video)
    lost = [seconds_of(packet, tick) for packet in damaged if packet is not None]
    end = min([window.end, *(when for when in lost if when is not None and when > last)])
    return encoder.finish(start, end)


class _Encoder:
    """Frames to H.264 in mp4, as `Canvas` draws them."""

    def __init__(self, first: VideoFrame, shape: Shape, settings: Settings) -> None:
        self.canvas = Canvas(first, shape, settings)
        self.size = self.canvas.size
        self.file = io.BytesIO()
        self.container = av.open(self.file, "w", format="mp4")
        options = {**_X264, "crf": str(settings.crf)}
        self.stream: VideoStream = self.container.add_stream("libx264", rate=25, options=options)
        self.stream.width, self.stream.height = self.size
        self.stream.pix_fmt = "yuv420p"
        self.stream.gop_size = settings.gop
        context = self.stream.codec_context
        context.time_base = _TICK
        context.thread_count = 1
        context.colorspace, context.color_range = Colorspace.SMPTE170M, ColorRange.MPEG
        self.packets: list[Packet] = []
        self.stamps: list[int] = []

    def add(self, when: float, frame: VideoFrame, shape: Shape) -> None:
        stamp = round(when / _TICK)
        if self.stamps and stamp <= self.stamps[-1]:
            return  # two frames for one instant: nobody sees the second
        with library_errors():
            drawn = self.canvas.draw(frame, shape)
        drawn.pts, drawn.time_base = stamp, _TICK
        drawn.pict_type = 0  # the source's keyframes are not ours
        self.stamps.append(stamp)
        with library_errors():
            self.packets += self.stream.encode(drawn)

    def finish(self, start: float, end: float) -> _Picture:
        """Write the file. `start`, `end`: seconds of the source at which its picture starts and ends."""
        self.packets += self.stream.encode(None)
        until = max(round((end - start) / _TICK), self.stamps[-1] + 1)
        for packet, begin, after in zip(self.packets, self.stamps, [*self.stamps[1:], until], strict=True):
            packet.duration = after - begin
            self.container.mux(packet)
        self.container.close()
        return _Picture(self.file.getvalue(), start, float(until * _TICK), len(self.stamps), *self.size)


def _clipped(wave: np.ndarray) -> float:
    """Energy of what lies above full scale, as a share of all."""
    over, energy = np.maximum(np.abs(wave) - 1, 0), float(np.square(wave).sum())
    return float(np.square(over).sum()) / energy if energy else 0.0


def _quantized(wave: np.ndarray) -> np.ndarray:
    """Float32 to the 16 bits of FLAC."""
    return np.clip(np.rint(wave * 32767.0), -32768, 32767).astype(np.int16)


def _encode_sound(wave: np.ndarray, padded: bool) -> bytes:
    """int16 `[S]` at 16 kHz -> FLAC; `padded`: with libav's 8 KB of room for tags, more than a spoken digit takes."""
    file = io.BytesIO()
    options = {} if padded else {"metadata_header_padding": "0"}
    with av.open(file, "w", format="flac", options=options) as container:
        stream = container.add_stream("flac", rate=SAMPLE_RATE, layout="mono", format="s16")
        stream.codec_context.thread_count = 1
        frame_size = stream.codec_context.frame_size or 4096
        for at in range(0, len(wave), frame_size):
            frame = av.AudioFrame.from_ndarray(wave[None, at : at + frame_size], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, at, Fraction(1, SAMPLE_RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()
