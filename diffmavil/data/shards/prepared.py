"""A prepared set as a `ClipSet`."""

from __future__ import annotations

import os
from pathlib import Path

from diffmavil.config import Modalities
from diffmavil.config.folders import expand
from diffmavil.data.clips import Clip, ClipSet, Stored
from diffmavil.data.modalities import HOLDS
from diffmavil.data.shards.index import DATASET_FILE, INDEX_FILE, Description, Index
from diffmavil.data.shards.store import StoreError, is_remote, open_store


def is_prepared(root: str) -> bool:
    """Whether it is a URL, or a folder that `diffmavil.prepare` made."""
    return is_remote(root) or expand(root).joinpath(DATASET_FILE).is_file()


def read_prepared(root: str, name: str, modalities: Modalities = "av") -> ClipSet:
    """The clips of a prepared folder or URL, with its statistics.

    Args:
        name: the setting, for messages.
        modalities: what of the clips will be decoded.

    Raises:
        ValueError: it is not whole: a shard is missing or cut off (a folder only; of a URL that shows when it is read),
            or its index is not one, or not its own; or it was prepared without what is wanted.
    """
    root = root if is_remote(root) else str(expand(root).absolute())
    store = open_store(root, Path(), 0)
    try:
        description = Description.from_bytes(store.read_all(DATASET_FILE))
        index = description.read_index(store.read_all(INDEX_FILE))
    except (StoreError, ValueError) as error:
        raise ValueError(f"{name}={root!r}: {error}") from error
    if description.modalities not in ("av", modalities):
        raise ValueError(
            f"{name}={root!r}: prepared with {HOLDS[description.modalities]}: must be prepared with "
            f"{HOLDS[modalities]} (python -m diffmavil.prepare SRC OUT --modalities {modalities}), or read with "
            f"model.modalities {description.modalities}, not {modalities}"
        )
    if not is_remote(root):
        _check_shards(root, name, description)
    clips = _clips(root, description, index)
    return ClipSet(clips, description.classes, audio_stats=description.audio)


def _check_shards(root: str, name: str, description: Description) -> None:
    for shard, size in description.shards:
        path = os.path.join(root, shard)
        try:
            found = os.stat(path).st_size
        except OSError:
            raise ValueError(f"{name}={root!r}: the shard {shard} is missing: copy it again") from None
        if found != size:
            raise ValueError(
                f"{name}={root!r}: the shard {shard} has {found} bytes, written were {size}: cut off, or changed; "
                "copy it again"
            )


def _clips(root: str, description: Description, index: Index) -> list[Clip]:
    names = [name for name, _ in description.shards]
    clips = []
    for i, row in enumerate(index.entries.tolist()):
        shard, video, video_size, audio, audio_size, video_crc, audio_crc, source, start, _, number, piece = row
        stored = Stored(root, names[shard], video, video_size, audio, audio_size, video_crc, audio_crc)
        path = f"{root}/{names[shard]}/{number:08d}-{piece:04d}"
        clips.append(Clip(path, labels=index.labels_of(i), stored=stored, origin=index.sources[source], cut_at=start))
    return clips
