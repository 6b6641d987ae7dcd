"""What pages are made of, and the parts that pages of every kind of run have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from markupsafe import Markup

from diffmavil.config import Config, ModelConfig
from diffmavil.config.progress import format_seconds
from diffmavil.reporting import figures
from diffmavil.reporting.figures import Line
from diffmavil.training.metrics import Metrics
from diffmavil.training.planner import timetable

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


class Picture(NamedTuple):
    """An image that stands in the page."""

    src: str
    """A data URI."""
    alt: str
    width: int
    height: int
    sharp: bool = False
    """Small pictures are shown pixel by pixel."""


class Strip(NamedTuple):
    """A picture with what it shows beside it."""

    label: str
    picture: Picture


class Media(NamedTuple):
    """A clip that can be played."""

    kind: Literal["video", "audio"]
    src: str
    """A data URI."""
    label: str
    """For who does not see it."""
    poster: str = ""
    side: int = 0
    """Pixels of its square picture."""

    @property
    def size(self) -> int:
        """Bytes in the page."""
        return len(self.src) + len(self.poster)


class Card(NamedTuple):
    """A clip and what there is to say of it."""

    media: Media
    title: str
    told: str = ""
    mark: bool | None = None
    """Whether it is right; None: neither."""
    query: bool = False


class Gallery(NamedTuple):
    """A question and its answers, side by side."""

    heading: str
    cards: Sequence[Card]


@dataclass(frozen=True)
class Section:
    """A heading and what there is of: a sentence, a table, bars, curves side by side, pictures, a list to unfold."""

    title: str
    note: str = ""
    summary: Sequence[tuple[str, Sequence[str]]] = ()
    """(name, a value for each run)."""
    columns: Sequence[str | Markup] = ()
    """Names of the runs of the summary, where there are several."""
    table: Table | None = None
    bars: Sequence[tuple[str, Sequence[Bar]]] = ()
    """(heading, bars); an empty heading is left out."""
    panels: Sequence[Markup] = ()
    pictures: Sequence[Markup] = ()
    """As wide as the page; on a narrow screen they are scrolled, and not shrunk beyond reading."""
    heat: str = ""
    """Of pictures with heat maps, what their colours mean."""
    strips: Sequence[Strip] = ()
    """Pictures one under the other, scrolled together."""
    galleries: Sequence[Gallery] = ()
    classes: Sequence[tuple[Markup, str]] = ()
    """(mark, name): what the marks of the panels mean."""
    unfold: tuple[str, Sequence[str]] | None = None
    """(heading, lines)."""
    parts: Sequence[Section] = ()
    folded: bool = False
    """Of a part: shown when it is asked for."""


Panels = Mapping[str, Sequence[tuple[str, Lines]]]
"""Section -> its panels, (title, lines)."""


def curve_sections(runs: Mapping[str, Sequence[Metrics]], panels: Panels, notes: Mapping[str, str]) -> list[Section]:
    """A section for each title that the records tell something of, with the panels they tell something of.

    Of several runs every line gets a panel of its own, in which each run has a line.

    Args:
        runs: name -> records.
    """
    found = []
    for title, drawn in panels.items():
        curves = []
        for name, lines in drawn if len(runs) == 1 else _line_by_line(drawn):
            told = _told(next(iter(runs.values())), lines) if len(runs) == 1 else _told_by_all(runs, lines[0][0])
            if told:
                alt = f"{title}: {name} over samples seen. " + "; ".join(line.in_words() for line in told)
                curves.append(Markup(figures.svg(figures.curves(told, name), alt)))
        if curves:
            found.append(Section(title, notes.get(title, ""), panels=curves))
    return found


def _line_by_line(drawn: Sequence[tuple[str, Lines]]) -> list[tuple[str, Lines]]:
    return [
        (f"{title}, {label}" if label else title, [(metric, label)])
        for title, lines in drawn
        for metric, label in lines
    ]


def _told(records: Sequence[Metrics], lines: Lines) -> list[Line]:
    """The lines of a panel that a run tells something of."""
    found = [(label, figures.points(records, metric)) for metric, label in lines]
    return [Line(label, points, colour) for colour, (label, points) in enumerate(found) if points.shape[1]]


def _told_by_all(runs: Mapping[str, Sequence[Metrics]], metric: str) -> list[Line]:
    """A line for each run that tells something of it; a run has its colour everywhere."""
    found = [(name, figures.points(records, metric)) for name, records in runs.items()]
    return [Line(name, points, colour) for colour, (name, points) in enumerate(found) if points.shape[1]]


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
        rows.append(("steps", f"{last['step']:,.0f} of {timetable(config).steps:,}{samples}"))
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
