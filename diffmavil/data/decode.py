"""One clip from a file: the frames and the samples of a window, by their true presentation timestamps.

Frames are chosen by time, never by number, so variable frame rates, streams that start late and edit lists come out
right; sound and picture are cut on the same clock. Decoding starts at the last keyframe before the window. Rotation
and pixel aspect ratio are applied. What cannot be used raises `BadClip` with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import av
import av.logging
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from diffmavil.config import AudioConfig, VideoConfig
from diffmavil.data.transforms import FramingRule, centre_framing
from diffmavil.data.windows import MIN_SECONDS, Span, Windows, choose_windows

# libav writes a line for every damaged packet; what matters reaches the user as BadClip.
av.logging.set_level(None)
av.logging.set_libav_level(av.logging.PANIC)

AUDIO_PREROLL = 0.1
"""Seconds of sound decoded before the window: codecs overlap their blocks, the first after a seek is not exact."""
TOLERANCE = 0.25
"""Seconds that may be missing at a window's end before the header's durations are mistrusted."""
_STEPS_BACK = (0.0, 2.0, 8.0, None)
"""Seconds to seek further back when no keyframe was found before the window; None is the start of the file."""


class BadClip(Exception):
    """A clip that cannot be used, and why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class _Mistrusted(Exception):
    """The header promises more than the file holds: measure the streams and try again."""


@dataclass(frozen=True)
class Decoded:
    """A window of a clip.

    Attributes:
        video: uint8 `[T, H, W, 3]`, RGB, upright.
        wave: float32 `[S]`, mono, 16 kHz; zeros from `wave_valid` on.
        wave_valid: samples before the sound's end.
        windows: which seconds these are, on the container's clock.
    """

    video: np.ndarray
    wave: np.ndarray
    wave_valid: int
    windows: Windows


def decode_clip(
    path: str,
    video: VideoConfig,
    audio: AudioConfig,
    *,
    start: float | None = None,
    duration: float | None = None,
    rng: np.random.Generator | None = None,
    crop: tuple[int, int] = (0, 1),
    framing: FramingRule | None = None,
) -> Decoded:
    """Decode `video.frames` frames spread evenly over `video.seconds`, and the sound around them.

    Frame k is the one on screen at (k + 1/2) / frames of the window. A picture shorter than `video.seconds` is taken
    whole, its frames spread evenly over what there is.

    Args:
        path: any file libav reads.
        start, duration: the part of the file that is the clip, in seconds from the file's start; None: all of it.
        rng: where the windows lie; None for evaluation: crop `crop[0]` of `crop[1]`, evenly spaced (one: the centre).
        framing: the spatial crop; None: short side to `video.size`, centre.

    Raises:
        BadClip: no picture, no sound, less than 0.5 s of both together, or undecodable.
    """
    place = ((crop[0] + 0.5) / crop[1], 0.5) if rng is None else (float(rng.random()), float(rng.random()))
    job = _Job(path, video, audio, start, duration, place, framing or centre_framing(video.size))
    try:
        return job.run()
    except (av.error.FFmpegError, ValueError) as error:
        raise BadClip(path, f"cannot be decoded: {_explain(error)}") from error


def decode_sound(
    path: str, audio: AudioConfig, *, start: float | None = None, duration: float | None = None
) -> tuple[np.ndarray, int]:
    """The sound at the clip's centre: (wave float32 `[S]`, valid samples). Raises as `decode_clip`."""
    job = _Job(path, None, audio, start, duration, (0.5, 0.5), None)
    try:
        decoded = job.run()
    except (av.error.FFmpegError, ValueError) as error:
        raise BadClip(path, f"cannot be decoded: {_explain(error)}") from error
    return decoded.wave, decoded.wave_valid


def _explain(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@dataclass(frozen=True)
class _Job:
    path: str
    video: VideoConfig | None
    audio: AudioConfig
    start: float | None
    duration: float | None
    place: tuple[float, float]
    framing: FramingRule | None

    def run(self) -> Decoded:
        try:
            return self._decode(None)
        except _Mistrusted:
            with av.open(self.path) as container:
                spans = _measure(container, *_streams(self.path, container))
            return self._decode(spans)

    def _decode(self, measured: tuple[Span, Span] | None) -> Decoded:
        with av.open(self.path) as container:
            streams = _streams(self.path, container)
            picture, sound = self._limits(container, measured or _header(container, *streams))
            if picture.intersect(sound).length < MIN_SECONDS:
                if measured is None:
                    raise _Mistrusted
                self._too_short(picture, sound)
            seconds = self.video.seconds if self.video else 0.0
            windows = choose_windows(picture, sound, seconds, self.audio.samples / self.audio.sample_rate, self.place)
            video_packets, audio_packets = _read_window(container, *streams, windows)
            wave, valid = _decode_audio(streams[1], audio_packets, windows.audio, sound, self.audio)
            expected = min(windows.audio.end, sound.end) - windows.audio.start
            if measured is None and valid / self.audio.sample_rate < expected - TOLERANCE:
                raise _Mistrusted
            if valid < self.audio.sample_rate // 40:
                raise BadClip(self.path, "no sound could be decoded")
            if self.video is None or self.framing is None:
                return Decoded(np.empty((0, 0, 0, 3), np.uint8), wave, valid, windows)
            if measured is None and _end(streams[0], video_packets) < windows.video.end - TOLERANCE:
                raise _Mistrusted
            frames = self._decode_video(streams[0], video_packets, windows.video)
            return Decoded(frames, wave, valid, windows)

    def _limits(self, container: InputContainer, spans: tuple[Span, Span]) -> tuple[Span, Span]:
        """The spans of picture and sound inside the part of the file that is the clip."""
        origin = (container.start_time or 0) / av.time_base
        begin = origin + (self.start or 0.0)
        end = float("inf") if self.duration is None else begin + self.duration
        if self.start is None and self.duration is None:
            begin = float("-inf")
        return spans[0].intersect(Span(begin, end)), spans[1].intersect(Span(begin, end))

    def _too_short(self, picture: Span, sound: Span) -> None:
        common = picture.intersect(sound).length
        raise BadClip(
            self.path,
            f"only {common:.2f} s with both picture ({picture.length:.2f} s) and sound ({sound.length:.2f} s), "
            f"at least {MIN_SECONDS} s are needed",
        )

    def _decode_video(self, stream: VideoStream, packets: list[Packet], window: Span) -> np.ndarray:
        assert self.video is not None
        assert self.framing is not None
        count, size = self.video.frames, self.video.size
        times = window.start + (np.arange(count) + 0.5) * (window.length / count)
        out = np.empty((count, size, size, 3), np.uint8)
        painter = _Painter(self.framing, float(stream.sample_aspect_ratio or 1))
        done = 0
        shown: VideoFrame | None = None
        for frame in _frames(stream, packets[_first_packet(stream, packets, times[0]) :]):
            when = _time(frame)
            if when is None:
                continue
            # Everything due before this frame appears is still showing the one before.
            due = int(np.searchsorted(times, when, side="left"))
            if due > done and shown is not None:
                out[done:due] = painter.paint(shown)
                done = due
            shown = frame
            if done == count:
                break
        if shown is None:
            raise BadClip(self.path, "no picture could be decoded")
        if done < count:
            out[done:] = painter.paint(shown)
        return out


def _streams(path: str, container: InputContainer) -> tuple[VideoStream, AudioStream]:
    pictures = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not pictures:
        raise BadClip(path, "no video stream")
    if not container.streams.audio:
        raise BadClip(path, "no audio stream")
    video, audio = pictures[0], container.streams.audio[0]
    for stream in (video, audio):
        # One process for each core decodes already; more threads only get in each other's way.
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = "NONE"
    return video, audio


def _header(container: InputContainer, video: VideoStream, audio: AudioStream) -> tuple[Span, Span]:
    """What the file says that its streams cover; `_Mistrusted` if it does not say."""
    origin = (container.start_time or 0) / av.time_base
    spans = []
    for stream in (video, audio):
        tick = float(stream.time_base or 0)
        begin = origin if stream.start_time is None else stream.start_time * tick
        if stream.duration:
            spans.append(Span(begin, begin + stream.duration * tick))
        elif container.duration:
            spans.append(Span(begin, origin + container.duration / av.time_base))
        else:
            raise _Mistrusted
    return spans[0], spans[1]


def _measure(container: InputContainer, video: VideoStream, audio: AudioStream) -> tuple[Span, Span]:
    """What the packets cover: reads the whole file, decodes nothing."""
    spans = {video.index: Span(float("inf"), float("-inf")), audio.index: Span(float("inf"), float("-inf"))}
    for packet in _demux(container, video, audio):
        when = _time(packet)
        if when is not None:
            span = spans[packet.stream.index]
            spans[packet.stream.index] = Span(min(span.start, when), max(span.end, when + _lasts(packet)))
    return spans[video.index], spans[audio.index]


def _time(item: Packet | VideoFrame | AudioFrame) -> float | None:
    """Presentation time in seconds; containers without presentation times (AVI) give the decoding time."""
    stamp = item.dts if item.pts is None else item.pts
    return None if stamp is None or item.time_base is None else stamp * float(item.time_base)


def _lasts(packet: Packet) -> float:
    if packet.duration and packet.time_base:
        return packet.duration * float(packet.time_base)
    rate = getattr(packet.stream, "average_rate", None)
    return 1 / float(rate) if rate else 0.0


def _end(stream: VideoStream, packets: list[Packet]) -> float:
    ends = [when + _lasts(p) for p in packets if (when := _time(p)) is not None]
    return max(ends, default=float("-inf"))


def _demux(container: InputContainer, *streams: VideoStream | AudioStream) -> Iterator[Packet]:
    """Packets until the end of the file, or until it is cut off or damaged."""
    try:
        for packet in container.demux(*streams):
            if packet.size:
                yield packet
    except av.error.FFmpegError:
        return


def _read_window(
    container: InputContainer, video: VideoStream, audio: AudioStream, windows: Windows
) -> tuple[list[Packet], list[Packet]]:
    """The packets of both streams from before the windows to past their ends, without decoding them."""
    begin = min(windows.video.start, windows.audio.start - AUDIO_PREROLL)
    packets: dict[int, list[Packet]] = {}
    for back in _STEPS_BACK:
        packets = _read(container, video, audio, windows, None if back is None else begin - back)
        if any(
            p.is_keyframe and (t := _time(p)) is not None and t <= windows.video.start for p in packets[video.index]
        ):
            break
    return packets[video.index], packets[audio.index]


def _read(
    container: InputContainer, video: VideoStream, audio: AudioStream, windows: Windows, begin: float | None
) -> dict[int, list[Packet]]:
    origin = (container.start_time or 0) / av.time_base
    seconds = origin if begin is None else max(origin, begin)
    container.seek(int(seconds / float(video.time_base or 1)), stream=video)
    packets: dict[int, list[Packet]] = {video.index: [], audio.index: []}
    ends = {video.index: windows.video.end, audio.index: windows.audio.end}
    for packet in _demux(container, video, audio):
        index = packet.stream.index
        if index not in ends:
            continue
        # Decoding times only rise, and no frame is shown before it is decoded.
        stamp = packet.pts if packet.dts is None else packet.dts
        if (
            stamp is not None
            and stamp * float(packet.time_base or 0) > (windows.video if index == video.index else windows.audio).end
        ):
            del ends[index]
            if not ends:
                break
            continue
        packets[index].append(packet)
    return packets


def _first_packet(stream: VideoStream, packets: list[Packet], when: float) -> int:
    """Index of the last keyframe shown at or before `when`."""
    found = 0
    for index, packet in enumerate(packets):
        time = _time(packet)
        if packet.is_keyframe and time is not None and time <= when:
            found = index
    return found


def _frames(stream: VideoStream | AudioStream, packets: list[Packet]) -> Iterator:
    """Decoded frames in presentation order; damaged packets are left out."""
    for packet in [*packets, None]:
        try:
            yield from stream.codec_context.decode(packet)
        except av.error.FFmpegError:
            continue


class _Painter:
    """Draws frames upright, cropped, RGB."""

    def __init__(self, rule: FramingRule, pixel_aspect: float) -> None:
        self.rule = rule
        self.pixel_aspect = pixel_aspect
        self.reformatter = VideoReformatter()

    def paint(self, frame: VideoFrame) -> np.ndarray:
        """A view uint8 `[size, size, 3]`."""
        turns = round(frame.rotation / 90) % 4
        width, height = frame.width * self.pixel_aspect, float(frame.height)
        if turns % 2:
            width, height = height, width
        framing = self.rule(width, height)
        drawn = (framing.height, framing.width) if turns % 2 else (framing.width, framing.height)
        picture = self.reformatter.reformat(frame, *drawn, format="rgb24", interpolation=Interpolation.AREA)
        plane = picture.planes[0]
        pixels = np.frombuffer(plane, np.uint8).reshape(drawn[1], plane.line_size)
        pixels = pixels[:, : drawn[0] * 3].reshape(drawn[1], drawn[0], 3)
        return framing.cut(np.rot90(pixels, turns))


def _decode_audio(
    stream: AudioStream, packets: list[Packet], window: Span, sound: Span, config: AudioConfig
) -> tuple[np.ndarray, int]:
    """Mono samples of the window at 16 kHz, each run of frames placed by its own timestamp; and how many are real."""
    rate = config.sample_rate
    wave = np.zeros(config.samples, np.float32)
    limit = min(config.samples, round((sound.end - window.start) * rate))
    valid = 0
    before = [p for p in packets if (t := _time(p)) is None or t >= window.start - AUDIO_PREROLL - 0.2]
    for begin, samples in _runs(_frames(stream, before), rate):
        first = round((begin - window.start) * rate)
        low, high = max(0, first), min(limit, first + len(samples))
        if high > low:
            wave[low:high] = samples[low - first : high - first]
            valid = max(valid, high)
    return wave, valid


def _runs(frames: Iterator[AudioFrame], rate: int) -> Iterator[tuple[float, np.ndarray]]:
    """(start in seconds, mono float32 at `rate`) of each stretch of sound without a gap.

    Timestamps of webm are rounded to a millisecond, so a run goes on while they fit within 50 ms.
    """
    resampler, begin, expected, pieces, kind = None, 0.0, None, [], None
    for frame in frames:
        when = _time(frame)
        when = expected if when is None else when
        if when is None:
            continue
        this = (frame.format.name, frame.layout.name, frame.sample_rate)
        if resampler is None or expected is None or abs(when - expected) > 0.05 or this != kind:
            if resampler is not None:
                yield begin, _join(pieces, resampler)
            resampler = AudioResampler(format="fltp", layout="mono", rate=rate)
            begin, pieces, kind, expected = when, [], this, when
        pieces += [f.to_ndarray()[0] for f in resampler.resample(frame)]
        expected += frame.samples / frame.sample_rate
    if resampler is not None:
        yield begin, _join(pieces, resampler)


def _join(pieces: list[np.ndarray], resampler: AudioResampler) -> np.ndarray:
    pieces = pieces + [f.to_ndarray()[0] for f in resampler.resample(None)]
    return np.concatenate(pieces) if pieces else np.empty(0, np.float32)
