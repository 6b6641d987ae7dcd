"""Draw a run's report again: `python -m diffmavil.report --run-dir D` writes D/report.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffmavil.config.cli import parse_flags, run_main
from diffmavil.config.errors import UsageError, usage_errors
from diffmavil.config.folders import check_writable
from diffmavil.reporting.page import write_report


@dataclass(frozen=True)
class _Arguments:
    run_dir: Path
    """Folder of the run."""


def main(argv: Sequence[str]) -> None:
    args = parse_flags(_Arguments, argv, prog="python -m diffmavil.report")
    if not args.run_dir.is_dir():
        raise UsageError(f"--run-dir {args.run_dir}: no such folder")
    with usage_errors():
        check_writable("--run-dir", args.run_dir)
        print(write_report(args.run_dir))


if __name__ == "__main__":
    run_main(main)
