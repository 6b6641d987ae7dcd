"""Finished items to shards, shards to a set. Everything here can be killed at any instant and be done again.

Shard k holds the rows [k * per_shard, (k + 1) * per_shard) of the list, whoever made it, so one process, many, or
several machines with `--shard i/n` end with the same bytes. It is done when its record lies in `.prepare/`; the set is
done when `dataset.json` is there, which the last one writes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffmavil.config.errors import CannotWrite
from diffmavil.data.durable import sync_folder, to_json, write_whole
from diffmavil.data.prepare.items import Catalog, Item
from diffmavil.data.prepare.settings import SAMPLE_RATE, Settings
from diffmavil.data.prepare.work import BLOCK, size_of
from diffmavil.data.shards.index import DATASET_FILE, INDEX_FILE, Description, make_index

QUARANTINE_FILE = "quarantine.csv"
_END_OF_TAR = b"\0" * (2 * BLOCK)
_LOOKED_AT = 64
"""Files whose sizes are remembered."""


@dataclass(frozen=True)
class Layout:
    """Where everything lies, and which rows make which shard."""

    out: Path
    catalog: Catalog
    settings: Settings

    @property
    def state(self) -> Path:
        return self.out / ".prepare"

    @property
    def shards(self) -> int:
        return -(-len(self.catalog.items) // self.settings.per_shard)

    def items(self, shard: int) -> list[Item]:
        size = self.settings.per_shard
        return self.catalog.items[shard * size : (shard + 1) * size]

    def staging(self, shard: int) -> Path:
        return self.state / f"shard-{shard:06d}"

    def record(self, shard: int) -> Path:
        return self.state / f"shard-{shard:06d}.json"

    def claim(self) -> None:
        """Make the folder, and remember what is prepared in it.

        Raises:
            ValueError: another list or other settings are being prepared there, or it holds something else.
            CannotWrite: it cannot be written.
        """
        plan = self.state / "plan.json"
        wanted = {"settings": _written(self.settings), "rows": len(self.catalog.items), "list": self._digest()}
        sizes = self._sizes()
        if not plan.exists():
            # A first start that was killed has left the folder of states alone.
            if self.out.exists() and (not self.out.is_dir() or set(self.out.iterdir()) - {self.state}):
                raise ValueError(f"OUT={str(self.out)!r}: must be a new or empty folder, or one being prepared")
            write_whole(plan, to_json({**wanted, "sizes": sizes}))
        found = json.loads(plan.read_bytes())
        # An older version did not know all settings, and did what their defaults say.
        found["settings"] = {**_written(Settings()), **found.get("settings", {})}
        for name, value in wanted.items():
            if found.get(name) != value:
                what = "a list of other rows" if name == "list" else f"other {name}: {found.get(name)}, now {value}"
                raise ValueError(f"OUT={str(self.out)!r}: holds {what}: choose another folder, or delete it")
        for source, size in found.get("sizes", {}).items():
            now = sizes.get(source, size)
            if now != size:
                what = f"what was made of other files: {source} had {size:,} bytes, now {now:,}"
                raise ValueError(f"OUT={str(self.out)!r}: holds {what}: choose another folder, or delete it")
        self._check_finished()

    def _sizes(self) -> dict[str, int]:
        """Bytes of some of the files, evenly over the list: those of another folder, or made anew, have others."""
        items, count = self.catalog.items, min(len(self.catalog.items), _LOOKED_AT)
        chosen = [items[i * len(items) // count] for i in range(count)]
        return {item.source: size for item in chosen if (size := size_of(item.path))}

    def _check_finished(self) -> None:
        """Raises `ValueError` for a shard of a finished set that is not there as it was written."""
        description = self.out / DATASET_FILE
        if not description.exists():
            return
        for name, size in Description.from_bytes(description.read_bytes()).shards:
            if size_of(str(self.out / name)) != size:
                again = self.state / Path(name).with_suffix(".json").name
                how = f"copy it again, or delete {again} and {description}, and it is made again"
                raise ValueError(f"OUT={str(self.out)!r}: the shard {name} is missing, or not of {size:,} bytes: {how}")

    def _digest(self) -> str:
        digest = hashlib.sha256(to_json(self.catalog.classes))
        for item in self.catalog.items:
            digest.update(to_json([item.source, item.start, item.duration, item.labels]))
        return digest.hexdigest()


def _written(settings: Settings) -> dict[str, Any]:
    """As they come back from a file."""
    return json.loads(to_json(asdict(settings)))


def pack_shard(layout: Layout, shard: int) -> None:
    """Make one shard of its finished items, record it, and remove what it was made of.

    Raises:
        CannotWrite: nothing is lost; the items are still there.
    """
    staging = layout.staging(shard)
    name = f"shard-{shard:06d}.tar"
    outcomes: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    draft = layout.out / f".{name}.tmp"
    try:
        with draft.open("wb") as file:
            for item in layout.items(shard):
                outcome = json.loads((staging / f"{item.number:08d}.json").read_bytes())
                for sample in outcome.pop("samples"):
                    moved = {part: (sample[part][0] + file.tell(), sample[part][1]) for part in ("video", "audio")}
                    samples.append({**sample, **moved})
                file.write((staging / f"{item.number:08d}.tar").read_bytes())
                outcomes.append(outcome)
            file.write(_END_OF_TAR)
            size = file.tell()
            file.flush()
            os.fsync(file.fileno())
        if samples:
            draft.replace(layout.out / name)
            sync_folder(layout.out)
        else:
            draft.unlink()
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise CannotWrite(f"{layout.out / name}: {error.strerror}") from error
    record = {"name": name, "bytes": size if samples else 0, "samples": samples, "outcomes": outcomes}
    write_whole(layout.record(shard), to_json(record))
    shutil.rmtree(staging, ignore_errors=True)


@dataclass(frozen=True)
class Quarantined:
    source: str
    start: float | None
    reason: str


def finish(layout: Layout) -> Description:
    """Write index, quarantine list and description, once all shards are recorded; the description comes last."""
    records = [json.loads(layout.record(shard).read_bytes()) for shard in range(layout.shards)]
    made = [record for record in records if record["samples"]]
    samples = [sample for record in made for sample in record["samples"]]
    shards = [number for number, record in enumerate(made) for _ in record["samples"]]
    outcomes = [outcome for record in records for outcome in record["outcomes"]]
    bad = [Quarantined(o["source"], o["start"], reason) for o in outcomes for reason in o["bad"]]
    index = make_index(samples, shards, layout.catalog.classes).to_bytes()
    facts = {
        "settings": asdict(layout.settings),
        "rows": len(layout.catalog.items),
        "rows_kept": sum(len({s["key"].split("-")[0] for s in record["samples"]}) for record in made),
        "clips": len(samples),
        "seconds": round(sum(_real(sample) for sample in samples), 3),
        "silent": sum(sample["silent"] for sample in samples),
        "damaged": sum(sample["damaged"] > 0 for sample in samples),
        "bytes_in": sum({o["source"]: o["bytes_in"] for o in outcomes}.values()),
        "bytes_out": sum(record["bytes"] for record in made),
        "skipped": len(bad),
        "reasons": dict(sorted(Counter(one.reason for one in bad).items())),
    }
    description = Description(
        [(record["name"], record["bytes"]) for record in made], layout.catalog.classes, _statistics(samples), facts
    )
    write_whole(layout.out / INDEX_FILE, index)
    write_whole(layout.out / QUARANTINE_FILE, _table(bad))
    for made_of in layout.state.glob("shard-*/"):  # of shards recorded just before a kill
        shutil.rmtree(made_of, ignore_errors=True)
    text = json.dumps(description.to_plain(), indent=1, sort_keys=True) + "\n"
    write_whole(layout.out / DATASET_FILE, text.encode())
    return description


def _real(sample: dict[str, Any]) -> float:
    """Seconds that have all that was prepared; what fills the gaps of the sound does not count."""
    if not sample["audio"][1]:
        return sample["seconds"]
    heard = sample.get("heard", sample["samples"])  # a preparation begun by an older version does not tell
    return min(sample["seconds"], heard / SAMPLE_RATE)


def _statistics(samples: list[dict[str, Any]]) -> dict[int, tuple[float, float]]:
    """mels -> (mean, std) of the log-mel over all sound but silence; absent without sound, or when all is silent."""
    found: dict[int, tuple[float, float]] = {}
    for mels in sorted({int(mels) for sample in samples for mels in sample["log_mel"]}):
        moments = [sample["log_mel"][str(mels)] for sample in samples]
        count, total, squares = (sum(column) for column in zip(*moments, strict=True))
        if not count:
            continue
        mean = total / count
        std = max(0.0, squares / count - mean**2) ** 0.5
        if std > 1e-3:
            found[mels] = (mean, std)
    return found


def _table(bad: list[Quarantined]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["source", "start", "reason"])
    writer.writerows([one.source, "" if one.start is None else one.start, one.reason] for one in bad)
    return text.getvalue().encode("utf-8", "backslashreplace")


def unfinished(layout: Layout, part: int, parts: int) -> Iterator[int]:
    """Shards of this part that are not recorded yet."""
    for shard in range(part, layout.shards, parts):
        if not layout.record(shard).exists():
            yield shard
