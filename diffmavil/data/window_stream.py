"""Windows of clips in batches, by processes that decode: a clip may have one window or hundreds.

Unlike the training stream, nothing is drawn at random, and every clip comes once. Of several processes each has every
n-th clip, so that clips come to their end not quite in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from diffmavil.config import Config, Modalities
from diffmavil.data.clips import Clip
from diffmavil.data.decode import BadClip, Decoded
from diffmavil.data.looks import Look, MediaClip, Readable
from diffmavil.data.shards.store import Reader, StoreError
from diffmavil.data.table import ClipTable
from diffmavil.data.workers import (
    Event,
    as_is,
    end_processes,
    process_context,
    start_worker,
    without_advice,
    without_main,
)


@dataclass
class WindowBatch:
    """Windows of one clip or several; what is not wanted has no elements.

    Attributes:
        video: uint8 `[R, T, H, W, 3]`.
        wave: float32 `[R, S]`, zeros from `wave_valid` on.
        wave_valid: int64 `[R]`, samples before the sound's end.
        spans: float64 `[R, 2, 2]`: start and end of the picture, then of the sound, in seconds from the file's start;
            the sound's end is where it ends, not where its padding does.
        clip: int64 `[R]`, which clip each row shows.
        ended: clips of which nothing more comes, with the reason why some of their windows, or all, are missing ("").
        failure: how the storage failed, which ends everything.
    """

    video: np.ndarray
    wave: np.ndarray
    wave_valid: np.ndarray
    spans: np.ndarray
    clip: np.ndarray
    ended: dict[int, str] = field(default_factory=dict)
    failure: str = ""

    def __len__(self) -> int:
        return len(self.clip)


class SourceClips:
    """Clips of a source, as something that can be read window by window; opened by whoever asks for one.

    `[i]` raises `BadClip` or `StoreError` where a prepared sample cannot be had.
    """

    def __init__(self, clips: Sequence[Clip], modalities: Modalities, reader: Reader) -> None:
        self.clips = ClipTable(clips)
        self.modalities: Modalities = modalities
        self.reader = reader

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> MediaClip:
        clip = self.clips[index]
        return MediaClip(self.reader(clip), self.modalities, clip.start, clip.duration)


class _Windows(IterableDataset):
    """In a decoding process: its share of the clips, in batches of `size` windows."""

    def __init__(self, items: Any, look: Look, config: Config, size: int, stop: Event | None) -> None:
        self.items, self.look, self.config, self.size, self.stop = items, look, config, size, stop

    def __iter__(self) -> Iterator[WindowBatch]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        rows: list[tuple[int, Decoded]] = []
        ended: dict[int, str] = {}
        for index in range(first, len(self.items), step):
            wrong: list[str] = []
            count = 0
            try:
                for found in self.items[index].read(self.look, self.config):
                    if self.stop is not None and self.stop.is_set():
                        return
                    count += 1
                    if isinstance(found, BadClip):
                        wrong.append(found.reason)
                        continue
                    rows.append((index, found))
                    if len(rows) == self.size:
                        yield self._batch(rows, ended)
                        rows, ended = [], {}
            except BadClip as error:
                wrong.append(error.reason)
            except StoreError as error:
                yield replace(self._batch(rows, ended), failure=str(error))
                return
            some = 0 < len(wrong) < count
            ended[index] = f"{len(wrong)} of {count} windows: {wrong[0]}" if some else "".join(wrong[:1])
        yield self._batch(rows, ended)

    def _batch(self, rows: list[tuple[int, Decoded]], ended: dict[int, str]) -> WindowBatch:
        model = self.config.model
        return WindowBatch(
            video=np.stack([d.video for _, d in rows]) if rows else np.empty((0, 0, 0, 0, 3), np.uint8),
            wave=np.stack([d.wave for _, d in rows]) if rows else np.empty((0, 0), np.float32),
            wave_valid=np.array([d.wave_valid for _, d in rows], np.int64),
            spans=np.array([_spans(d, model.audio.sample_rate) for _, d in rows], np.float64).reshape(-1, 2, 2),
            clip=np.array([index for index, _ in rows], np.int64),
            ended=ended,
        )


def _spans(decoded: Decoded, rate: int) -> list[list[float]]:
    picture, sound = (span.later(-decoded.origin) for span in decoded.windows)
    return [[picture.start, picture.end], [sound.start, min(sound.end, sound.start + decoded.wave_valid / rate)]]


def stream_windows(
    items: Sequence[Readable] | SourceClips, look: Look, config: Config, *, batch_size: int, workers: int = 0
) -> Iterator[WindowBatch]:
    """Every window of every clip once, in batches of at most `batch_size`.

    Args:
        workers: decoding processes; 0 decodes here.

    Raises:
        RuntimeError: a decoding process died.
    """
    workers = min(workers, len(items))
    live: list[Any] = []
    with without_advice(), without_main():
        stop = process_context().Event() if workers else None
        loader = DataLoader(
            _Windows(items, look, config, batch_size, stop),
            batch_size=None,
            num_workers=workers,
            collate_fn=as_is,  # arrays go through a pipe: no need of shared memory, which containers have little of
            prefetch_factor=2 if workers else None,
            multiprocessing_context=process_context() if workers else None,
            worker_init_fn=start_worker if workers else None,
        )
        live.append(iter(loader))
    try:
        yield from live[0]
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RuntimeError(
            f"a decoding process ended unexpectedly ({error}). Most often memory ran out: lower workers or batch size"
        ) from error
    finally:
        end_processes(live, stop)
