"""What pages are made of, and the parts that pages of every kind of run have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from diffmavil.config import Config, ModelConfig
from diffmavil.config.progress import format_seconds
from diffmavil.reporting import figures
from diffmavil.training.metrics import Metrics

Lines = Sequence[tuple[str, str]]
"""(metric, label) of each line of a panel; a line without a label is told by the panel's title."""


class Row(NamedTuple):
    cells: Sequence[str]
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """The first cell of each row names it."""

    columns: Sequence[str]
    rows: Sequence[Row]
    caption: str = ""
    words: bool = False
    """No numbers, which would stand to the right."""


class Bar(NamedTuple):
    """A share in 0..1, drawn and told."""

    name: str
    share: float
    text: str


@dataclass(frozen=True)
class Section:
    """A heading and what there is of: a sentence, a table, bars, curves side by side, pictures, a list to unfold."""

    title: str
    note: str = ""
    table: Table | None = None
    bars: Sequence[tuple[str, Sequence[Bar]]] = ()
    """(heading, bars); an empty heading is left out."""
    panels: Sequence[Markup] = ()
    pictures: Sequence[Markup] = ()
    """As wide as the page; on a narrow screen they are scrolled, and not shrunk beyond reading."""
    unfold: tuple[str, Sequence[str]] | None = None
    """(heading, lines)."""


def curve_sections(
    records: Sequence[Metrics], panels: dict[str, Sequence[tuple[str, Lines]]], notes: dict[str, str]
) -> list[Section]:
    """A section for each title -> [(panel, lines)] that the records tell something of, with what they tell."""
    names = {name for record in records if "samples" in record for name in record}
    found = []
    for title, drawn in panels.items():
        told = [(name, [line for line in lines if line[0] in names]) for name, lines in drawn]
        curves = [figures.svg(figures.curves(records, name, lines)) for name, lines in told if lines]
        if curves:
            found.append(Section(title, notes.get(title, ""), panels=[Markup(curve) for curve in curves]))
    return found


THROUGHPUT = (
    ("clips/s", [("clips_per_second", "")]),
    ("GFLOP/s", [("gflop_per_second", "")]),
    ("share of time waiting for data", [("data_wait", "")]),
)


def input_rows(model: ModelConfig) -> list[tuple[str, str]]:
    """What the model sees and hears."""
    video, audio = model.video, model.audio
    rows = []
    if model.sees:
        rows.append(("video", f"{video.frames} frames of {video.size}x{video.size} over {video.seconds} s"))
    if model.hears:
        said = f"log-mel {audio.frames}x{audio.mels}"
        if audio.mean is not None:
            said += f", mean {audio.mean:.4g}, std {audio.std:.4g}"
        rows.append(("audio", said))
    return rows


def run_rows(config: Config, records: Sequence[Metrics]) -> list[tuple[str, str]]:
    """How far the run came, and how fast, as far as its records tell."""
    rows = []
    last = records[-1] if records else {}
    samples = f" ({last['samples']:,.0f} samples)" if _known(last, "samples") else ""
    if _known(last, "step"):
        rows.append(("steps", f"{last['step']:,.0f} of {config.train.steps:,}{samples}"))
    seconds = _seconds(records)
    if seconds > 0:
        rows.append(("training time", format_seconds(seconds)))
    if seconds > 0 and samples:
        rows.append(("throughput", f"{last['samples'] / seconds:,.1f} clips/s"))
    for name, said in (("nonfinite_steps", "steps skipped"), ("bad_clips", "clips skipped")):
        if _known(last, name):
            rows.append((said, f"{last[name]:,.0f}"))
    return rows


def _seconds(records: Sequence[Metrics]) -> float:
    """Of all steps that the records tell the time of."""
    timed = [record for record in records if _known(record, "step", "seconds_per_step")]
    ends = [record["step"] for record in timed]
    steps = [end - begin for begin, end in zip([0.0, *ends], ends, strict=False)]
    return sum(record["seconds_per_step"] * count for record, count in zip(timed, steps, strict=True))


def _known(record: Metrics, *names: str) -> bool:
    return all(math.isfinite(record.get(name, math.nan)) for name in names)
