"""Checkpoints as version 0.1.0 wrote them: torch's own format, whose metadata and settings are pickles.

torch unpickles them without a look, so that a checkpoint could run what its author likes. Here a pickle may name the
types that belong into one and nothing else.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load

_METADATA_FILE = ".metadata"
_CHECKPOINT = "torch.distributed.checkpoint."
_ALLOWED = {
    *((_CHECKPOINT + "metadata", name) for name in (
        "Metadata", "MetadataIndex", "TensorProperties", "TensorStorageMetadata", "BytesStorageMetadata",
        "ChunkStorageMetadata", "StorageMeta", "_MEM_FORMAT_ENCODING",
    )),
    (_CHECKPOINT + "filesystem", "_StorageInfo"),
    ("torch", "Size"),
    *(("torch", str(kind).removeprefix("torch.")) for kind in vars(torch).values() if isinstance(kind, torch.dtype)),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("pathlib", "Path"),
    ("pathlib", "PosixPath"),
}  # fmt: skip


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{_METADATA_FILE} names {module}.{name}, which is no part of a checkpoint")
        return super().find_class(module, name)


class _Reader(FileSystemReader):
    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        metadata = _Restricted(io.BytesIO((Path(self.path) / _METADATA_FILE).read_bytes())).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(
                f"{_METADATA_FILE} holds {type(metadata).__name__}, not a checkpoint's metadata"
            )
        return metadata


class _Planner(DefaultLoadPlanner):
    """Settings of optimisers are numbers, names and lists of them: more is refused before torch unpickles it."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        torch.load(value, weights_only=True)
        value.seek(0)
        super().load_bytes(read_item, value)


def is_old(path: Path) -> bool:
    return (path / _METADATA_FILE).exists()


def complaint_about_old(path: Path) -> str | None:
    """What is wrong with an old checkpoint, as far as it can be told: it has no checksums."""
    try:
        metadata = _Reader(path).read_metadata()
        for where in metadata.storage_data.values():
            file = path / where.relative_path
            if not file.is_file():
                return f"{where.relative_path} is missing"
            if file.stat().st_size < where.offset + where.length:
                return f"{where.relative_path} is cut off"
    except (
        OSError,
        pickle.UnpicklingError,
        AttributeError,
        EOFError,
        ImportError,
        IndexError,
        TypeError,
        ValueError,
    ) as e:
        return f"{_METADATA_FILE} cannot be read: {e}"
    return None


def load_old(tree: dict[str, Any], path: Path) -> None:
    """Fill `tree` in place.

    Raises:
        ValueError: what `complaint_about_old` tells. (torch 2.11 keeps to itself why it cannot read the metadata.)
        Others: as of `torch.distributed.checkpoint.load`.
    """
    if why := complaint_about_old(path):
        raise ValueError(why)
    load(tree, storage_reader=_Reader(path), planner=_Planner())
