"""The byte index of a prepared set: where each sample's picture and sound lie, and what they are.

`dataset.json` describes the set; `index.npz` holds an entry for each sample in a few arrays, so that millions open in a
second. The tars themselves are ordinary WebDataset shards: reading them in order needs no index.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffmavil.config import Modalities

DATASET_FILE, INDEX_FILE = "dataset.json", "index.npz"
FORMAT, VERSION = "diffmavil-shards", 1

ENTRY = np.dtype(
    [
        ("shard", "<i4"),
        ("video", "<i8"),  # offset of the mp4 in the shard
        ("video_size", "<i8"),
        ("audio", "<i8"),  # offset of the FLAC
        ("audio_size", "<i8"),
        ("video_crc", "<u4"),
        ("audio_crc", "<u4"),
        ("source", "<i8"),  # which of the sources
        ("start", "<f8"),  # seconds into the source
        ("seconds", "<f8"),
        ("number", "<i4"),  # key: NUMBER-PIECE
        ("piece", "<i4"),
    ]
)


@dataclass(frozen=True)
class Index:
    """Samples of a prepared set.

    Attributes:
        entries: one `ENTRY` for each sample.
        labels: classes of all samples, one after the other; those of sample i end at `label_ends[i + 1]`.
        sources: names of the files that the samples were cut from.
    """

    entries: np.ndarray
    labels: np.ndarray
    label_ends: np.ndarray
    sources: list[str]

    def __len__(self) -> int:
        return len(self.entries)

    def labels_of(self, sample: int) -> tuple[int, ...]:
        return tuple(self.labels[self.label_ends[sample] : self.label_ends[sample + 1]].tolist())

    def to_bytes(self) -> bytes:
        """As an .npz file; the same bytes for the same index."""
        file = io.BytesIO()
        names = np.frombuffer("\0".join(self.sources).encode("utf-8", "surrogatepass"), np.uint8)
        np.savez(file, entries=self.entries, labels=self.labels, label_ends=self.label_ends, sources=names)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Index:
        """`ValueError` for what is no index."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                names = arrays["sources"].tobytes().decode("utf-8", "surrogatepass")
                index = cls(arrays["entries"], arrays["labels"], arrays["label_ends"], names.split("\0"))
        except (OSError, KeyError, EOFError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"not an index: {error}") from error
        if index.entries.dtype != ENTRY:
            raise ValueError("an index of another version")
        return index


def make_index(samples: Sequence[dict[str, Any]], shards: Sequence[int], classes: Sequence[str]) -> Index:
    """The index of samples as `prepare` describes them; `shards[i]` is the shard of sample i.

    A part that a sample does not have is of no bytes.
    """
    entries = np.zeros(len(samples), ENTRY)
    class_of = {name: i for i, name in enumerate(classes)}
    source_of: dict[str, int] = {}
    labels: list[int] = []
    ends = [0]
    for i, (sample, shard) in enumerate(zip(samples, shards, strict=True)):
        number, piece = sample["key"].split("-")
        source = source_of.setdefault(sample["source"], len(source_of))
        crc = sample["crc32"]
        entries[i] = (shard, *sample["video"], *sample["audio"], crc["mp4"], crc["flac"], source, sample["start"],
                      sample["seconds"], int(number), int(piece))  # fmt: skip
        labels += [class_of[name] for name in sample["labels"]]
        ends.append(len(labels))
    return Index(entries, np.array(labels, np.int64), np.array(ends, np.int64), list(source_of))


@dataclass(frozen=True)
class Description:
    """What `dataset.json` says of a set.

    Attributes:
        shards: name and bytes of each shard.
        classes: names of the classes, in the order of the labels.
        audio: mels -> (mean, std) of the log-mel over all sound.
        facts: everything else, for the report.
        modalities: what its samples hold; of a set that does not tell, both.
    """

    shards: list[tuple[str, int]]
    classes: list[str]
    audio: dict[int, tuple[float, float]]
    facts: dict[str, Any]

    @property
    def modalities(self) -> Modalities:
        return self.facts.get("settings", {}).get("modalities", "av")

    def read_index(self, data: bytes) -> Index:
        """The index of the set from its file. `ValueError` for what is no index, or another set's or an older one."""
        index = Index.from_bytes(data)
        digest, shards = self.facts.get("index_sha256"), index.entries["shard"]
        if digest is not None:
            ours = hashlib.sha256(data).hexdigest() == digest
        else:  # an older version did not tell
            ours = len(index) == self.facts.get("clips") and shards.max(initial=-1) < len(self.shards)
        if not ours:
            raise ValueError(
                f"not the index that {DATASET_FILE} was written with: copy {INDEX_FILE} and {DATASET_FILE} again; "
                f"where they were prepared, delete {DATASET_FILE}, and the same command writes both anew"
            )
        return index

    def to_plain(self) -> dict[str, Any]:
        audio = {str(mels): {"mean": mean, "std": std} for mels, (mean, std) in self.audio.items()}
        shards = [{"name": name, "bytes": size} for name, size in self.shards]
        head = {"format": FORMAT, "version": VERSION}
        return {**head, **self.facts, "classes": self.classes, "audio": audio, "shards": shards}

    @classmethod
    def from_bytes(cls, data: bytes) -> Description:
        """`ValueError` for what describes no prepared set of this version."""
        try:
            plain = json.loads(data)
            if plain.pop("format") != FORMAT or plain.pop("version") != VERSION:
                raise ValueError(f"not a prepared set of version {VERSION}")
            audio = {int(mels): (two["mean"], two["std"]) for mels, two in plain.pop("audio").items()}
            shards = [(shard["name"], shard["bytes"]) for shard in plain.pop("shards")]
            return cls(shards, plain.pop("classes"), audio, plain)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"not a prepared set: {error!r}") from error
