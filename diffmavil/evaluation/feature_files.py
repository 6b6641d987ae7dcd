"""Features of a set on disk: a folder of parts, each of the windows of some clips; safetensors or parquet.

    manifest.json                        what was asked for of which clips by which weights
    parts/part-00000.safetensors         features of the windows of the first clips; or .parquet
    bad.csv                              path, start, reason of clips that could not be used, once all parts are there
    predictions.csv                      with scores, then too: each clip's most likely classes

A part of safetensors holds, for R windows (L layers, D width; only what was asked for)

    audio, video, fused                  [R, D], [R, D], [R, 2D]   pooled
    scores                               [R, C]                    of a classifier's C classes, in place of all features
    layers/audio, layers/video           [R, L, D]                 pooled outputs of encoder blocks
    tokens/audio, tokens/video           [R, time, mel, D], [R, time, height, width, D]
    layer_tokens/audio, layer_tokens/video   [R, L, time, ..., D]
    times/audio, times/video             float64 [R, 2]            seconds of the file; of a prepared clip, of that clip
    clip                                 int64 [R]                 number of the clip in the set

and in its header, as JSON under `diffmavil`, `clips`: [number, path, start, duration, labels, file, cut_at] of all that
were tried; and `bad`: number -> reason. `file` and `cut_at` say where a prepared clip comes from; of others they are
path and start (null: not given). In parquet each tensor is a column of lists, whose shape is in the metadata beside the
same header, and there are columns `path`, `file`, `cut_at` and `labels` (names), for whoever reads it with other tools.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffmavil.config.folders import expand
from diffmavil.data.clips import Clip, cut_from
from diffmavil.data.durable import whole_file, write_whole

MANIFEST_FILE = "manifest.json"
BAD_FILE = "bad.csv"
FORMATS = ("safetensors", "parquet")
_HEADER = "diffmavil"
POOLED = ("audio", "video", "fused")
SCORES = "scores"
PREDICTIONS_FILE = "predictions.csv"
_MOST = 5


@dataclass(frozen=True)
class Part:
    """Features of some clips, as they stand in one file."""

    tensors: dict[str, Tensor]
    """As the module's docstring names them; those that there are."""
    clips: list[tuple[int, Clip]]
    """Number in the set and clip, of all that were tried."""
    bad: dict[int, str] = field(default_factory=dict)
    """Number -> why the clip, or some of its windows, could not be used."""


@dataclass(frozen=True)
class FeatureSet:
    """Features of a set as they were extracted; row r is one window of clip `paths[clip[r]]`."""

    features: dict[str, Tensor]
    """"audio", "video", "fused" -> `[R, D]`, `[R, D]`, `[R, 2D]`."""
    times: dict[str, Tensor]
    """"audio", "video" -> float64 `[R, 2]`: the seconds of the file that a row shows; of a prepared clip, which
    begins at its second of `cut_from`, the seconds of that clip."""
    clip: Tensor
    """int64 `[R]`: rows of `paths`, `starts` and `labels`."""
    paths: list[str]
    """Of every clip of the set, also of those that could not be used."""
    starts: list[float | None]
    """Seconds into the file at which a clip begins, where the set says it."""
    cut_from: list[tuple[str, float | None]]
    """File of each clip, of a prepared one the name that it had, and second of it at which the clip begins."""
    labels: list[tuple[int, ...]]
    """Indices into `classes`."""
    classes: list[str]
    bad: dict[int, str]
    """Clip -> why it, or some of its windows, could not be used."""
    settings: dict[str, Any]
    """What was asked for."""
    layers: dict[str, Tensor] = field(default_factory=dict)
    """"audio", "video" -> `[R, L, D]`."""
    tokens: dict[str, Tensor] = field(default_factory=dict)
    """"audio", "video" -> `[R, time, mel, D]`, `[R, time, height, width, D]`."""
    layer_tokens: dict[str, Tensor] = field(default_factory=dict)
    """"audio", "video" -> `[R, L, time, ..., D]`."""
    scores: Tensor | None = None
    """`[R, C]`, of `answers`; then there are no features."""
    answers: tuple[str, ...] = ()
    """The classes that the classifier tells apart, which need not be those of the set."""

    def __len__(self) -> int:
        return len(self.clip)

    def by_clip(self) -> FeatureSet:
        """One row for each clip that could be used: means over its windows, and the seconds from the first to the last.

        Tokens, which have no mean, are left out.
        """
        clips, row, count = self.clip.unique_consecutive(return_inverse=True, return_counts=True)

        def mean(x: Tensor) -> Tensor:
            total = torch.zeros(len(clips), *x.shape[1:]).index_add_(0, row, x.float())
            return (total / count.reshape(-1, *[1] * (x.dim() - 1))).to(x.dtype)

        last = count.cumsum(0) - 1
        ends = {kind: torch.stack([x[last - count + 1, 0], x[last, 1]], dim=1) for kind, x in self.times.items()}
        return replace(
            self,
            features={kind: mean(x) for kind, x in self.features.items()},
            layers={kind: mean(x) for kind, x in self.layers.items()},
            times=ends,
            clip=clips,
            tokens={},
            layer_tokens={},
            scores=None if self.scores is None else mean(self.scores),
        )


def read_features(folder: str | Path) -> FeatureSet:
    """What `python -m diffmavil.extract` wrote, all of it, in the order of the clips.

    Raises:
        ValueError: no such folder, or parts that are not there yet.
    """
    out = expand(folder)
    try:
        manifest = json.loads((out / MANIFEST_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: holds no features: {MANIFEST_FILE} cannot be read: {error}") from error
    files = [part_file(out, number, manifest["settings"]["format"]) for number in range(manifest["parts"])]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ValueError(f"{folder}: {len(missing)} of {len(files)} parts are missing; the same command goes on")
    parts = [read_part(file) for file in files]
    names = dict.fromkeys(name for part in parts for name in part.tensors)
    # A part without a usable clip has no features.
    whole = {name: torch.cat([part.tensors[name] for part in parts if name in part.tensors]) for name in names}
    clips = [clip for part in parts for _, clip in part.clips]
    return FeatureSet(
        features={kind: whole[kind] for kind in POOLED if kind in whole},
        times=_group(whole, "times"),
        clip=whole.get("clip", torch.empty(0, dtype=torch.int64)),
        paths=[clip.path for clip in clips],
        starts=[clip.start for clip in clips],
        cut_from=[cut_from(clip) for clip in clips],
        labels=[clip.labels for clip in clips],
        classes=manifest["classes"],
        bad={number: reason for part in parts for number, reason in part.bad.items()},
        settings=manifest["settings"],
        layers=_group(whole, "layers"),
        tokens=_group(whole, "tokens"),
        layer_tokens=_group(whole, "layer_tokens"),
        scores=whole.get(SCORES),
        answers=tuple(manifest.get("answers", ())),
    )


def write_predictions(folder: Path) -> None:
    """A table beside the parts, a line for each clip that was used: path and start, of a prepared clip those of the
    file that it was cut from; its labels with `;` between them; and the most likely classes, each with its score, the
    mean over the clip's windows.
    """
    table = read_features(folder).by_clip()
    text = io.StringIO()
    lines = csv.writer(text)
    most = min(_MOST, len(table.answers))
    ranks = [name for i in range(1, most + 1) for name in (f"class_{i}", f"score_{i}")]
    lines.writerow(("path", "start", "labels", *ranks))
    scores = table.scores.float() if table.scores is not None else torch.empty(0, most)
    best = torch.topk(scores, most)
    for clip, values, classes in zip(table.clip.tolist(), best.values.tolist(), best.indices.tolist(), strict=True):
        (file, start), labels = table.cut_from[clip], ";".join(table.classes[i] for i in table.labels[clip])
        told = [cell for i, value in zip(classes, values, strict=True) for cell in (table.answers[i], f"{value:.6f}")]
        lines.writerow((file, "" if start is None else start, labels, *told))
    write_whole(folder / PREDICTIONS_FILE, text.getvalue().encode("utf-8", "surrogateescape"))


def _group(tensors: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
    return {name.partition("/")[2]: x for name, x in tensors.items() if name.partition("/")[0] == group}


def part_file(out: Path, number: int, form: str) -> Path:
    return out / "parts" / f"part-{number:05d}.{form}"


def write_part(path: Path, part: Part, classes: list[str]) -> None:
    """Write a part, whole or not at all. Raises `CannotWrite`."""
    clips = [
        [number, clip.path, clip.start, clip.duration, list(clip.labels), *cut_from(clip)]
        for number, clip in part.clips
    ]
    told = {"clips": clips, "bad": {str(number): why for number, why in part.bad.items()}}
    header = {_HEADER: json.dumps(told)}  # one entry: safetensors writes several in any order
    with whole_file(path) as draft:
        if path.suffix == ".parquet":
            _write_parquet(draft, part, header, classes)
        else:
            try:
                save_file({name: x.contiguous() for name, x in part.tensors.items()}, draft, metadata=header)
            except SafetensorError as error:  # a full disk is one to it
                raise OSError(str(error)) from error


def read_part(path: Path, *, features: bool = True) -> Part:
    """What `write_part` wrote; without `features`, of its tensors `clip` alone.

    Raises:
        ValueError: the file is another, or damaged.
    """
    try:
        if path.suffix == ".parquet":
            tensors, header = _read_parquet(path, features)
        else:
            with safe_open(path, framework="pt") as file:
                header = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys() if features or name == "clip"}  # noqa: SIM118
        told = json.loads(header[_HEADER])
    except ImportError:
        raise
    except Exception as error:  # the libraries', of whatever class
        raise ValueError(
            f"{path}: is damaged, or no part of a set of features: {error}; delete it and go on"
        ) from error
    return Part(
        tensors,
        [(number, _clip(*told)) for number, *told in told["clips"]],
        {int(number): why for number, why in told["bad"].items()},
    )


def _clip(
    path: str,
    start: float | None,
    duration: float | None,
    labels: list[int],
    file: str = "",
    cut_at: float | None = None,
) -> Clip:
    """As a header has it; the last two came later."""
    origin = file if file and file != path else ""
    return Clip(path, start, duration, tuple(labels), origin=origin, cut_at=(cut_at or 0.0) if origin else 0.0)


def parquet_missing() -> str | None:
    """None, or why parquet cannot be written here."""
    try:
        import pyarrow.parquet  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        return f"needs pyarrow: pip install 'diffmavil[parquet]' ({error})"
    return None


def _readable(path: str) -> str:
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _write_parquet(path: Path, part: Part, header: dict[str, str], classes: list[str]) -> None:
    """A row for each window."""
    import pyarrow as pa  # pyright: ignore[reportMissingImports]
    import pyarrow.parquet as pq  # pyright: ignore[reportMissingImports]

    of = dict(part.clips)
    rows = part.tensors.get("clip", torch.empty(0, dtype=torch.int64)).tolist()
    columns: dict[str, Any] = {
        # What is no text is told by escapes here, and by its bytes in the header.
        "path": pa.array([_readable(of[i].path) for i in rows]),
        "file": pa.array([_readable(cut_from(of[i])[0]) for i in rows]),
        "cut_at": pa.array([cut_from(of[i])[1] for i in rows], pa.float64()),
        "labels": pa.array([[classes[label] for label in of[i].labels] for i in rows], pa.list_(pa.string())),
    }
    for name, x in part.tensors.items():
        flat = pa.array(x.contiguous().reshape(-1).numpy())
        columns[name] = flat if x.dim() == 1 else pa.FixedSizeListArray.from_arrays(flat, x[0].numel())
    shapes = {name: list(x.shape[1:]) for name, x in part.tensors.items()}
    table = pa.table(columns).replace_schema_metadata({**header, "shapes": json.dumps(shapes)})
    pq.write_table(table, path)


def _read_parquet(path: Path, features: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    import pyarrow.parquet as pq  # pyright: ignore[reportMissingImports]

    wanted = None if features or "clip" not in pq.read_schema(path).names else ["clip"]
    table = pq.read_table(path, columns=wanted)
    header = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    tensors = {}
    shapes = json.loads(header["shapes"])
    for name, shape in ((name, shapes[name]) for name in table.column_names if name in shapes):
        column = table[name].combine_chunks()
        flat = column if not shape else column.flatten()
        array = np.array(flat.to_numpy(zero_copy_only=False))
        tensors[name] = torch.from_numpy(array).reshape(-1, *shape)
    return tensors, header
