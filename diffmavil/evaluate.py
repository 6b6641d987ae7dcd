"""What did a run learn? `python -m diffmavil.evaluate --run-dir D` writes D/evaluation.json, updates D/report.html.

Features of whole, unmasked clips (audio, video, fused) from the frozen model, and from an untrained model of the same
config, are evaluated on held-out clips: linear probe and k nearest neighbours, which learn from the labelled training
clips, and audio-video retrieval, which needs no labels. `diffmavil.evaluation.result` has the file's schema.

For a fine-tuned run, every kind of its weights is scored again on the held-out clips, or on others, and
D/classification.json is rewritten: `diffmavil.evaluation.classification`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console

from diffmavil.config import DataConfig, FinetuneConfig, require
from diffmavil.config.cli import parse_flags, run_main
from diffmavil.config.errors import UsageError, usage_errors
from diffmavil.config.files import CONFIG_FILE, load_config
from diffmavil.config.folders import check_writable
from diffmavil.config.progress import open_console
from diffmavil.data.labelled import open_held_out, open_labelled
from diffmavil.data.sources import split_source
from diffmavil.evaluation.classification import Lesson, classify_run, read_classification
from diffmavil.evaluation.evaluate import evaluate
from diffmavil.evaluation.result import Evaluation
from diffmavil.evaluation.vggsounder import check_known, read_annotations
from diffmavil.model.weights import WEIGHTS_FILE, load_classifier, load_weights, notes_of
from diffmavil.reporting.page import write_report
from diffmavil.training.planner import timetable

_NAMED = 10  # skipped clips that are printed


@dataclass(frozen=True)
class DataOptions:
    """Clips other than the run's own."""

    root: str | None = None
    """Training clips for probe and neighbours. Default: all sets of the run. Given without --data.eval-root, it also
    replaces the run's held-out clips."""
    eval_root: str | None = None
    """Held-out clips. Default: the run's."""
    cache: str | None = None
    """Folder of the synthetic set. Default: as in the run."""
    workers: int | None = None
    """Decoding processes. Default: as in the run."""

    def apply(self, data: DataConfig) -> DataConfig:
        if self.root is not None:
            data = replace(data, root=self.root, more=(), weights=(), eval_root=None)
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return replace(data, **given)


@dataclass(frozen=True)
class Options:
    """Evaluate the features of a pretrained model: linear probe, nearest neighbours, audio-video retrieval. Or score
    the weights of a fine-tuned run again."""

    run_dir: Path
    """Run folder: provides the weights, receives evaluation.json (fine-tuned: classification.json) and a new
    report.html."""
    weights: Path | None = None
    """Exported weights to evaluate on the same clips. Default: the run's model.safetensors."""
    batch_size: int = 32
    crops: int | None = None
    """Crops in time per clip, over which its features or scores are averaged. Default: 1; fine-tuned: the run's."""
    seed: int = 0
    """Seed of the untrained model's initialisation, and of the split that chooses the probe's l2."""
    features: Path | None = None
    """Also write all features, labels and paths to this safetensors file."""
    vggsounder: Path | None = None
    """CSV of VGGSounder's labels: also score the probes by them, on held-out clips of VGGSound's test set."""
    data: DataOptions = field(default_factory=DataOptions)

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "batch_size", self.batch_size, ">= 1")
        require(self.crops is None or self.crops >= 1, "crops", self.crops, ">= 1")
        require(0 <= self.seed < 2**63, "seed", self.seed, "in [0, 2^63)")


def main(argv: Sequence[str]) -> None:
    options = parse(argv)
    console, device = open_console(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(load_config(options.run_dir / CONFIG_FILE), FinetuneConfig):
        score_again(options, device, console)
    else:
        judge_features(options, device, console)
    with usage_errors():  # the report shows the run's own clips, which may be gone by now
        console.print(f"report: {write_report(options.run_dir)}")


def score_again(options: Options, device: torch.device, console: Console) -> None:
    """Rewrite classification.json of a fine-tuned run from the weights in its folder.

    Raises:
        UsageError: options for pretrained models, or clips whose classes are not the run's.
    """
    with usage_errors():
        check_for_classifier(options)
    _, config = load_classifier(options.run_dir / WEIGHTS_FILE)
    own = replace(config, data=replace(options.data, eval_root=None).apply(config.data))
    own = replace(own, head=replace(own.head, crops=options.crops or own.head.crops))
    root = options.data.eval_root
    before = read_classification(options.run_dir) if root is not None else None
    with usage_errors():
        if root is not None and before is not None:  # the training clips may be gone
            lesson, test = before.lesson, open_held_out(own, root)
        else:
            _, split = open_labelled(own)
            lesson, test = Lesson.of(split), split.test if root is None else open_held_out(own, root)
    console.print(f"held-out clips: {test.note}")
    batch, seed = options.batch_size, options.seed
    found = classify_run(
        options.run_dir, own, test, lesson, device=device, batch_size=batch, seed=seed, console=console
    )
    found.write(options.run_dir)
    found.show(console)


def check_for_classifier(options: Options) -> None:
    """Raise `ValueError` for an option that does not apply to a fine-tuned run."""
    why = "left out of a fine-tuned run, whose weights are scored by their own head"
    for name in ("weights", "features", "vggsounder"):
        given = getattr(options, name)
        require(given is None, f"--{name}", str(given), why)
    require(options.data.root is None, "--data.root", options.data.root, f"{why}; --data.eval-root names other clips")


def judge_features(options: Options, device: torch.device, console: Console) -> None:
    """Write evaluation.json of a pretrained model."""
    weights = options.weights or options.run_dir / WEIGHTS_FILE
    model, config = load_weights(weights, device)
    with usage_errors():
        # Weights from elsewhere name other clips, or none; they are evaluated on the clips of this run.
        data = load_config(options.run_dir / CONFIG_FILE).data if options.weights else config.data
        config = replace(config, data=options.data.apply(data))
        split = split_source(config.data, config.model.modalities)
        sounder = read_annotations(options.vggsounder) if options.vggsounder else None
        if sounder:
            check_known(sounder, split.held_out.clips)
    console.print(f"training clips: {split.train.note}\nheld-out clips: {split.held_out.note}")
    evaluation = evaluate(
        model,
        config,
        split.train,
        split.held_out,
        weights=weights,
        step=None if options.weights or "converted_from" in notes_of(weights) else timetable(config).steps,
        batch_size=options.batch_size,
        crops=options.crops or 1,
        seed=options.seed,
        vggsounder=sounder,
        features_file=options.features,
        console=console,
    )
    evaluation.write(options.run_dir)
    show(evaluation, console)


def parse(argv: Sequence[str]) -> Options:
    """Parse flags into options.

    Raises:
        UsageError: a folder that holds no run or no weights, or cannot be written; impossible values.
    """
    with usage_errors():
        options = parse_flags(Options, argv, prog="python -m diffmavil.evaluate")
    if not (options.run_dir / CONFIG_FILE).exists():
        raise UsageError(f"--run-dir {options.run_dir}: holds no run (no {CONFIG_FILE})")
    if options.weights is None and not (options.run_dir / WEIGHTS_FILE).exists():
        raise UsageError(
            f"--run-dir {options.run_dir}: holds no {WEIGHTS_FILE} yet, it is written when the run ends; continue it "
            "with --resume, or name exported weights with --weights"
        )
    if options.features and not options.features.absolute().parent.is_dir():
        raise UsageError(f"--features {options.features}: its folder does not exist")
    if options.features and options.features.is_dir():
        raise UsageError(f"--features {options.features}: is a folder, must be a file")
    with usage_errors():
        check_writable("--run-dir", options.run_dir)
        if options.features:
            check_writable("--features", options.features.absolute().parent)
    return options


def show(evaluation: Evaluation, console: Console) -> None:
    """Print the table, what it means, and which clips were skipped."""
    for table in evaluation.tables():
        console.print(table)
    console.print(evaluation.note())
    for path, reason in islice(evaluation.skipped.items(), _NAMED):
        console.print(f"skipped {path}: {reason}")
    if len(evaluation.skipped) > _NAMED:
        console.print(f"and {len(evaluation.skipped) - _NAMED} more, named in evaluation.json")


if __name__ == "__main__":
    run_main(main)
