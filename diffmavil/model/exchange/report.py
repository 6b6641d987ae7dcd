"""What became of every tensor of a file, and where every part of the model comes from."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple


class Row(NamedTuple):
    """One part: ours, theirs, and what was done on the way ("as it is" when nothing)."""

    ours: str
    theirs: str
    how: str


AS_IT_IS = "as it is"


@dataclass
class Report:
    """To be printed.

    Attributes:
        source: what the file was found to be.
        rows: what was mapped, reshaped, interpolated.
        left: groups of keys that nothing was made of, and why if there is a reason to tell.
        new: parts of the model that begin at random.
        assumed: what the file does not tell and was taken to be.
    """

    source: str
    rows: list[Row] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)

    def add(self, ours: str, theirs: str, how: str = AS_IT_IS) -> None:
        self.rows.append(Row(ours, theirs, how))


def groups(keys: Iterable[str]) -> list[str]:
    """Keys by what stands before the number of a block, or before `.weight` and `.bias`, with how many there are."""
    counted = Counter(re.split(r"\.\d+\.|\.(?:weight|bias)$", key)[0] for key in keys)
    return [name if count == 1 else f"{name} ({count})" for name, count in counted.items()]


def span(block: str, first: int, end: int) -> str:
    """What the blocks from `first` to before `end` are called."""
    return block.format(first) + (f" to {end - 1}" if end - first > 1 else "")
