"""What did runs learn, and which learnt more? `python -m diffmavil.report RUN [RUN ...]` writes one page about them.

Curves, schedules, throughput and probes during training of all runs in the same panels; for each pretrained run,
several kinds of reconstructions, where in the frames the audio comes from, neighbours and retrieval that can be played,
and a map of held-out clips; for each fine-tuned run, its scores and confusions. The page says what a run does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from diffmavil.config import require
from diffmavil.config.cli import parse_flags, run_main
from diffmavil.config.errors import UsageError, usage_errors
from diffmavil.config.files import CONFIG_FILE
from diffmavil.config.folders import check_writable
from diffmavil.config.progress import open_console
from diffmavil.reporting.page import REPORT_FILE, write_comparison

COMPARISON_FILE = "comparison.html"


@dataclass(frozen=True)
class Options:
    """Write one self-contained page, below 15 MB, about one run or several, finished or not."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of runs."""
    run_dir: Path | None = None
    """Old way to name one run."""
    out: Path | None = None
    """Output page. Default: report.html in the folder of a single run, comparison.html here for several."""
    clips: int = 256
    """Held-out clips whose features are analysed, and as many training clips; bounds the cost."""

    def __post_init__(self) -> None:
        require(self.clips >= 2, "--clips", self.clips, ">= 2")


def main(argv: Sequence[str]) -> None:
    options = parse(argv)
    folders = [*options.runs, *([options.run_dir] if options.run_dir else [])]
    path = options.out or (folders[0] / REPORT_FILE if len(folders) == 1 else Path(COMPARISON_FILE))
    with usage_errors():
        inside = options.out is None and len(folders) == 1
        check_writable("RUN" if inside else "--out", path.absolute().parent)
    console = open_console()
    console.print(f"report: {write_comparison(folders, path, options.clips, console)}")


def parse(argv: Sequence[str]) -> Options:
    """Parse flags into options.

    Raises:
        UsageError: no runs, or folders that hold none.
    """
    with usage_errors():
        options = parse_flags(Options, argv, prog="python -m diffmavil.report")
    folders = [*options.runs, *([options.run_dir] if options.run_dir else [])]
    if not folders:
        raise UsageError("RUN: none given; must be folders of runs")
    for folder in folders:
        if not (folder / CONFIG_FILE).exists():
            raise UsageError(f"RUN {folder}: holds no run (no {CONFIG_FILE})")
    if options.out and options.out.is_dir():
        raise UsageError(f"--out {options.out}: is a folder, must be a file")
    return options


if __name__ == "__main__":
    run_main(main)
