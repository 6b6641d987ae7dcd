"""Small encoded clips whose content tells the time, for the tests of decoding."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

MEDIA = Path(os.environ.get("DIFFMAVIL_MEDIA", Path(__file__).parents[2].parent / "shared" / "media"))
"""Real clips; the tests that use them skip where they are absent."""

BITS = 8
Painter = Callable[[int], np.ndarray]
"""Frame number -> uint8 `[H, W, 3]`."""


def numbered(width: int = 64, height: int = 64) -> Painter:
    """Frames that show their number in binary: `BITS` upright bars, black or white, the lowest bit at the left."""

    def paint(index: int) -> np.ndarray:
        bars = np.array([255 if index >> bit & 1 else 0 for bit in range(BITS)], np.uint8)
        row = bars[np.arange(width) * BITS // width]
        return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()

    return paint


def number_shown(frame: np.ndarray) -> int:
    """Reads what `numbered` painted, at any size."""
    width = frame.shape[1]
    centres = ((np.arange(BITS) + 0.5) * width / BITS).astype(int)
    bars = frame[:, centres].mean((0, 2)) > 128
    return int(sum(1 << bit for bit in range(BITS) if bars[bit]))


def write_clip(
    path: Path,
    *,
    paint: Painter | None = None,
    times: Sequence[float] | None = None,
    seconds: float = 3.0,
    fps: float = 25,
    sound: np.ndarray | None = None,
    rate: int = 16_000,
    layout: str = "mono",
    video_start: float = 0.0,
    audio_start: float = 0.0,
    codecs: tuple[str | None, str | None] = ("libx264", "aac"),
    pixels: str = "yuv420p",
    pixel_aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
    gop: int = 12,
) -> Path:
    """Encode frames at `times` (default: `fps` for `seconds`) and `sound` (default: a tone) as `path`'s suffix says."""
    paint = paint or numbered()
    shown = [index / fps for index in range(round(seconds * fps))] if times is None else times
    if sound is None:
        sound = 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
    with av.open(str(path), "w", options=options or {}) as container:
        video_codec, audio_codec = codecs
        packets = []
        if video_codec:
            height, width = paint(0).shape[:2]
            stream = container.add_stream(video_codec, rate=Fraction(fps).limit_denominator(1001))
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height, stream.pix_fmt = width, height, pixels
            stream.gop_size = gop
            stream.codec_context.thread_count = 1
            if pixel_aspect:
                stream.codec_context.sample_aspect_ratio = pixel_aspect
            if video_codec == "libx264":
                stream.options = {"preset": "veryfast", "crf": "18"}
            if video_codec == "libvpx":
                stream.options = {"deadline": "realtime", "cpu-used": "8", "crf": "10", "b": "1M"}
            if video_codec not in ("mpeg1video", "mpeg4"):  # those know only the frame rate's ticks
                stream.codec_context.time_base = Fraction(1, 12_800)
            tick = stream.codec_context.time_base or Fraction(1, round(fps))
            for index, when in enumerate(shown):
                frame = av.VideoFrame.from_ndarray(paint(index), format="rgb24")
                frame.pts, frame.time_base = round((video_start + when) / tick), tick
                packets += stream.encode(frame)
            packets += stream.encode(None)
        if audio_codec:
            packets += _encode_sound(container, audio_codec, sound, rate, layout, audio_start)
        # Interleaved by time, as players and recorders write.
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            container.mux(packet)
    return path


def _encode_sound(container, codec: str, sound: np.ndarray, rate: int, layout: str, start: float) -> list:
    stream = container.add_stream(codec, rate=rate, layout=layout)
    stream.codec_context.thread_count = 1
    codec_context = stream.codec_context
    resampler = av.AudioResampler(codec_context.format.name, layout, rate, frame_size=codec_context.frame_size or 0)
    packets = []
    channels = len(codec_context.layout.channels)
    samples = np.repeat(sound[None].astype(np.float32), channels, axis=0)
    first = round(start * rate)
    for at in range(0, len(sound), 1024):
        piece = np.ascontiguousarray(samples[:, at : at + 1024])
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, first + at, Fraction(1, rate)
        for ready in resampler.resample(frame):
            packets += stream.encode(ready)
    for ready in resampler.resample(None):
        packets += stream.encode(ready)
    return packets + stream.encode(None)


def rotate_clockwise(path: Path) -> Path:
    """Mark an mp4 as to be turned by 90 degrees clockwise for display, as telephones do: the matrix in its tkhd box."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version and flags, times, track, layer and volume come first
    one = 1 << 16
    matrix = [0, one, 0, -one, 0, 0, 0, 0, 1 << 30]
    data[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    path.write_bytes(bytes(data))
    return path


def cut_off(path: Path, share: float) -> Path:
    """Keep the first `share` of the bytes."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path
