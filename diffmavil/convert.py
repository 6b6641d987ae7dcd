"""Convert weights of other projects to ours, and ours to theirs: `python -m diffmavil.convert IN OUT [--to FORMAT]`.

IN is recognised by its contents: MAE, ViTMAE, CrossMAE, AudioMAE, VideoMAE, CAV-MAE, MAViL, or ours; a file, a folder
as written by transformers, or a name on the Hub. docs/exchange.md describes how each is converted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, cast

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from diffmavil.config import Config, require
from diffmavil.config.cli import parse_flags, run_main
from diffmavil.config.errors import usage_errors
from diffmavil.config.folders import check_no_run, check_writable, expand
from diffmavil.config.progress import open_console
from diffmavil.evaluation.classification import KINDS
from diffmavil.evaluation.pretrained import find_weights
from diffmavil.model.classifier import Classifier
from diffmavil.model.exchange.asked import Asked
from diffmavil.model.exchange.folder import write_folder
from diffmavil.model.exchange.graphs import Kind, export_graphs
from diffmavil.model.exchange.hub import fetch, looks_like_hub_id
from diffmavil.model.exchange.locate import Found, locate
from diffmavil.model.exchange.report import Report
from diffmavil.model.exchange.sources import import_weights
from diffmavil.model.exchange.transformers_files import write_transformers
from diffmavil.model.mavil import DiffMAViL
from diffmavil.model.weights import NO_DECODER, WEIGHTS_FILE, export_weights, is_ours, load_any, notes_of

Format = Literal["diffmavil", "transformers", "torch-export", "onnx", "safetensors"]


@dataclass(frozen=True)
class Options:
    """Convert weights of other projects to ours, and ours to theirs. Prints what was mapped, reshaped, interpolated and
    left over; nothing in a file is ever executed."""

    source: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="IN")]]
    """A file, a folder with config.json, or owner/name on the Hub."""
    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    """NAME.safetensors, or a folder."""
    to: Format | None = None
    """Output format. diffmavil (default for others' weights): one file that every command reads. transformers: a video
    branch as ViTMAE or VideoMAE. torch-export, onnx: encoders and features, or the scores of a fine-tuned model, as
    graphs. safetensors: weights and config.json."""
    asked: tyro.conf.OmitArgPrefixes[Asked] = field(default_factory=Asked)

    @property
    def is_file(self) -> bool:
        """Whether OUT names a file of weights."""
        return self.out.suffix == ".safetensors"


def main(argv: Sequence[str]) -> None:
    with usage_errors():
        options = parse_flags(Options, argv, prog="python -m diffmavil.convert")
        found = find(options.source)
        ours = is_ours(found.weights)
        require(options.to is not None or not ours, "--to", None, "given: IN holds weights of ours already")
        require(not ours or options.asked == Asked(), "IN", options.source, "others' weights for flags but --to")
        folder = options.out.parent if options.is_file else options.out
        if options.out.name in KINDS.values() or not (options.is_file or options.to in ("torch-export", "onnx")):
            check_no_run("OUT", folder)
        check_writable("OUT", folder)
        console = open_console()
        if ours:
            path = expand(options.source)
            weights = find_weights(path) if path.is_dir() else found.weights  # of a fine-tuned run, its headline's
            model, config = load_any(weights)
            tuned = isinstance(model, Classifier)
            allowed = "another: a fine-tuned model becomes torch-export, onnx or safetensors"
            require(not tuned or options.to != "transformers", "--to", options.to, allowed)
            notes = notes_of(weights)
            decodes = NO_DECODER not in notes
        else:
            imported = import_weights(found, options.asked)
            model, config = imported.model, imported.config
            notes = {"converted_from": options.source}
            decodes = not any("decoder" in name for name in imported.report.new)
            if not decodes:
                notes[NO_DECODER] = "it begins at random"
            show(imported.report, console)
        written = write(model, config, options, notes, decodes)
    if written is not None:
        show(written, console)
    console.print(f"written: {options.out}")


def find(source: str) -> Found:
    """Locate the weights; download them if the source is not a local path and looks like a name on the Hub."""
    path = expand(source)
    if not path.exists() and looks_like_hub_id(source):
        path = fetch(source)
    return locate(path)


def write(
    model: DiffMAViL | Classifier, config: Config, options: Options, notes: Mapping[str, str], decodes: bool
) -> Report | None:
    """Write OUT and return the report about it, if there is one.

    notes: as in `export_weights`. decodes: the decoder was trained, and is written for transformers too.
    """
    out, to = options.out, options.to or "diffmavil"
    if to == "diffmavil":
        path = out if options.is_file else out / WEIGHTS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        export_weights(model, config, path, notes)
        return None
    require(not options.is_file, "OUT", str(out), f"a folder with --to {to}")
    if to == "safetensors":
        write_folder(model, config, out, notes)
        return None
    if to == "transformers":
        assert isinstance(model, DiffMAViL)  # checked in main
        return write_transformers(model, out, decodes=decodes)
    return export_graphs(model, config, out, cast(Kind, to))


def show(report: Report, console: Console) -> None:
    """Print the table of parts, and what is left over, new, and assumed."""
    table = Table("ours", "theirs", "how", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for row in report.rows:
        table.add_row(*row)
    console.print(report.source)
    console.print(table)
    parts = {
        "left over (of what was read)": report.left,
        "new (begins at random, seed 0)": report.new,
        "not told, taken to be": report.assumed,
    }
    for title, lines in parts.items():
        console.print(f"{title}: {'; '.join(lines) if lines else 'nothing'}")


if __name__ == "__main__":
    run_main(main)
