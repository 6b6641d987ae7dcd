"""Clips that tell which second of theirs is seen and heard, and what the reader makes of them.

Frames show their number (`numbered`). The sound is a tone that rises steadily, so that its pitch is the time. What
is seen and heard at an instant then says which instants of the recording are played together.
"""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
from clip_files import number_shown, write_clip
from prepared_sets import DEADLINE

from diffmavil.config import AudioConfig, VideoConfig
from diffmavil.data.decode import decode_clip
from diffmavil.data.media import BadClip, Deadline, Media
from diffmavil.data.prepare.items import Item
from diffmavil.data.prepare.settings import Settings
from diffmavil.data.prepare.transcode import Piece, transcode

RATE = 16_000
LOWEST, SWEEP = 300.0, 250.0
"""Hertz at second 0, and hertz more in each second."""
VIDEO = VideoConfig(frames=16, size=64, seconds=1.0)
AUDIO = AudioConfig(frames=96, mels=64)  # 0.975 s
HEARING = 0.06
"""Seconds of sound from which a pitch is taken."""


class Told(NamedTuple):
    """At each instant `at` of the container's clock: the second of the recording that is seen, and that is heard.

    Nothing heard is nan. `sound_starts`: whether the sound is there from the first sample on, for each window.
    """

    at: np.ndarray
    seen: np.ndarray
    heard: np.ndarray
    sound_starts: list[bool]

    def before(self, when: float) -> Told:
        """What comes before second `when` of the clock."""
        there = self.at < when
        return Told(self.at[there], self.seen[there], self.heard[there], self.sound_starts)


def rising(seconds: float, rate: int = RATE, sweep: float = SWEEP) -> np.ndarray:
    """float64 `[S]`: the rising tone."""
    t = np.arange(round(seconds * rate)) / rate
    return 0.4 * np.sin(2 * np.pi * (LOWEST + sweep * t / 2) * t)


def write_telling(path: Path, seconds: float = 10.0, **arguments) -> Path:
    """A clip of `write_clip`, of at most 10.2 s at 25 frames a second, that tells its seconds."""
    rate = arguments.get("rate", RATE)
    return write_clip(path, **{"seconds": seconds, "sound": rising(seconds, rate), **arguments})


def heard(wave: np.ndarray, at: float, sweep: float = SWEEP) -> float:
    """The second of the recording heard `at` seconds into a wave at 16 kHz; nan for silence."""
    first = max(0, round((at - HEARING / 2) * RATE))
    chunk = wave[first : first + round(HEARING * RATE)].astype(np.float64)
    if np.abs(chunk).max(initial=0.0) < 0.02 or np.mean(np.abs(chunk) < 1e-6) > 0.2:
        return float("nan")
    size = 16 * len(chunk)
    peak = np.abs(np.fft.rfft(chunk * np.hanning(len(chunk)), size)).argmax()
    off_centre = (first + len(chunk) / 2) / RATE - at
    return float((peak * RATE / size - LOWEST) / sweep - off_centre)


def starts_with_sound(wave: np.ndarray) -> bool:
    """Whether the first 4 ms hold any."""
    return bool(np.abs(wave[:64]).max(initial=0.0) > 1e-6)


def raw(path: Path, fps: float = 25, *, crops: int = 4, sweep: float = SWEEP, **arguments) -> Told:
    """What training on the file itself sees and hears, in evenly spaced windows."""
    at, seen, sound, starts = [], [], [], []
    for crop in range(crops):
        decoded = decode_clip(str(path), VIDEO, AUDIO, crop=(crop, crops), **arguments)
        window, begin = decoded.windows.video, decoded.windows.audio.start
        starts.append(starts_with_sound(decoded.wave))
        for index, frame in enumerate(decoded.video):
            when = window.start + (index + 0.5) * window.length / len(decoded.video)
            if HEARING / 2 <= when - begin <= decoded.wave_valid / RATE - HEARING / 2:
                at.append(when)
                seen.append(number_shown(frame) / fps)
                sound.append(heard(decoded.wave, when - begin, sweep))
    return Told(np.array(at), np.array(seen), np.array(sound), starts)


def prepared(
    path: Path, fps: float = 25, *, sweep: float = SWEEP, pieces: Sequence[Piece] = (), every: float = 0.05, **settings
) -> Told:
    """What a prepared set holds of the file, at an instant `every` so many seconds; its first frames are all at 0."""
    with Media(str(path), Deadline(DEADLINE, str(path))) as media:
        origin = media.start
    at, seen, sound, starts = [], [], [], []
    for piece in pieces or pieces_of(path, **settings):
        times, frames = frames_of(piece)
        wave = sound_of(piece)
        assert times[0] == 0.0
        starts.append(starts_with_sound(wave))
        for when in np.arange(HEARING / 2, min(piece.seconds, len(wave) / RATE) - HEARING / 2, every).tolist():
            at.append(origin + piece.start + when)
            seen.append(number_shown(frames[np.searchsorted(times, when, side="right") - 1]) / fps)
            sound.append(heard(wave, when, sweep))
    return Told(np.array(at), np.array(seen), np.array(sound), starts)


def pieces_of(path: Path, start: float | None = None, duration: float | None = None, **settings) -> list[Piece]:
    found = list(transcode(Item(0, str(path), path.name, start, duration), Settings(**settings), DEADLINE))
    assert all(isinstance(piece, Piece) for piece in found), found
    return [piece for piece in found if not isinstance(piece, BadClip)]


def frames_of(piece: Piece) -> tuple[list[float], np.ndarray]:
    """When each frame appears, and the frames `[T, H, W, 3]`."""
    with av.open(io.BytesIO(piece.mp4), "r") as container:
        frames = list(container.decode(video=0))
    return [float(f.time or 0.0) for f in frames], np.stack([f.to_ndarray(format="rgb24") for f in frames])


def sound_of(piece: Piece) -> np.ndarray:
    """float64 `[S]` in [-1, 1]."""
    with av.open(io.BytesIO(piece.flac), "r") as container:
        return np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)]) / 32768


def store(
    source: Path,
    path: Path,
    *,
    behind: float = 0.0,
    later: tuple[float, float] = (0.0, 0.0),
    sound_late: Callable[[float], float] = lambda when: 0.0,
) -> Path:
    """The packets of an mp4 in another file: its picture stored `behind` seconds after the sound of the same time.

    `later`: seconds by which the picture's and the sound's time stamps are put off; `sound_late`: the same for a
    packet of sound of this second.
    """
    with av.open(str(source)) as old, av.open(str(path), "w", options={"max_interleave_delta": "1"}) as new:
        streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        placed: list[tuple[float, av.Packet]] = []
        for packet in old.demux():
            if packet.dts is None or packet.pts is None or packet.time_base is None:
                continue  # those that end the streams
            picture = packet.stream.type == "video"
            put_off = later[0] if picture else later[1] + sound_late(float(packet.pts * packet.time_base))
            ticks = round(put_off / packet.time_base)
            packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
            placed.append((float(packet.dts * packet.time_base) + (behind if picture else 0.0), packet))
        for _, packet in sorted(placed, key=lambda pair: pair[0]):
            packet.stream = streams[packet.stream.index]
            new.mux_one(packet)
    return path


def shift_of(path: Path, fps: float = 25) -> float:
    """The second of the container's clock at which the recording begins, by the first frame that libav gives."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    return float(frame.time or 0.0) - number_shown(frame.to_ndarray(format="rgb24")) / fps


def ffmpeg(*arguments: object) -> None:
    """Run it, or skip the test where there is none."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    done = subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def assert_together(told: Told, slack: float = 0.02, *, shift: float = 0.0, frame: float = 0.04) -> None:
    """That picture and sound are of one instant everywhere, and `shift` seconds late on the container's clock.

    `slack`: seconds for time stamps that are rounded; `frame`: seconds for which a frame is shown.
    """
    assert len(told.at) > 10
    assert all(told.sound_starts), told.sound_starts
    true = told.at - shift
    half = frame / 2
    for apart, limit in (
        (told.heard - true, slack),
        (true - told.seen - half, slack + half),
        (told.heard - told.seen - half, slack + half),
    ):
        worst = int(np.argmax(np.nan_to_num(np.abs(apart), nan=np.inf)))
        where = f"at {told.at[worst]:.3f}: seen {told.seen[worst]:.3f}, heard {told.heard[worst]:.3f}"
        assert abs(apart[worst]) < limit, where
