"""Command line: `python -m diffmavil.data.synthetic` makes the set, or its contact sheet."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from diffmavil.config.folders import expand
from diffmavil.data.synthetic import CLASSES, SPLITS, ensure_synthetic


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m diffmavil.data.synthetic", description="The synthetic clips.")
    parser.add_argument("--out", type=Path, help="cache folder below which the set is made")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--clips", type=int, default=768)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, help="rendering processes (default: one for each core)")
    parser.add_argument("--contact-sheet", type=expand, metavar="PNG", help="draw a clip of each class")
    options = parser.parse_args(arguments)
    if options.out is None and options.contact_sheet is None:
        parser.error("nothing to do: give --out DIR, --contact-sheet PNG, or both")
    try:
        if options.out is not None:
            print(ensure_synthetic(options.out, options.split, options.clips, options.seed, options.workers))
        if options.contact_sheet is not None:
            _draw(options)
    except (ValueError, OSError) as error:
        parser.error(str(error))


def _draw(options: argparse.Namespace) -> None:
    from diffmavil.data.synthetic.sheet import contact_sheet

    with tempfile.TemporaryDirectory() as folder:
        clips = ensure_synthetic(Path(folder), options.split, len(CLASSES), options.seed, options.workers)
        contact_sheet(clips, options.contact_sheet)
    print(options.contact_sheet)


if __name__ == "__main__":
    main()
