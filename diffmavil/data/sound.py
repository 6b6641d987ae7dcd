"""The sound of a window, from its packets: mono, at one rate, every stretch of it placed by its own time stamps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.packet import Packet

from diffmavil.data.channels import ChannelReader, require_sound
from diffmavil.data.extent import seconds_of, tick_of
from diffmavil.data.frames import decoded_of
from diffmavil.data.library import library_errors
from diffmavil.data.media import Media
from diffmavil.data.windows import Span

_GAP = 0.05
"""Seconds by which one time stamp may disagree with the samples counted before it means a gap."""
_JITTER = 0.005
"""Seconds by which they may disagree for ever (webm rounds to 1 ms, recorders to more)."""
_ROUNDED = 0.002
"""Seconds by which rounded time stamps differ from each other."""
_LASTS = 4, 12
"""Frames whose stamps all disagree with the count, by the same, or in one direction only: then the stamps are right."""


MOST_DAMAGED = 0.5
"""Share of the packets; with more a clip is bad."""


class Sound(NamedTuple):
    """The samples of a window.

    Attributes:
        wave: float32 `[S]`, mono; zero where nothing was decoded.
        first: samples before the sound's start.
        valid: samples before its end.
        heard: bool `[S]`: samples that were decoded; between `first` and `valid` the others lie in gaps of the sound.
        damaged: share of the packets that cannot be decoded.
    """

    wave: np.ndarray
    first: int
    valid: int
    heard: np.ndarray
    damaged: float = 0.0


def sound_of(media: Media, packets: list[Packet], window: Span, end: float, samples: int, rate: int) -> Sound:
    """The window's `samples` at `rate`; the sound ends at second `end` at the latest.

    Raises:
        BadClip: samples that are no sound, as `require_sound` says.
    """
    damaged: list[Packet | None] = []
    wave, heard = np.zeros(samples, np.float32), np.zeros(samples, bool)
    limit = min(samples, round((end - window.start) * rate))
    start, valid = limit, 0
    for begin, run in _runs(media, packets, rate, damaged):
        first = round((begin - window.start) * rate)
        low, high = max(0, first), min(limit, first + len(run))
        if high > low:
            wave[low:high] = run[low - first : high - first]
            heard[low:high] = True
            start, valid = min(start, low), max(valid, high)
    require_sound(wave)
    return Sound(wave, max(0, min(start, valid)), valid, heard, len(damaged) / max(1, len(packets)))


def _runs(
    media: Media, packets: list[Packet], rate: int, damaged: list[Packet | None]
) -> Iterator[tuple[float, np.ndarray]]:
    """(start in seconds, mono float32 at `rate`) of each stretch of sound without a gap or a change of format.

    Packets that cannot be decoded are put into `damaged`.
    """
    frames = decoded_of(media, media.audio, packets, damaged)
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
        self.read: ChannelReader | None = None
        self.channels: list[list[np.ndarray]] = []

    def add(self, frame: AudioFrame) -> None:
        self.read = self.read or ChannelReader(frame)
        for channels in self.read(frame):
            self.channels = self.channels or [[] for _ in channels]
            for pieces, channel in zip(self.channels, channels, strict=True):
                pieces.append(channel)

    def samples(self) -> np.ndarray:
        """Float32 at `rate`."""
        if not self.channels:
            return np.empty(0, np.float32)
        channels = np.stack([np.concatenate(pieces) for pieces in self.channels])
        if channels.dtype == np.int16:
            samples = channels[0].astype(np.float32) * np.float32(2.0**-15)
        else:
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found out at the end
                samples = channels.mean(0)
        return resampled(samples, self.kind[2], self.rate)


def resampled(samples: np.ndarray, source_rate: int, rate: int) -> np.ndarray:
    """Mono float32 `[S]` at another rate."""
    if source_rate == rate or not samples.size:
        return samples
    with library_errors():
        whole = AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        whole.sample_rate = source_rate
        resampler = AudioResampler(format="fltp", layout="mono", rate=rate)
        pieces = resampler.resample(whole) + resampler.resample(None)
        return np.concatenate([piece.to_ndarray()[0] for piece in pieces])
