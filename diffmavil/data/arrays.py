"""Pictures and sounds that are arrays already, read like files: windows by time, one frame size, one rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from diffmavil.config import VideoConfig, require
from diffmavil.data.channels import require_sound
from diffmavil.data.library import library_errors
from diffmavil.data.sound import resampled
from diffmavil.data.transforms import centre_framing
from diffmavil.data.windows import Span

_MOST_CHANNELS = 64
"""More channels than any recorder has: what claims them has its axes the other way round."""


@dataclass(frozen=True)
class ArrayPicture:
    """Frames uint8 `[T, H, W, 3]` in RGB, shown `fps` a second from second 0 on."""

    frames: np.ndarray
    fps: float

    @classmethod
    def of(cls, frames: Any, fps: float | None) -> ArrayPicture:
        """Raises `ValueError` for another shape or type, or without a frame rate."""
        array = _array(frames)
        told = f"{array.dtype}{list(array.shape)}"
        ok = array.dtype == np.uint8 and array.ndim == 4 and array.shape[-1] == 3 and array.size > 0
        require(ok, "video", told, "uint8 [T, H, W, 3], RGB, not empty")
        require(fps is not None and fps > 0, "fps", fps, "the frames a second of a video that is an array")
        assert fps is not None
        return cls(array, float(fps))

    @property
    def span(self) -> Span:
        return Span(0.0, len(self.frames) / self.fps)

    def take(self, window: Span, video: VideoConfig) -> np.ndarray:
        """The frames on screen at evenly spread instants of a window, as the model sees them: `[T, size, size, 3]`."""
        instants = window.start + (np.arange(video.frames) + 0.5) * (window.length / video.frames)
        appear = np.arange(len(self.frames)) / self.fps
        shown = np.clip(np.searchsorted(appear, instants, side="right") - 1, 0, len(self.frames) - 1)
        out = np.empty((video.frames, video.size, video.size, 3), np.uint8)
        framing = centre_framing(video.size)(self.frames.shape[2], self.frames.shape[1])
        reformatter = VideoReformatter()
        for index in np.unique(shown):
            with library_errors():
                whole = VideoFrame.from_ndarray(np.ascontiguousarray(self.frames[index]), format="rgb24")
                drawn = reformatter.reformat(
                    whole, framing.width, framing.height, format="rgb24", interpolation=Interpolation.AREA, threads=1
                )
                out[shown == index] = framing.cut(drawn.to_ndarray())
        return out


@dataclass(frozen=True)
class ArraySound:
    """Mono float32 `[S]` at `rate`, from second 0 on."""

    wave: np.ndarray
    rate: int

    @classmethod
    def of(cls, samples: Any, source_rate: float | None, rate: int) -> ArraySound:
        """From `[S]`, or `[C, S]` whose channels are averaged; floats with full scale 1, or int16. Brought to `rate`.

        Raises:
            ValueError: another shape or type, no rate, or samples that are no sound.
        """
        array = _array(samples)
        told = f"{array.dtype}{list(array.shape)}"
        known = np.issubdtype(array.dtype, np.floating) or array.dtype == np.int16
        ok = known and array.ndim in (1, 2) and array.size > 0
        require(ok, "audio", told, "floats or int16, [S] or [C, S], not empty")
        channels = array[None] if array.ndim == 1 else array
        require(len(channels) <= _MOST_CHANNELS, "audio", told, f"[C, S] with at most {_MOST_CHANNELS} channels first")
        known = source_rate is not None and source_rate > 0 and int(source_rate) == source_rate
        require(known, "sample_rate", source_rate, "the samples a second, a whole number, of a sound that is an array")
        assert source_rate is not None
        scale = 2.0**-15 if array.dtype == np.int16 else 1.0
        mono = np.ascontiguousarray((channels.astype(np.float32) * np.float32(scale)).mean(0), dtype=np.float32)
        require_sound(mono)
        return cls(resampled(mono, int(source_rate), rate), rate)

    @property
    def span(self) -> Span:
        return Span(0.0, len(self.wave) / self.rate)

    def take(self, window: Span, samples: int) -> tuple[np.ndarray, int]:
        """float32 `[samples]` of a window, zeros past the sound's end, and how many lie before it."""
        first = round(window.start * self.rate)
        piece = self.wave[first : first + samples]
        out = np.zeros(samples, np.float32)
        out[: len(piece)] = piece
        return out, len(piece)


def _array(value: Any) -> np.ndarray:
    """A tensor or an array as an array on the host; bfloat16, which numpy has not, as float32.

    Raises:
        ValueError: neither, as the pair of samples and rate that some readers give.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    try:
        return np.asarray(value)
    except ValueError as error:
        what = f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else type(value).__name__
        raise ValueError(f"{what}: must be an array or a tensor; rates are given as sample_rate= and fps=") from error
