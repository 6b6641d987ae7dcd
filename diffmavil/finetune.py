"""Fine-tuning: `torchrun -m diffmavil.finetune --from RUN [--data.root CLIPS] [--dotted.setting VALUE ...]`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from diffmavil.config import Config, FinetuneConfig, require
from diffmavil.config.cli import run_main
from diffmavil.config.errors import UsageError, usage_errors
from diffmavil.config.finetune_cli import parse_finetune
from diffmavil.config.folders import expand
from diffmavil.config.progress import open_console, tracking
from diffmavil.data.clips import ClipSet
from diffmavil.data.labelled import LabelledSplit, open_labelled
from diffmavil.evaluation.beginning import begin_with, check_beginning, trained_with
from diffmavil.evaluation.classification import KINDS, Lesson, classify_run
from diffmavil.evaluation.pretrained import find_weights, open_model
from diffmavil.evaluation.probe_head import MOST_CLIPS, start_with_probe
from diffmavil.evaluation.validation import Validation
from diffmavil.model.classifier import Classifier, start_from
from diffmavil.model.weights import WEIGHTS_FILE, export_weights, read_weights
from diffmavil.reporting.page import write_report
from diffmavil.training.checkpoint import checkpoints
from diffmavil.training.classification import Classification, clip_weights
from diffmavil.training.distributed import World, world
from diffmavil.training.engine import fit
from diffmavil.training.memory import keep_freed_memory
from diffmavil.training.planner import check_processes
from diffmavil.training.run import Run, open_run, with_sound_of_main, write_run

_VALIDATIONS = 10
"""Validations in a run, unless train.probe_every says how often."""


def main(argv: Sequence[str]) -> None:
    weights: list[Path] = []  # of a checkpoint, to find it is to read all of it

    def config_of(source: str) -> Config:
        weights.append(found_weights(source))
        return trained_with(weights[-1])

    name, config, options = parse_finetune(argv, config_of)
    with world() as peers:
        if peers.device.type == "cpu":
            keep_freed_memory()
        run, opened = open_run(name, config, options, peers)
        with usage_errors():
            if opened.train.init and run.checkpoint is None:  # before the data, which may take long
                peers.main_first(partial(check_beginning, opened))
            config, split = peers.main_first(lambda: prepared(opened, peers))
            config = with_sound_of_main(config, peers)
        run = write_run(run, config, peers)
        chosen_by = split.validation.note if split.validation else "none held back to choose the best weights by"
        told = {"training": split.train.note, "validation": chosen_by, "held out": split.test.note}
        for what, note in told.items():
            run = run.noting(f"{what}: {note}")
        with usage_errors():
            task = Classification(config, peers.device, clips=split.train)
            for line in begin(task.model, config, *weights) if run.checkpoint is None else []:
                run = run.noting(line)
        if config.head.start == "probe" and run.checkpoint is None:
            run = run.noting(peers.main_only(lambda: probed(task.model, config, split.train)))
        monitor = validation(task.model, config, split.validation, run)
        if fit(task, run, config, split.train, peers, monitor) and peers.main:
            finish(task, run, config, split)


def found_weights(source: str) -> Path:
    """The file of exported weights, or the folder of a checkpoint, that `--from` names; of a fine-tuned run, its
    headline's. Raises `UsageError` if there are none, or if the run has not ended and no checkpoint is named.
    """
    path = expand(source)
    if checkpoints(path) and not (path / WEIGHTS_FILE).exists():
        raise UsageError(
            f"--from {path}: holds no {WEIGHTS_FILE}; it is written when a run ends (of an earlier end there may be "
            f"model-step-N.safetensors). To start from a checkpoint, name it: {checkpoints(path)[-1]}"
        )
    try:
        return find_weights(source)
    except ValueError as error:
        raise UsageError(f"--from {error}") from error


def begin(model: Classifier, config: FinetuneConfig, weights: Path | None = None) -> list[str]:
    """Load pretrained weights, or an image MAE, into the model; return lines on what fits. Raises as `start_from`."""
    if weights is not None:
        return start_from(model, read_weights(weights)[0] if weights.is_file() else open_model(weights)[0].state_dict())
    if config.train.init:
        return begin_with(model, config.train.init).lines()
    return []


def probed(model: Classifier, config: FinetuneConfig, clips: ClipSet) -> str:
    """Fit the head to the training clips, showing progress; the other processes get it from this one."""
    with tracking(open_console(), "clips for the probe", min(len(clips), MOST_CLIPS)) as tracker:
        return start_with_probe(model, config, clips, batch_size=config.train.batch_size, progress=tracker.update)


def prepared(config: FinetuneConfig, peers: World) -> tuple[FinetuneConfig, LabelledSplit]:
    """Config and clips, with the number of steps set by `head.epochs` and the order set by `head.balance`.

    Raises:
        ValueError: clips or labels that do not fit, or a batch that does not divide over the processes or for mixup.
    """
    config, split = open_labelled(config)
    train, head = config.train, config.head
    if head.epochs is not None:
        train = replace(train, steps=max(1, math.ceil(head.epochs * len(split.train) / train.batch_size)))
    if not train.probe_every:
        train = replace(train, probe_every=max(1, train.steps // _VALIDATIONS))
    config = replace(config, train=train)
    check_processes(config, peers.size)
    local = train.batch_size // peers.size
    even = f"an even number for each of {peers.size} processes, whose clips mixup pairs (or head.mixup=0)"
    require(not head.mixup or local % 2 == 0, "train.batch_size", train.batch_size, even)
    mixed = "none or loss beside data.more: data.weights say how often clips come"
    require(head.balance != "sampling" or not split.train.parts, "head.balance", head.balance, mixed)
    if head.balance == "sampling":
        split = split._replace(train=replace(split.train, often=clip_weights(split.train)))
    return config, split


def validation(model: Classifier, config: FinetuneConfig, clips: ClipSet | None, run: Run) -> Validation | None:
    """The validation during training; None: no clips are held back for it."""
    if clips is None:
        return None
    done, batch = run.progress.step, config.train.batch_size
    return Validation(model, config, clips, run.folder, done=done, batch_size=batch)


def finish(task: Classification, run: Run, config: FinetuneConfig, split: LabelledSplit) -> None:
    """Export the weights, score them on the held-out clips, write the report."""
    console, batch = open_console(), config.train.batch_size
    kept = {"last", *task.averages.models, *(["best"] if split.validation else [])}
    for name in KINDS.keys() - kept:  # left by an earlier end of this run, with other settings
        (run.folder / KINDS[name]).unlink(missing_ok=True)
    for name, averaged in task.averages.models.items():
        export_weights(averaged.module, config, run.folder / KINDS[name])
    export_weights(task.model, config, run.folder / WEIGHTS_FILE)  # last: this file marks the run as ended
    lesson = Lesson.of(split)
    found = classify_run(run.folder, config, split.test, lesson, device=task.device, batch_size=batch, console=console)
    found.write(run.folder)
    found.show(console)
    if config.train.report:
        console.print(f"report: {write_report(run.folder)}")


if __name__ == "__main__":
    run_main(main)
