"""Small sound files whose pitch tells the time, for the tests of sound alone."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition


def rising(seconds: float, rate: int) -> np.ndarray:
    """A tone that rises from 100 Hz by 20 Hz each second, louder and softer: float32 `[S]`."""
    times = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * (100 * times + 10 * times**2)
    return (0.3 * np.sin(phase) * (0.6 + 0.4 * np.sin(2 * np.pi * 3.7 * times))).astype(np.float32)


def write_sound(
    path: Path,
    sound: np.ndarray,
    codec: str,
    rate: int,
    layout: str,
    form: str | None = None,
    *,
    cover: bool = False,
    bit_rate: int | None = None,
) -> Path:
    """Encode the same `sound`, `[S]` at `rate`, in each channel of `layout`; `cover`: with a picture of the album."""
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        assert isinstance(stream, av.AudioStream)
        if bit_rate:
            stream.bit_rate = bit_rate
        picture = container.add_stream("mjpeg", rate=1) if cover else None
        if isinstance(picture, av.VideoStream):
            picture.width, picture.height, picture.pix_fmt = 32, 32, "yuvj420p"
            picture.disposition = Disposition.attached_pic
            still = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 128, np.uint8), format="rgb24")
            still.pts = 0
            container.mux([*picture.encode(still), *picture.encode(None)])
        context = stream.codec_context
        resampler = av.AudioResampler(context.format.name, layout, rate, frame_size=context.frame_size or 0)
        channels = np.repeat(sound[None], len(context.layout.channels), axis=0)
        for at in range(0, len(sound), 8192):
            piece = np.ascontiguousarray(channels[:, at : at + 8192])
            frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
            for ready in resampler.resample(frame):
                container.mux(stream.encode(ready))
        for ready in resampler.resample(None):
            container.mux(stream.encode(ready))
        container.mux(stream.encode(None))
    return path


def sound_of_file(path: Path, rate: int) -> tuple[float, np.ndarray]:
    """When the file's sound begins, and all of it, decoded from there: float32 `[S]`, mono, at `rate`."""
    resampler = av.AudioResampler("fltp", "mono", rate)
    with av.open(str(path)) as container:
        coded = list(container.decode(audio=0))
    frames = [ready for frame in [*coded, None] for ready in resampler.resample(frame)]
    return coded[0].time or 0.0, np.concatenate([frame.to_ndarray()[0] for frame in frames])
