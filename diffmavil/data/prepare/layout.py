"""Where everything of a preparation lies, which rows make which shard, and whether they are still the same rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from diffmavil.config.errors import CannotWrite
from diffmavil.data.durable import to_json, write_whole
from diffmavil.data.locks import hold
from diffmavil.data.prepare.items import Catalog, Item
from diffmavil.data.prepare.settings import Settings
from diffmavil.data.prepare.work import item_files, number_of, size_of, staging_of
from diffmavil.data.shards.index import DATASET_FILE, Description

_LOOKED_AT = 64
"""Files whose sizes are remembered."""


class Outcome(NamedTuple):
    """What came of an item."""

    item: Item
    bad: bool
    """It failed, or some piece of it did."""
    made: bool
    """Pieces were made of it."""


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
        return staging_of(self.state, shard)

    def record(self, shard: int) -> Path:
        return self.state / f"shard-{shard:06d}.json"

    @property
    def plan(self) -> Path:
        return self.state / "plan.json"

    def outcomes(self, shard: int, items: Sequence[Item]) -> Iterator[Outcome]:
        """What came of those of `items`, all of one shard, that are done."""
        if self.record(shard).exists():
            record = json.loads(self.record(shard).read_bytes())
            first, made = shard * self.settings.per_shard, {number_of(sample["key"]) for sample in record["samples"]}
            for item in items:
                yield Outcome(item, bool(record["outcomes"][item.number - first]["bad"]), item.number in made)
            return
        for item in items:
            done = item_files(self.staging(shard), item).done
            if done.exists():
                found = json.loads(done.read_bytes())
                yield Outcome(item, bool(found["bad"]), bool(found["samples"]))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait for, and hold, the lock of the whole set. Raises `CannotWrite`."""
        with hold(self.state / "set.lock", wait=True):
            yield

    def claim(self) -> None:
        """Make the folder, and remember what is prepared in it.

        Raises:
            ValueError: another list or other settings are being prepared there, or it holds something else.
            CannotWrite: it cannot be written.
        """
        self._check_ours()
        try:
            self.state.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CannotWrite(f"{self.state}: {error.strerror}") from error
        wanted = {"settings": _written(self.settings), "rows": len(self.catalog.items), "list": self._digest()}
        with self.alone():  # of parts that are started at once, all but one find its plan
            self._compare(wanted, self._sizes())
            self._check_finished()

    def _check_ours(self) -> None:
        """Raises `ValueError` for what is neither new nor being prepared."""
        # A first start that was killed has left the folder of states alone. The plan comes before all else, so it is
        # looked for last.
        others = set(self.out.iterdir()) - {self.state} if self.out.is_dir() else self.out.exists()
        if others and not self.plan.exists():
            raise ValueError(f"OUT={str(self.out)!r}: must be a new or empty folder, or one being prepared")

    def _compare(self, wanted: dict[str, Any], sizes: dict[str, int]) -> None:
        """Raises `ValueError` for another plan than `wanted`, which is written if there is none."""
        if not self.plan.exists():
            write_whole(self.plan, to_json({**wanted, "sizes": sizes}))
        found = json.loads(self.plan.read_bytes())
        for name, value in wanted.items():
            if found.get(name) != value:
                what = "a list of other rows" if name == "list" else f"other {name}: {found.get(name)}, now {value}"
                raise ValueError(f"OUT={str(self.out)!r}: holds {what}: choose another folder, or delete it")
        for source, size in found.get("sizes", {}).items():
            now = sizes.get(source, size)
            if now != size and not self._has_failed(source):
                what = f"what was made of other files: {source} had {size:,} bytes, now {now:,}"
                raise ValueError(f"OUT={str(self.out)!r}: holds {what}: choose another folder, or delete it")

    def _has_failed(self, source: str) -> bool:
        """Whether a file failed and nothing was made of it, so that a mended one may stand in its place."""
        items = [item for item in self.catalog.items if item.source == source]
        done = [one for item in items for one in self.outcomes(item.number // self.settings.per_shard, [item])]
        return bool(done) and all(outcome.bad and not outcome.made for outcome in done)

    def renew_sizes(self, sources: set[str]) -> None:
        """Their files may be others than those that were there first."""
        plan = json.loads(self.plan.read_bytes())
        now = {source: size for source, size in self._sizes().items() if source in sources}
        kept = {source: size for source, size in plan.get("sizes", {}).items() if source not in sources}
        write_whole(self.plan, to_json({**plan, "sizes": kept | now}))

    def gone(self) -> bool:
        """Whether none of some files, evenly over the list, is there any more, as when a disk is lost.

        Of a long table of which next to nothing was fetched, none of them may ever have been there.
        """
        missing = not any(size_of(item.path) for item in self._looked_at())
        return missing and bool(json.loads(self.plan.read_bytes()).get("sizes"))

    def _looked_at(self) -> list[Item]:
        items, count = self.catalog.items, min(len(self.catalog.items), _LOOKED_AT)
        return [items[i * len(items) // count] for i in range(count)]

    def _sizes(self) -> dict[str, int]:
        """Bytes of these files: those of another folder, or made anew, have others."""
        return {item.source: size for item in self._looked_at() if (size := size_of(item.path))}

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
        """Of the list; of its segments by their ids, for a file may come later."""
        digest = hashlib.sha256(to_json(self.catalog.classes))
        for item in self.catalog.items:
            row = (item.source, item.start, item.duration) if item.segment is None else item.segment
            digest.update(to_json([*row, item.labels]))
        return digest.hexdigest()


def _written(settings: Settings) -> dict[str, Any]:
    """As they come back from a file."""
    return json.loads(to_json(asdict(settings)))


def unfinished(layout: Layout, part: int, parts: int) -> Iterator[int]:
    """Shards of this part that are not recorded yet."""
    for shard in range(part, layout.shards, parts):
        if not layout.record(shard).exists():
            yield shard
