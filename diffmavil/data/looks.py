"""Where several windows lie in a clip, and clips that can be read window by window: files, arrays, one of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from diffmavil.config import Config, Modalities, require
from diffmavil.data.arrays import ArrayPicture, ArraySound
from diffmavil.data.decode import BadClip, Decoded, Sample, clip_spans, decode_clip, decode_sound
from diffmavil.data.modalities import too_short
from diffmavil.data.windows import Span, choose_windows, free_seconds


@dataclass(frozen=True)
class Look:
    """`windows` windows evenly spaced over a clip; or one every `hop` seconds, from its start to its end.

    One window is the centre; of several, window i has its middle at the share (i + 1/2) / windows of where it can lie,
    as the crops of the evaluation. With a hop, the last window ends with the clip, and may begin less than a hop after
    the one before.
    """

    windows: int = 1
    hop: float | None = None

    def __post_init__(self) -> None:
        require(isinstance(self.windows, int) and self.windows >= 1, "windows", self.windows, "a whole number >= 1")
        require(self.hop is None or self.hop > 0, "hop", self.hop, "seconds, positive")
        require(self.hop is None or self.windows == 1, "windows", self.windows, f"left out beside hop={self.hop}")

    def starts(self, free: float) -> list[float]:
        """Seconds after the first window at which each begins, where a window can be moved by `free` seconds."""
        if self.hop is None:
            return [(i + 0.5) / self.windows * free for i in range(self.windows)]
        # A millisecond is no reason for one more window.
        return [*np.arange(0.0, max(0.0, free - 1e-3), self.hop).tolist(), free]


class Readable(Protocol):
    """A clip that can be read window by window."""

    @property
    def name(self) -> str: ...

    def read(self, look: Look, config: Config) -> Iterator[Decoded | BadClip]:
        """Each window, in order of time, or why it cannot be used.

        Raises:
            BadClip: there is not even an attempt to be made.
        """
        ...


@dataclass(frozen=True)
class MediaClip:
    """A file, or a part of it, or a prepared sample."""

    source: str | Sample
    modalities: Modalities
    start: float | None = None
    duration: float | None = None

    @property
    def name(self) -> str:
        return self.source.name if isinstance(self.source, Sample) else self.source

    def read(self, look: Look, config: Config) -> Iterator[Decoded | BadClip]:
        decode = partial(
            decode_clip,
            self.source,
            config.model.video,
            config.model.audio,
            modalities=self.modalities,
            start=self.start,
            duration=self.duration,
            deadline=config.data.deadline,
        )
        if look.hop is None:
            windows = [partial(decode, crop=(i, look.windows)) for i in range(look.windows)]
        else:
            free = free_seconds(*self._spans(config.data.deadline), *_lengths(config, self.modalities))
            windows = [partial(decode, at=start) for start in look.starts(free)]
        for window in windows:
            try:
                yield window()
            except BadClip as error:
                yield error

    def _spans(self, deadline: float) -> tuple[Span, Span]:
        return clip_spans(
            self.source, modalities=self.modalities, start=self.start, duration=self.duration, deadline=deadline
        )


@dataclass(frozen=True)
class Pair:
    """Picture and sound from two places, each a file's path or an array, which begin together; or one of them.

    Of a file that has both, only the one asked for is read.
    """

    picture: str | ArrayPicture | None
    sound: str | ArraySound | None
    name: str

    @property
    def modalities(self) -> Modalities:
        return "audio" if self.picture is None else "video" if self.sound is None else "av"

    def read(self, look: Look, config: Config) -> Iterator[Decoded | BadClip]:
        deadline = config.data.deadline
        found = [_span(self.picture, "video", deadline), _span(self.sound, "audio", deadline)]
        picture, sound = found[0] or found[1], found[1] or found[0]
        assert picture is not None
        assert sound is not None
        if reason := too_short(self.modalities, picture, sound):
            raise BadClip(self.name, reason)
        lengths = _lengths(config, self.modalities)
        free = free_seconds(picture, sound, *lengths)
        for start in look.starts(free):
            try:
                windows = choose_windows(picture, sound, *lengths, (start / free if free else 0.0, 0.5))
                wave, valid = self._heard(windows.audio, config)
                yield Decoded(self._seen(windows.video, config), wave, valid, windows)
            except BadClip as error:
                yield error

    def _seen(self, window: Span, config: Config) -> np.ndarray:
        model, start, duration = config.model, window.start, window.length
        if self.picture is None:
            return np.empty((0, 0, 0, 3), np.uint8)
        if isinstance(self.picture, ArrayPicture):
            return self.picture.take(window, model.video)
        found = decode_clip(
            self.picture,
            model.video,
            model.audio,
            modalities="video",
            start=start,
            duration=duration,
            deadline=config.data.deadline,
        )
        return found.video

    def _heard(self, window: Span, config: Config) -> tuple[np.ndarray, int]:
        audio, start, duration = config.model.audio, window.start, window.length
        if self.sound is None:
            return np.empty(0, np.float32), 0
        if isinstance(self.sound, ArraySound):
            return self.sound.take(window, audio.samples)
        found = decode_sound(
            self.sound, audio, modalities="audio", start=start, duration=duration, deadline=config.data.deadline
        )
        return found.wave, found.wave_valid


def _lengths(config: Config, modalities: Modalities) -> tuple[float, float]:
    """Seconds of the picture's and of the sound's window; 0 of what is not wanted."""
    model = config.model
    video = 0.0 if modalities == "audio" else model.video.seconds
    return video, 0.0 if modalities == "video" else model.audio.samples / model.audio.sample_rate


def _span(source: str | ArrayPicture | ArraySound | None, modalities: Modalities, deadline: float) -> Span | None:
    """Seconds that it covers; of a file from its own start, by all of its packets."""
    if source is None or not isinstance(source, str):
        return None if source is None else source.span
    return clip_spans(source, modalities=modalities, deadline=deadline)[modalities == "audio"]
