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
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from diffmavil.config.errors import CannotWrite
from diffmavil.data.durable import draft_of, sync_folder, to_json, write_whole
from diffmavil.data.prepare.layout import Layout
from diffmavil.data.prepare.settings import SAMPLE_RATE
from diffmavil.data.prepare.work import BLOCK, item_files
from diffmavil.data.shards.index import DATASET_FILE, INDEX_FILE, Description, make_index

QUARANTINE_FILE = "quarantine.csv"
_END_OF_TAR = b"\0" * (2 * BLOCK)


def pack_shard(layout: Layout, shard: int) -> None:
    """Make one shard of its finished items, record it, and remove what it was made of.

    Raises:
        CannotWrite: nothing is lost; the items are still there.
    """
    staging = layout.staging(shard)
    name = f"shard-{shard:06d}.tar"
    outcomes: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    draft = draft_of(layout.out / name)
    try:
        with draft.open("wb") as file:
            for item in layout.items(shard):
                files = item_files(staging, item)
                outcome = json.loads(files.done.read_bytes())
                for sample in outcome.pop("samples"):
                    moved = {part: (sample[part][0] + file.tell(), sample[part][1]) for part in ("video", "audio")}
                    samples.append({**sample, **moved})
                file.write(files.tar.read_bytes())
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
        with suppress(OSError):
            draft.unlink()
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
        "index_sha256": hashlib.sha256(index).hexdigest(),
        "reasons": dict(sorted(Counter(one.reason for one in bad).items())),
    }
    description = Description(
        [(record["name"], record["bytes"]) for record in made], layout.catalog.classes, _statistics(samples), facts
    )
    write_whole(layout.out / INDEX_FILE, index)
    write_whole(layout.out / QUARANTINE_FILE, _table(bad))
    _remove_leftovers(layout)
    text = json.dumps(description.to_plain(), indent=1, sort_keys=True) + "\n"
    write_whole(layout.out / DATASET_FILE, text.encode())
    return description


def _remove_leftovers(layout: Layout) -> None:
    """What kills have left, once all shards are recorded."""
    for made_of in layout.state.glob("shard-*/"):
        shutil.rmtree(made_of, ignore_errors=True)
    for draft in layout.out.glob(".shard-*.tmp"):
        with suppress(OSError):
            draft.unlink()


def _real(sample: dict[str, Any]) -> float:
    """Seconds that have all that was prepared; what fills the gaps of the sound does not count."""
    if not sample["audio"][1]:
        return sample["seconds"]
    return min(sample["seconds"], sample["heard"] / SAMPLE_RATE)


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
