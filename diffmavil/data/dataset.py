"""What a decoding process does: positions in, a `Batch` of decoded clips out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.synchronize import Event
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from diffmavil.config import Config, DecoderName, require
from diffmavil.config.folders import expand
from diffmavil.data.clips import Clip, ClipSet
from diffmavil.data.decode import BadClip, Decoded, decode_clip
from diffmavil.data.decoders import Later
from diffmavil.data.in_hand import InHand
from diffmavil.data.kept import kept_crops
from diffmavil.data.shards.store import Reader, StoreError
from diffmavil.data.stream import ClipStream
from diffmavil.data.table import ClipTable
from diffmavil.data.transforms import random_framing


class Bad(NamedTuple):
    """A clip that could not be used; `clip` is its index."""

    clip: int
    path: str
    reason: str


@dataclass(frozen=True)
class Opened:
    """Indices of the clips opened for a batch, and those of them that were bad."""

    tried: list[int] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)

    def fail(self, index: int, error: BadClip) -> None:
        self.bad.append(Bad(index, error.path, error.reason))


@dataclass(frozen=True)
class Batch:
    """Decoded clips; what `model.modalities` leaves out has no elements.

    Attributes:
        video: uint8 `[B, T, H, W, 3]`; of sound alone `[B, 0, 0, 0, 3]`.
        wave: float32 `[B, S]`, mono, 16 kHz, zeros from `wave_valid` on; of a picture alone `[B, 0]`.
        wave_valid: int64 `[B]`, samples before the sound's end; 0 of a picture alone.
        labels: classes of each clip.
        position: int64 `[B]`, place in the training stream; in evaluation the row (`EvalClips`).
        paths: file of each clip.
        clip: int64 `[B]`, index of each clip in its set.
        opened: which clips were opened for it, and which were bad.
        later: pictures still to be decoded; then `video` is empty.
    """

    video: Tensor
    wave: Tensor
    wave_valid: Tensor
    labels: list[tuple[int, ...]]
    position: Tensor
    paths: list[str]
    clip: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    opened: Opened = field(default_factory=Opened)
    later: list[Later] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.paths)

    def map(self, change: Callable[[Any], Any]) -> Batch:
        """The batch with each tensor changed."""
        return replace(
            self,
            video=change(self.video),
            wave=change(self.wave),
            wave_valid=change(self.wave_valid),
            position=change(self.position),
            clip=change(self.clip),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return self.map(lambda tensor: tensor.pin_memory())


@dataclass(frozen=True)
class NothingUsable:
    """Stands for a batch when a position found no usable clip at all, or when the storage failed."""

    opened: Opened
    failure: str = ""
    """How the storage failed."""

    def __len__(self) -> int:
        return 0

    def pin_memory(self) -> NothingUsable:
        return self


class _Row(NamedTuple):
    """A place of a batch, whose picture and sound are in the canvas already."""

    clip: Clip
    wave_valid: int
    later: Later | None
    position: int
    number: int


class _Canvas:
    """A batch being filled: pictures are decoded into the memory that is handed over, shared where it can be."""

    def __init__(self, config: Config, size: int, *, shared: bool, later: bool) -> None:
        model = config.model
        side = 0 if later or not model.sees else model.video.size
        self.video = _empty((size, model.video.frames if model.sees else 0, side, side, 3), torch.uint8, shared)
        self.wave = _empty((size, model.audio.samples if model.hears else 0), torch.float32, shared)
        self.drawn = bool(side)
        self._video, self._wave = self.video.numpy(), self.wave.numpy()

    def picture(self, row: int) -> np.ndarray | None:
        """Where the picture of a row is drawn; None when that is done later, or never."""
        return self._video[row] if self.drawn else None

    def sound(self, row: int) -> np.ndarray:
        """Where the sound of a row is written."""
        return self._wave[row]

    def batch(self, rows: list[_Row], opened: Opened) -> Batch:
        return Batch(
            video=self.video[: len(rows)],
            wave=self.wave[: len(rows)],
            wave_valid=torch.tensor([row.wave_valid for row in rows], dtype=torch.int64),
            labels=[row.clip.labels for row in rows],
            position=torch.tensor([row.position for row in rows], dtype=torch.int64),
            paths=[row.clip.path for row in rows],
            clip=torch.tensor([row.number for row in rows], dtype=torch.int64),
            opened=opened,
            later=[row.later for row in rows if row.later is not None],
        )


def _empty(shape: tuple[int, ...], dtype: torch.dtype, shared: bool) -> Tensor:
    if not shared or not math.prod(shape):
        return torch.empty(shape, dtype=dtype)
    # As torch's own collation does: a tensor that is shared afterwards is copied, page by new page.
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize, device="cpu")
    return torch.empty(0, dtype=dtype).set_(storage, 0, shape)  # type: ignore[call-overload]


def make_reader(config: Config) -> Reader:
    return Reader(expand(config.data.cache), round(config.data.remote_cache_gb * 1e9), config.model.modalities)


def _stopped(stop: Event | None) -> bool:
    return stop is not None and stop.is_set()


class TrainClips(Dataset):
    """Positions of the training stream -> a batch with random crops. A bad clip's place is taken by another."""

    def __init__(
        self, config: Config, clipset: ClipSet, stop: Event | None = None, decoder: DecoderName = "pyav"
    ) -> None:
        self.config = config
        self.decoder: DecoderName = decoder
        self.clips = ClipTable(clipset.clips)
        self.stream = ClipStream(len(clipset), config.train.seed, clipset.parts, clipset.often)
        self.reader = make_reader(config)
        self.stop = stop
        """Set when nobody waits for the batch any more."""
        self.shared = False
        """Whether batches are made in shared memory, for another process."""
        self.in_hand = InHand(0)
        """Where decoding processes say which clip they are at."""
        require(
            decoder != "dali" or not config.data.crops_kept,
            "data.crops_kept",
            config.data.crops_kept,
            "0 with data.decoder='dali', which decodes whole batches on the device",
        )
        self.kept = kept_crops(len(clipset), config)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, positions: range) -> Batch | NothingUsable:
        with self.in_hand.batch():
            return self._batch(positions)

    def _batch(self, positions: range) -> Batch | NothingUsable:
        opened = Opened()
        rows: list[_Row] = []
        canvas = _Canvas(self.config, len(positions), shared=self.shared, later=self.decoder == "dali")
        for place, position in enumerate(positions):
            try:
                row = None if _stopped(self.stop) else self._place(position, opened, canvas, place)
            except StoreError as error:
                return NothingUsable(opened, str(error))
            if row is None:
                return NothingUsable(opened)
            rows.append(row)
        return canvas.batch(rows, opened)

    def _place(self, position: int, opened: Opened, canvas: _Canvas, place: int) -> _Row | None:
        """The clip at a position, or its first substitute that can be used, in its place of the canvas."""
        video, wave = canvas.picture(place), canvas.sound(place)
        for attempt, index in enumerate(self.stream.candidates(position)):
            clip = self.clips[index]
            opened.tried.append(index)
            self.in_hand.take(index)
            crop = self.stream.kept_crop(position, self.kept.crops) if self.kept else 0
            valid = self.kept.get(index, crop, video, wave) if self.kept else None
            if valid is not None:
                return _Row(clip, valid, None, position, index)
            rng = self.stream.kept_rng(index, crop) if self.kept else self.stream.crop_rng(position, attempt)
            try:
                decoded = self._decode(clip, rng, video)
            except BadClip as error:
                opened.fail(index, error)
                continue
            wave[:] = decoded.wave
            if self.kept:
                self.kept.put(index, crop, video, wave, decoded.wave_valid)
            return _Row(clip, decoded.wave_valid, decoded.later, position, index)
        return None

    def _decode(self, clip: Clip, rng: np.random.Generator, out: np.ndarray | None) -> Decoded:
        """A random crop, its picture drawn into `out`."""
        model, data = self.config.model, self.config.data
        framing = random_framing(model.video.size, data.crop_scale, data.flip, rng)
        return decode_clip(
            self.reader(clip),
            model.video,
            model.audio,
            modalities=model.modalities,
            start=clip.start,
            duration=clip.duration,
            rng=rng,
            framing=framing,
            deadline=data.deadline,
            decoder=self.decoder,
            out=out,
        )


class EvalClips(Dataset):
    """Rows of the evaluation -> a batch with fixed crops; row r is crop r % crops of clip r // crops.

    Bad clips are left out, so a batch may be shorter than asked, or empty.
    """

    def __init__(
        self,
        config: Config,
        clipset: ClipSet,
        crops: int,
        stop: Event | None = None,
        decoder: DecoderName = "pyav",
    ) -> None:
        self.config = config
        self.decoder: DecoderName = decoder
        self.clips = ClipTable(clipset.clips)
        self.crops = crops
        self.reader = make_reader(config)
        self.stop = stop
        self.shared = False
        self.in_hand = InHand(0)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, rows: range) -> Batch | NothingUsable:
        with self.in_hand.batch():
            return self._batch(rows)

    def _batch(self, rows: range) -> Batch | NothingUsable:
        model = self.config.model
        opened = Opened()
        done: list[_Row] = []
        canvas = _Canvas(self.config, len(rows), shared=self.shared, later=self.decoder == "dali")
        for row in rows:
            if _stopped(self.stop):
                return NothingUsable(opened)
            index, crop = divmod(row, self.crops)
            clip = self.clips[index]
            opened.tried.append(index)
            self.in_hand.take(index)
            try:
                decoded = decode_clip(
                    self.reader(clip),
                    model.video,
                    model.audio,
                    modalities=model.modalities,
                    start=clip.start,
                    duration=clip.duration,
                    crop=(crop, self.crops),
                    deadline=self.config.data.deadline,
                    decoder=self.decoder,
                    out=canvas.picture(len(done)),
                )
            except StoreError as error:
                return NothingUsable(opened, str(error))
            except BadClip as error:
                opened.fail(index, error)
            else:
                canvas.sound(len(done))[:] = decoded.wave
                done.append(_Row(clip, decoded.wave_valid, decoded.later, row, index))
        return canvas.batch(done, opened)
