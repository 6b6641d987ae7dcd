"""Features of a whole set, part by part: what is done is kept, whatever ends the process.

Part p holds the clips [p * part_clips, (p + 1) * part_clips) of the set, and is written when all of them are done. Of
several processes each does every n-th part.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from diffmavil import __version__
from diffmavil.config import Modalities, require
from diffmavil.config.errors import RunError, TooManyBadClips
from diffmavil.config.progress import tracking
from diffmavil.data.clips import Clip, ClipSet, cut_from
from diffmavil.data.decode import BadClip
from diffmavil.data.durable import to_json, write_whole
from diffmavil.data.locks import Held, hold_part
from diffmavil.data.looks import Look
from diffmavil.data.shards.store import Reader
from diffmavil.data.tally import Tally
from diffmavil.data.window_stream import SourceClips
from diffmavil.evaluation.embedding import Embedding, Scores
from diffmavil.evaluation.feature_files import (
    BAD_FILE,
    MANIFEST_FILE,
    POOLED,
    SCORES,
    Part,
    part_file,
    read_part,
    write_part,
    write_predictions,
)
from diffmavil.evaluation.frozen_model import FrozenModel

_NAMED = 10
SAVED = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Wanted:
    """What decides the content of the parts; the manifest keeps it, and a resumed extraction must ask for the same."""

    modalities: Modalities
    kinds: tuple[str, ...]
    """Pooled features that are kept."""
    windows: int
    hop: float | None
    layers: tuple[int, ...]
    """Numbers of encoder blocks, from 0."""
    tokens: bool
    precision: str
    """In which Linear layers and attention compute: float32, bfloat16 or float16."""
    saved: str
    """Type of what is written: one of `SAVED`."""
    format: str
    part_clips: int
    scores: bool = False
    """Of a classifier, the scores of its classes in place of features."""

    @property
    def look(self) -> Look:
        return Look(self.windows, self.hop)

    @property
    def told(self) -> dict[str, Any]:
        """As the manifest has it; what came later is left out where it changes nothing."""
        settings = json.loads(to_json(asdict(self)))
        return settings if self.scores else {name: value for name, value in settings.items() if name != "scores"}


@dataclass(frozen=True)
class Extraction:
    """Part `part` of `of` of the work: the set's parts p with p % of == part.

    Attributes:
        weights: fingerprint of the model's weights.
        answers: the classes that a classifier tells apart.
        max_bad_share: of the clips that this process tries and has tried.
        retry_bad: try again the clips that could not be used, or not in all their windows.
    """

    out: Path
    clips: ClipSet
    wanted: Wanted
    weights: str
    max_bad_share: float
    part: int = 0
    of: int = 1
    retry_bad: bool = False
    answers: tuple[str, ...] = ()

    @property
    def parts(self) -> int:
        return -(-len(self.clips) // self.wanted.part_clips)

    def file(self, number: int) -> Path:
        return part_file(self.out, number, self.wanted.format)

    def numbers(self, number: int) -> range:
        """The clips of a part."""
        size = self.wanted.part_clips
        return range(number * size, min((number + 1) * size, len(self.clips)))

    @property
    def missing(self) -> list[int]:
        """Parts of the whole set that are not done."""
        return [number for number in range(self.parts) if not self.file(number).is_file()]

    def claim(self) -> None:
        """Make the folder, and remember what is extracted into it.

        Raises:
            ValueError: features of other clips, other weights or other settings are there, or something else.
            CannotWrite: it cannot be written.
        """
        path = self.out / MANIFEST_FILE
        settings = self.wanted.told
        wanted = {"settings": settings, "weights": self.weights, "clips": len(self.clips), "list": self._digest()}
        if not path.exists():
            if self.out.exists() and (not self.out.is_dir() or any(map(_foreign, self.out.iterdir()))):
                raise ValueError(f"OUT={str(self.out)!r}: must be a new or empty folder, or one with features begun")
            about = {"version": 1, "diffmavil": __version__, "source": self.clips.note}
            whole = {**about, **wanted, "parts": self.parts, "classes": self.clips.classes}
            whole |= {"answers": self.answers} if self.wanted.scores else {}
            write_whole(path, json.dumps(whole, indent=1).encode())
        try:
            found = json.loads(path.read_bytes())
            there = found["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"OUT={str(self.out)!r}: its {MANIFEST_FILE} cannot be read: {error!r}") from error
        other = [
            f"{name}={there.get(name)!r}, now {value!r}" for name, value in settings.items() if there.get(name) != value
        ]
        other += ["other weights"] if found.get("weights") != self.weights else []
        listed = f"other clips ({found.get('clips')}, now {len(self.clips)}; paths, times or labels differ)"
        other += [listed] if (found.get("clips"), found.get("list")) != (len(self.clips), wanted["list"]) else []
        other += ["other names of classes"] if found.get("classes") != self.clips.classes else []
        if other:
            told = "; ".join(other)
            raise ValueError(f"OUT={str(self.out)!r}: holds features with {told}: choose another folder, or delete it")

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for clip in self.clips.clips:
            digest.update(
                repr((clip.path, clip.start, clip.duration, clip.labels, clip.stored)).encode("utf-8", "replace")
            )
        return digest.hexdigest()

    def run(self, model: FrozenModel, reader: Reader, batch_size: int, workers: int, console: Console | None) -> None:
        """Do the missing parts of this process's share, and on request what failed in the others.

        Raises:
            TooManyBadClips: more than `max_bad_share` of the clips cannot be used.
            CannotWrite: the folder cannot be written.
            RunError: another process does the same share, a part that was done is damaged, or the storage failed.
        """
        with self._alone():
            mine = range(self.part, self.parts, self.of)
            tally = Tally(len(self.clips))
            numbers = [clip for number in mine for clip in self._todo(number, tally)]
            self._check(tally)
            if not numbers:
                return
            items = SourceClips([self.clips.clips[i] for i in numbers], self.wanted.modalities, reader)
            found = self._stream(model, items, batch_size=batch_size, workers=workers)
            with closing(found), tracking(console, "clips", len(numbers)) as tracker:
                self._write(((numbers[i], one) for i, one in found), tally, tracker.update)

    def _stream(
        self, model: FrozenModel, items: SourceClips, **how: int
    ) -> Generator[tuple[int, Embedding | Scores | BadClip]]:
        look, wanted = self.wanted.look, self.wanted
        if wanted.scores:
            return model.stream_scores(items, look, **how)
        return model.stream(items, look, layers=wanted.layers, tokens=wanted.tokens, **how)

    def _todo(self, number: int, tally: Tally) -> list[int]:
        """The clips of a part that are to be done; the others are counted."""
        if not self.file(number).is_file():
            return list(self.numbers(number))
        done = self._read(number)
        if self.retry_bad:
            tally.count([i for i, _ in done.clips if i not in done.bad], [])
            return sorted(done.bad)
        tally.count([i for i, _ in done.clips], [(i, self.clips.clips[i].path, why) for i, why in done.bad.items()])
        return []

    def _read(self, number: int, *, features: bool = False) -> Part:
        """A part that is done: which clips it is of, and on request their features."""
        try:
            return read_part(self.file(number), features=features)
        except ValueError as error:
            raise RunError(str(error)) from error

    def _write(
        self, found: Iterator[tuple[int, Embedding | Scores | BadClip]], tally: Tally, progress: Callable[[int], None]
    ) -> None:
        """Each part when its last clip has come."""
        open_parts: dict[int, _Rows] = {}
        for done, (clip, one) in enumerate(found, start=1):
            number = clip // self.wanted.part_clips
            if number not in open_parts:
                open_parts[number] = self._rows(number)
            rows = open_parts[number]
            why = rows.add(clip, one)
            tally.count([clip], [(clip, self.clips.clips[clip].path, why)] if why else [])
            if rows.whole:
                write_part(self.file(number), open_parts.pop(number).part(), self.clips.classes)
            self._check(tally)
            progress(done)

    def _rows(self, number: int) -> _Rows:
        """A part to be filled, with what is to stay of it if it was there already."""
        rows = _Rows(self.wanted, self.clips.clips, self.numbers(number))
        if self.file(number).is_file():
            rows.keep(self._read(number, features=True))
        return rows

    def _check(self, tally: Tally) -> None:
        if not tally.tried or not tally.too_many(self.max_bad_share):
            return
        lines = [f"  {path}: {why}" for path, why in islice(tally.reasons.items(), _NAMED)]
        lines += [f"  and {len(tally.reasons) - _NAMED} more"] if len(tally.reasons) > _NAMED else []
        share = f"{tally.bad} of the {tally.tried} clips tried could not be used"
        raise TooManyBadClips("\n".join([f"{share}, more than --max-bad-share={self.max_bad_share:g}:", *lines]))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock of this share. Raises `RunError` where another process does parts of it."""
        folder = self.out / "parts"
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            try:
                held.enter_context(hold_part(self.out, ".share", self.part, self.of))
            except Held as error:
                part, of = error.part
                raise RunError(
                    f"{self.out}: another process extracts share {part}/{of} ({error.holder}), which has parts of "
                    f"share {self.part}/{self.of}: wait until it has ended"
                ) from None
            for number in range(self.part, self.parts, self.of):  # what a kill has left
                for draft in folder.glob(f".{self.file(number).name}.*.tmp"):
                    draft.unlink()
            yield

    def finish(self) -> Counter[str]:
        """Once all parts are there: write bad.csv, of scores predictions.csv too; how many clips were used and bad,
        windows (rows) and bytes.
        """
        text, facts = io.StringIO(), Counter[str]()
        table = csv.writer(text)
        table.writerow(("path", "start", "reason"))
        for number in range(self.parts):
            part = self._read(number)
            clip = part.tensors.get("clip", torch.empty(0))
            facts.update(
                rows=len(clip), used=len(clip.unique()), bad=len(part.bad), bytes=self.file(number).stat().st_size
            )
            for index, why in sorted(part.bad.items()):
                file, start = cut_from(self.clips.clips[index])
                table.writerow((file, "" if start is None else start, why))
        write_whole(self.out / BAD_FILE, text.getvalue().encode("utf-8", "surrogateescape"))
        if self.wanted.scores:
            write_predictions(self.out)
        return facts


def _foreign(path: Path) -> bool:
    """Whether it is something else than what a first start that was killed has left."""
    return not path.name.startswith(f".{MANIFEST_FILE}.")


@dataclass
class _Rows:
    """A part being filled."""

    wanted: Wanted
    clips: Sequence[Clip]
    numbers: range
    found: dict[int, dict[str, Tensor] | None] = field(default_factory=dict)
    """Clip -> what stands in the file for its windows; None: it could not be used."""
    bad: dict[int, str] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        return len(self.found) == len(self.numbers)

    def add(self, clip: int, one: Embedding | Scores | BadClip) -> str:
        """Why the clip, or some of its windows, could not be used; ""."""
        why = one.reason if isinstance(one, BadClip) else one.problem
        self.found[clip] = None if isinstance(one, BadClip) else self._tensors(one)
        if why:
            self.bad[clip] = why
        return why

    def keep(self, part: Part) -> None:
        """Take over the clips that were used in full."""
        for clip in self.numbers:
            if clip not in part.bad:
                own = part.tensors["clip"] == clip
                self.found[clip] = {name: x[own] for name, x in part.tensors.items() if name != "clip"}

    def part(self) -> Part:
        columns: dict[str, list[Tensor]] = {}
        for number in self.numbers:
            own = self.found[number]
            if own is None:
                continue
            for name, x in own.items():
                columns.setdefault(name, []).append(x)
            rows = len(next(iter(own.values())))
            columns.setdefault("clip", []).append(torch.full((rows,), number, dtype=torch.int64))
        tensors = {name: torch.cat(parts) for name, parts in columns.items()}
        return Part(tensors, [(i, self.clips[i]) for i in self.numbers], self.bad)

    def _tensors(self, one: Embedding | Scores) -> dict[str, Tensor]:
        dtype = SAVED[self.wanted.saved]
        times = {f"times/{kind}": x for kind, x in one.times.items()}
        if isinstance(one, Scores):
            return {SCORES: one.windows.to(dtype), **times}
        kept = {kind: x.to(dtype) for kind, x in one.windows.items() if kind in self.wanted.kinds}
        for group in ("layers", "tokens", "layer_tokens"):
            kept |= {f"{group}/{kind}": x.to(dtype) for kind, x in getattr(one, group).items()}
        return kept | times


def pooled_kinds(modalities: Modalities, asked: Sequence[str]) -> tuple[str, ...]:
    """The pooled features to keep: those asked for, or all that there are. Raises `ValueError` for others."""
    there = POOLED if modalities == "av" else (modalities,)
    for kind in asked:
        require(kind in there, "--kinds", kind, f"of {', '.join(there)}: what the model gives of {modalities}")
    return tuple(kind for kind in there if kind in asked) if asked else there
