"""Videos or audio files to shards: `python -m diffmavil.prepare SRC OUT [--csv TABLE] [--workers N] [--shard i/n]`.

The command can be stopped at any time: run again, it resumes from there and produces the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from diffmavil.config import require
from diffmavil.config.cli import parse_flags, run_main
from diffmavil.config.errors import CannotWrite, RunError, UsageError
from diffmavil.config.folders import check_writable
from diffmavil.config.progress import tracking
from diffmavil.data.cores import usable_cores
from diffmavil.data.prepare.items import read_catalog
from diffmavil.data.prepare.job import Job
from diffmavil.data.prepare.layout import Layout, unfinished
from diffmavil.data.prepare.pack import QUARANTINE_FILE
from diffmavil.data.prepare.settings import Settings
from diffmavil.data.prepare.spread import ray_available
from diffmavil.data.prepare.verify import verify
from diffmavil.data.shards.index import Description

_NAMED = 20  # reasons that are printed


@dataclass(frozen=True)
class Options:
    """Transcode videos once into WebDataset shards that are cheap to decode in training."""

    src: tyro.conf.Positional[Annotated[Path | None, tyro.conf.arg(metavar="SRC")]] = None
    """Folder of videos or audio files (folders become classes), or a CSV with path,start,duration (or end),labels."""
    out: tyro.conf.Positional[Annotated[Path | None, tyro.conf.arg(metavar="OUT")]] = None
    """Folder for the shards: new, empty, or begun earlier."""
    csv: Path | None = None
    """CSV in our format, AudioSet's or VGGSound's that selects parts of the videos of SRC. Default: all of them."""
    split: str | None = None
    """Use only rows of this split of a VGGSound CSV: train or test."""
    classes: Path | None = None
    """Fix the classes and their order by AudioSet's class_labels_indices.csv, or a file with a name in each line."""
    follow_links: bool = True
    """Read links that point outside SRC, as training does; --no-follow-links skips them and reports the reason."""
    workers: int = field(default_factory=usable_cores)
    """Processes. Default: one per core."""
    shard: str = "0/1"
    """i/n: only part i of n, counted from 0; for n machines that see the same folders."""
    ray: str | None = None
    """Address of a Ray cluster to use instead of local processes; 'local' starts one."""
    deadline: float = 300.0
    """Seconds allowed for a piece of a clip."""
    retry_bad: bool = False
    """Retry what failed earlier, such as files downloaded or fixed since, or with a longer deadline."""
    settings: tyro.conf.OmitArgPrefixes[Settings] = field(default_factory=Settings)
    verify: Path | None = None
    """Instead, read every byte of this prepared folder and report what is wrong with it."""

    def __post_init__(self) -> None:
        require(self.workers >= 1, "--workers", self.workers, ">= 1")
        require(self.deadline > 0, "--deadline", self.deadline, "positive")
        _ = self.part
        missing = [name for name in ("src", "out") if getattr(self, name) is None]
        if not self.verify and missing:
            raise ValueError("SRC and OUT are needed: python -m diffmavil.prepare SRC OUT, or --verify OUT")

    @property
    def part(self) -> tuple[int, int]:
        """(i, n) of `shard`."""
        first, _, second = self.shard.partition("/")
        ok = first.isdigit() and second.isdigit() and int(first) < int(second)
        require(ok, "--shard", self.shard, "i/n with 0 <= i < n")
        return int(first), int(second)


def main(argv: Sequence[str]) -> None:
    console = Console(soft_wrap=True, highlight=False, markup=False)
    try:
        options = parse_flags(Options, argv, prog="python -m diffmavil.prepare")
        if options.verify is not None:
            check(options.verify, console)
        else:
            prepare(options, console)
    except ValueError as error:
        raise UsageError(str(error)) from error
    except CannotWrite as error:
        raise RunError(f"cannot write {error}; nothing done is lost, the same command goes on") from error
    except KeyboardInterrupt:
        raise RunError("stopped; nothing done is lost, the same command goes on") from None


def check(out: Path, console: Console) -> None:
    """Print the problems of a prepared folder. Raises `RunError` if there are any."""
    with tracking(console, "shards", None) as tracker:
        problems = verify(out, tracker.update)
    for problem in problems:
        console.print(problem)
    if problems:
        raise RunError(f"{out}: {len(problems)} problems")
    console.print(f"{out}: every sample is there, whole, and nothing else")


def prepare(options: Options, console: Console) -> None:
    """Do the work that is left, and print a summary of the set when nothing is missing.

    Raises:
        ValueError: the options do not fit SRC or OUT.
        CannotWrite: OUT cannot be written.
        RunError: another process is preparing shards of this part, its files are gone, or no clip could be used.
    """
    assert options.src is not None
    assert options.out is not None
    if options.ray is not None and (why := ray_available()):
        raise ValueError(f"--ray={options.ray!r}: {why}")
    check_writable("OUT", options.out)
    catalog = read_catalog(
        options.src,
        options.csv,
        split=options.split,
        names=options.classes,
        follow_links=options.follow_links,
        modalities=options.settings.modalities,
    )
    if catalog.note:
        console.print(catalog.note)
    layout = Layout(options.out, catalog, options.settings)
    job = Job(
        layout,
        *options.part,
        workers=options.workers,
        deadline=options.deadline,
        ray=options.ray,
        retry_bad=options.retry_bad,
    )
    description = job.run(console)
    if description is None:
        missing = sum(1 for _ in unfinished(layout, 0, 1))
        console.print(f"part {options.shard} is done; {missing} of {layout.shards} shards are left to other parts")
        return
    report(options.out, description, console, catalog.note)
    if not description.facts["clips"]:
        raise RunError(f"no clip could be used; {options.out / QUARANTINE_FILE} says why")


def report(out: Path, description: Description, console: Console, note: str = "") -> None:
    """Print what was kept, what was skipped and why, and the sizes; `note`: what was ignored."""
    facts = description.facts
    table = Table(title=str(out), show_header=False)
    rows = {
        "clips kept": f"{facts['clips']:,}, from {facts['rows_kept']:,} of {facts['rows']:,} rows",
        "media kept": f"{facts['seconds']:,.1f} s",
        "skipped": f"{facts['skipped']:,}, named in {QUARANTINE_FILE}" if facts["skipped"] else "0",
        "silent, damaged": f"{facts['silent']:,}, {facts['damaged']:,} (kept)",
        "bytes in": f"{facts['bytes_in']:,}",
        "bytes out": f"{facts['bytes_out']:,} in {len(description.shards):,} shards",
        "classes": f"{len(description.classes):,}",
    }
    for mels, (mean, std) in description.audio.items():
        rows[f"log-mel, {mels} filters"] = f"mean {mean:.4f}, std {std:.4f}"
    if note:
        rows["left aside"] = note
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    reasons = sorted(facts["reasons"].items(), key=lambda pair: -pair[1])
    for reason, count in reasons[:_NAMED]:
        console.print(f"skipped {count:,}: {reason}")
    if len(reasons) > _NAMED:
        console.print(f"and for {len(reasons) - _NAMED} more reasons")


if __name__ == "__main__":
    run_main(main)
