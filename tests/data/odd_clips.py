"""Files whose streams are odd: many channels, no decoder, mirrored, damaged; and a process to decode them in."""

from __future__ import annotations

import multiprocessing
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from clip_files import numbered

FFMPEG = shutil.which("ffmpeg")
needs_ffmpeg = pytest.mark.skipif(FFMPEG is None, reason="no ffmpeg to make the clip with")


def ffmpeg(*arguments: object) -> None:
    """Run ffmpeg, which makes files that PyAV cannot."""
    assert FFMPEG is not None
    command = [FFMPEG, "-nostdin", "-v", "error", "-y", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@contextmanager
def process_apart() -> Iterator[Callable[..., Any]]:
    """Gives `call(function, *arguments)`, in a process of its own: one killed by a signal raises BrokenProcessPool."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result(timeout=300)


def write_sound(path: Path, sound: np.ndarray, codec: str, layout: str, rate: int = 16_000, form: str = "") -> Path:
    """Grey H.264 at 25 fps, and float32 `sound` `[C, S]`, of any number of channels."""
    seconds = sound.shape[1] / rate
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = 1
        how: dict[str, Any] = {"format": form} if form else {}
        audio: Any = container.add_stream(codec, rate=rate, layout=layout, **how)
        audio.codec_context.thread_count = 1
        packets = []
        for index in range(round(seconds * 25)):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 90, np.uint8), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            packets += video.encode(frame)
        packets += video.encode(None)
        context = audio.codec_context
        convert = av.AudioResampler(context.format.name, layout, rate, frame_size=context.frame_size or 1024)
        # Packed: PyAV reads planes of eight channels or more past their end.
        packed = np.ascontiguousarray(sound.T.reshape(1, -1), np.float32)
        whole = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
        whole.sample_rate, whole.pts, whole.time_base = rate, 0, Fraction(1, rate)
        for frame in [*convert.resample(whole), *convert.resample(None)]:
            packets += audio.encode(frame)
        packets += audio.encode(None)
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            container.mux(packet)
    return path


def quarters(index: int) -> np.ndarray:
    """Red, green / blue, white; wider than high."""
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:32, :48, 0] = picture[:32, 48:, 1] = picture[32:, :48, 2] = 255
    picture[32:, 48:] = 255
    return picture


def corners(picture: np.ndarray) -> str:
    """The colours near the four corners, row by row, by their first letters; "?" for another."""
    names: dict[tuple[int, ...], str] = {(1, 0, 0): "r", (0, 1, 0): "g", (0, 0, 1): "b", (1, 1, 1): "w"}
    places = [(6, 6), (6, -7), (-7, 6), (-7, -7)]
    colours = [tuple((picture[place] > 128).astype(int).tolist()) for place in places]
    return "".join(names.get(colour, "?") for colour in colours)


def set_matrix(path: Path, a: float, b: float, c: float, d: float) -> Path:
    """Write the display matrix of an mp4's first track: it shows pixel (x, y) at (a x + c y, b x + d y)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version and flags, times, track, layer and volume come first
    values = [round(value * (1 << 16)) for value in (a, b, 0, c, d, 0, 0, 0)] + [1 << 30]
    data[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in values)
    path.write_bytes(bytes(data))
    return path


def write_ticking(path: Path, codec: str, b_frames: int, options: dict[str, str]) -> Path:
    """100 numbered frames at 25 fps, keyframes each 12, and a click at the time of every twelfth."""
    rate = 16_000
    sound = np.zeros(4 * rate, np.float32)
    for first in range(0, len(sound), rate * 12 // 25):
        sound[first : first + 16] = 0.8
    paint = numbered(64, 64)
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=25, options=options)
        assert isinstance(video, av.VideoStream)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        video.gop_size = 12
        video.codec_context.thread_count = 1
        video.codec_context.max_b_frames = b_frames
        audio: Any = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        packets = []
        for index in range(100):
            frame = av.VideoFrame.from_ndarray(paint(index), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            packets += video.encode(frame)
        packets += video.encode(None)
        for at in range(0, len(sound), 640):
            piece = (sound[None, at : at + 640] * 32767).astype(np.int16)
            samples = av.AudioFrame.from_ndarray(piece, format="s16", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = rate, at, Fraction(1, rate)
            packets += audio.encode(samples)
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            container.mux(packet)
    return path


def write_changing(path: Path, parts: list[tuple[np.ndarray, Fraction]], seconds: float = 1.0) -> Path:
    """Pictures shown for `seconds` each, coded at their own size and pixel aspect ratio in one H.264 track; a tone."""
    rate = 16_000
    tone = 0.3 * np.sin(2 * np.pi * 400 * np.arange(round(len(parts) * seconds * rate)) / rate)
    with av.open(str(path), "w") as container:
        first = parts[0][0]
        video = container.add_stream("libx264", rate=25)
        assert isinstance(video, av.VideoStream)
        video.height, video.width = first.shape[:2]
        video.pix_fmt = "yuv420p"
        audio: Any = container.add_stream("mp2", rate=rate, layout="mono")
        packets = []
        each = round(25 * seconds)
        for number, (picture, aspect) in enumerate(parts):
            encoder = av.CodecContext.create("libx264", "w")
            assert isinstance(encoder, av.VideoCodecContext)
            encoder.height, encoder.width = picture.shape[:2]
            encoder.pix_fmt, encoder.time_base, encoder.thread_count = "yuv420p", Fraction(1, 25), 1
            encoder.sample_aspect_ratio, encoder.max_b_frames = aspect, 0
            for index in range(each):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = number * each + index, Fraction(1, 25)
                packets += [(video, packet) for packet in encoder.encode(frame)]
            packets += [(video, packet) for packet in encoder.encode(None)]
        samples = av.AudioFrame.from_ndarray((tone[None] * 32767).astype(np.int16), format="s16", layout="mono")
        samples.sample_rate, samples.pts, samples.time_base = rate, 0, Fraction(1, rate)
        packets += [(audio, packet) for packet in [*audio.encode(samples), *audio.encode(None)]]
        for stream, packet in sorted(packets, key=lambda pair: pair[1].dts * pair[1].time_base):
            packet.stream = stream
            container.mux(packet)
    return path


def write_covered(path: Path, codec: str, disposition: int, frames: int) -> Path:
    """A track of one white frame, one of `frames` grey ones (0: no such track), and a tone."""
    rate, grey = 16_000, {"mjpeg": "yuvj420p", "png": "rgb24", "libx264": "yuv420p"}
    with av.open(str(path), "w") as container:
        cover: Any = container.add_stream(codec, rate=25)
        cover.disposition = disposition
        film: Any = container.add_stream("libx264", rate=25) if frames else None
        for stream, pixels in ((cover, grey[codec]), (film, "yuv420p")):
            if stream is not None:
                stream.width = stream.height = 32
                stream.pix_fmt = pixels
        audio: Any = container.add_stream("aac", rate=rate, layout="mono")
        packets = []
        for stream, count, value in ((cover, 1, 255), (film, frames, 100)):
            for index in range(count):
                frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), value, np.uint8), format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 25)
                packets += stream.encode(frame)
            packets += stream.encode(None) if count else []
        tone = 0.3 * np.sin(2 * np.pi * 400 * np.arange(25_600, dtype=np.float32) / rate)
        samples = av.AudioFrame.from_ndarray(tone[None].astype(np.float32), format="fltp", layout="mono")
        samples.sample_rate, samples.pts, samples.time_base = rate, 0, Fraction(1, rate)
        packets += [*audio.encode(samples), *audio.encode(None)]
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            container.mux(packet)
    return path
