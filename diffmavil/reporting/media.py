"""Clips that can be played in the page: small mp4 of what the model saw and heard, as data URIs, within a budget."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from fractions import Fraction
from typing import Literal

import av
import numpy as np
from av.container import OutputContainer
from av.video.stream import VideoStream
from PIL import Image

from diffmavil.config import Config
from diffmavil.data.clips import Clip
from diffmavil.data.dataset import make_reader
from diffmavil.data.decode import Decoded, decode_clip
from diffmavil.reporting.parts import Media
from diffmavil.reporting.pictures import webp

SIDE = 128
_FPS = 8
_SECONDS = 6.0
"""Of sound without a picture, at most."""
_X264 = {"preset": "veryfast", "crf": "31", "bf": "0", "threads": "1"}
_AUDIO_BITS = 40_000
_RATE = 16_000

Part = Literal["both", "sound", "picture"]


class Budget:
    """Bytes that pictures and clips may take of a page.

    Attributes:
        refused: how often something did not fit.
    """

    def __init__(self, left: int) -> None:
        self.left, self.refused = left, 0

    def take(self, size: int) -> bool:
        """Whether it fits; what fits is taken."""
        if size > self.left:
            self.refused += 1
            return False
        self.left -= size
        return True


class Player:
    """Makes clips playable: the centre window, which evaluation sees and hears, with more frames than the model takes.

    Args:
        config: of the run whose clips they are.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._reader = make_reader(config)
        video = config.model.video
        frames = max(2, round(video.seconds * _FPS))
        self._video = replace(video, frames=frames, size=SIDE, patch=(1, 1, 1))
        self._decoded: dict[Clip, Decoded] = {}

    def __call__(self, clip: Clip, name: str, part: Part = "both") -> Media:
        """The clip, or a part of it where the model has both.

        Raises:
            BadClip: it cannot be decoded (any more).
        """
        model = self.config.model
        decoded = self._decode(clip)
        if not model.sees or part == "sound":
            label = f"sound of {name}"
            return Media("audio", _uri("audio/mp4", encode(None, 0, self._sound(decoded))), label)
        wave = self._sound(decoded) if model.hears and part == "both" else None
        span = decoded.windows.video
        fps = len(decoded.video) / max(span.end - span.start, 0.1)
        label = f"picture of {name}, without its sound" if part == "picture" and model.hears else f"clip {name}"
        poster = webp(Image.fromarray(decoded.video[len(decoded.video) // 2]))
        return Media("video", _uri("video/mp4", encode(decoded.video, fps, wave)), label, poster, SIDE)

    def _decode(self, clip: Clip) -> Decoded:
        if clip not in self._decoded:
            model = self.config.model
            self._decoded[clip] = decode_clip(
                self._reader(clip),
                self._video,
                model.audio,
                modalities=model.modalities,
                start=clip.start,
                duration=clip.duration,
                deadline=self.config.data.deadline,
            )
        return self._decoded[clip]

    def _sound(self, decoded: Decoded) -> np.ndarray | None:
        """float32 `[S]`: what sounds while the picture is shown, None for nothing; of sound alone its beginning."""
        wave, windows = decoded.wave[: decoded.wave_valid], decoded.windows
        if not self.config.model.sees:
            return wave[: int(_SECONDS * _RATE)]
        first = max(0, round((windows.video.start - windows.audio.start) * _RATE))
        heard = wave[first : first + round((windows.video.end - windows.video.start) * _RATE)]
        return heard if heard.size else None


def encode(video: np.ndarray | None, fps: float, wave: np.ndarray | None) -> bytes:
    """An mp4 of H.264 and AAC.

    Args:
        video: uint8 `[T, H, W, 3]`, both sides even; None: none.
        fps: frames a second.
        wave: float32 `[S]`, 16 kHz; None: none.
    """
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        # Every stream before the first packet: the header names them all.
        picture = None if video is None else _add_picture(container, video, Fraction(fps).limit_denominator(1000))
        sound = None if wave is None else container.add_stream("aac", rate=_RATE, layout="mono", bit_rate=_AUDIO_BITS)
        if video is not None and picture is not None:
            for number, pixels in enumerate(video):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts = number
                container.mux(picture.encode(frame))
            container.mux(picture.encode(None))
        if wave is not None and sound is not None:
            samples = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave)[None], format="fltp", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = _RATE, 0, Fraction(1, _RATE)
            container.mux(sound.encode(samples))
            container.mux(sound.encode(None))
    return data.getvalue()


def _add_picture(container: OutputContainer, video: np.ndarray, rate: Fraction) -> VideoStream:
    """A stream for frames `[T, H, W, 3]`, whose clock counts them."""
    stream = container.add_stream("libx264", rate=rate, options=_X264)
    stream.height, stream.width = video.shape[1:3]
    stream.pix_fmt, stream.codec_context.time_base = "yuv420p", 1 / rate
    return stream


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
