"""Models to and from the Hugging Face Hub: `python -m diffmavil.hub push RUN owner/name`, `... pull owner/name OUT`.

Pushed files: model.safetensors, config.json, config.yaml, and README.md, the model card. They contain only the last
component of data paths. `--local FOLDER` uses a folder instead of the Hub, with owner/name as a folder inside it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Annotated, TypeVar

import tyro

from diffmavil.config import Config, FinetuneConfig, require
from diffmavil.config.cli import parse_flags, run_main
from diffmavil.config.errors import usage_errors
from diffmavil.config.files import CONFIG_FILE, save_config
from diffmavil.config.folders import check_no_run, check_writable, writing
from diffmavil.config.progress import open_console
from diffmavil.evaluation.classification import read_classification, scored_file
from diffmavil.evaluation.result import is_of, read_evaluation
from diffmavil.model.classifier import Classifier
from diffmavil.model.exchange.folder import write_folder
from diffmavil.model.exchange.hub import fetch, looks_like_hub_id, upload
from diffmavil.model.exchange.locate import locate
from diffmavil.model.flops import count_parameters
from diffmavil.model.weights import load_any, notes_of
from diffmavil.reporting.card import Card

CARD = "README.md"


@dataclass(frozen=True)
class Push:
    """Upload a model with its card; create it on the Hub if it does not exist."""

    source: tyro.conf.Positional[Path]
    """Run folder, or weights in our format."""
    name: tyro.conf.Positional[str]
    """owner/name."""
    license: str | None = None
    """License of the weights as the Hub spells it, e.g. apache-2.0 or cc-by-4.0. None: the card says none was given."""
    private: bool = False
    """Create a model that only its owners see."""
    message: str = "Upload by diffmavil"
    """Commit message."""
    local: Path | None = None
    """Folder to use instead of the Hub: files go to FOLDER/owner/name, and nothing leaves this machine."""

    def __post_init__(self) -> None:
        require(looks_like_hub_id(self.name), "name", self.name, "owner/name")


@dataclass(frozen=True)
class Pull:
    """Download a model in our format."""

    name: tyro.conf.Positional[str]
    """owner/name."""
    out: tyro.conf.Positional[Path]
    """Folder for its files."""
    revision: str | None = None
    """Branch, tag or commit. None: the newest."""
    local: Path | None = None
    """Folder to use instead of the Hub."""

    def __post_init__(self) -> None:
        require(looks_like_hub_id(self.name), "name", self.name, "owner/name")


@dataclass(frozen=True)
class Options:
    """Push models to the Hugging Face Hub, or pull them."""

    what: tyro.conf.OmitSubcommandPrefixes[
        Annotated[Push, tyro.conf.subcommand("push")] | Annotated[Pull, tyro.conf.subcommand("pull")]
    ]


def main(argv: Sequence[str]) -> None:
    console = open_console()
    with usage_errors():
        options = parse_flags(Options, argv, prog="python -m diffmavil.hub").what
        said = push(options) if isinstance(options, Push) else pull(options)
    console.print(said)


def push(options: Push) -> str:
    """Push a model; return a one-line summary."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        make_folder(options.source, folder, options.name, options.license)
        if options.local is None:
            return f"pushed: {upload(folder, options.name, private=options.private, message=options.message)}"
        there = options.local / options.name
        check_writable("--local", there)
        with writing("--local", there):
            shutil.copytree(folder, there, dirs_exist_ok=True)
        return f"written: {there}, and nothing was uploaded"


def pull(options: Pull) -> str:
    """Pull a model; return a one-line summary. The weights are loaded once to check that they are ours and complete."""
    check_no_run("OUT", options.out)
    check_writable("OUT", options.out)
    if options.local is None:
        fetch(options.name, options.revision, options.out)
    else:
        there = options.local / options.name
        require(there.is_dir(), "--local", str(there), "a folder: push has made none of this name")
        with writing("OUT", options.out):
            shutil.copytree(there, options.out, dirs_exist_ok=True)
    model, _ = load_any(locate(options.out).weights)
    return f"pulled: {options.out}, {count_parameters(model) / 1e6:.1f} M parameters"


def make_folder(source: Path, folder: Path, name: str, licence: str | None) -> None:
    """Write all files of a model. Raises `UsageError` for weights that are not ours.

    For a fine-tuned run, write the weights of its headline, with their scores on the card; if they are gone or have
    changed since, the last weights, without scores.
    """
    weights = locate(source).weights
    model, config = load_any(weights)
    run, beside = weights.parent, source.is_dir()  # a file of weights may be next to other weights' results
    tuned = read_classification(run) if beside and isinstance(model, Classifier) else None
    best = scored_file(tuned, run) if tuned is not None else None
    if best is not None:
        weights = best
        model, config = load_any(weights)
    judged = read_evaluation(run) if beside and not isinstance(model, Classifier) else None
    public = without_paths(config)
    notes = {name: _last(text) for name, text in notes_of(weights).items()}
    write_folder(model, public, folder, notes)
    save_config(public, folder / CONFIG_FILE)
    card = Card(
        name,
        public,
        count_parameters(model),
        judged if judged is not None and is_of(judged, weights) else None,
        tuned if best is not None else None,
        licence,
        notes.get("converted_from"),
    )
    (folder / CARD).write_text(card.text())


C = TypeVar("C", bound=Config)


def without_paths(config: C) -> C:
    """The config with only the last component of its paths: what is pushed is public."""
    data = config.data
    data = replace(
        data,
        root=_last(data.root),
        more=tuple(_last(one) for one in data.more),
        eval_root=data.eval_root and _last(data.eval_root),
        cache=type(data)().cache,
    )
    train = replace(config.train, init=config.train.init and _last(config.train.init))
    teacher = replace(config.teacher, source=config.teacher.source and _last(config.teacher.source))
    changed = {"data": data, "train": train, "teacher": teacher}
    if isinstance(config, FinetuneConfig):
        head = config.head
        changed["head"] = replace(head, source=_last(head.source), val_root=head.val_root and _last(head.val_root))
    return replace(config, **changed)


def _last(path: str) -> str:
    return PurePath(path).name or path


if __name__ == "__main__":
    run_main(main)
