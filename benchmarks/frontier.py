"""The cells of the study of quality, `benchmarks/quality.py`: which there are, and what one of them runs.

A cell is a set, a setting, a budget of samples and a seed. It pretrains, with a schedule as long as its budget, probes,
and on request fine-tunes, by the commands of a recipe (`benchmarks/recipes.py`), each in a process of one thread.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import yaml

from benchmarks.identity import identity
from benchmarks.processes import Processes
from benchmarks.recipes import (
    RECIPES,
    SCRATCH,
    Split,
    config_of,
    held_ratios,
    pretrain,
    scored_on,
    train,
    tune,
)
from benchmarks.settings import BASE, CHANGES, FIRST_STAGE, JUDGED, STAGES
from diffmavil.config import Config, RatioSchedule, TeacherConfig
from diffmavil.config.cli import parse_train
from diffmavil.config.files import flat_settings
from diffmavil.config.model import sees
from diffmavil.config.presets import STAGE_2
from diffmavil.data.stats import open_data
from diffmavil.evaluation.classification import Classification
from diffmavil.model.flops import FORWARDS, meta_teacher, teacher_flops
from diffmavil.training.costs import optimizer_flops, scheduled_flops

Result = dict[str, Any]
_ELSEWHERE = {"data.root", "data.eval_root", "data.cache", "data.workers", "train.seed", "train.steps"}
"""Settings that a cell tells by other names, or that change nothing."""
FROM_SCRATCH = "from scratch"
"""What fine-tuning is held against: a cell without pretraining, and so without a budget."""


@dataclass(frozen=True)
class Study:
    """One set: which clips, and what is measured on them."""

    title: str
    metrics: dict[str, str]
    """Metric -> its name in words. The first stands for all."""
    recipe: str = ""
    """Whose settings and tables; "": the generated set."""
    splits: tuple[Split, ...] = ()
    """Of the recipe's tables. A cell of several is the mean over them: of scores, seconds and FLOPs."""
    finetune: bool = False
    """Whether that is measured if nothing is said."""

    @property
    def tuned(self) -> dict[str, str]:
        """Task of fine-tuning -> metric."""
        tasks = self.splits[0].tasks if self.splits else ()
        return {task: "finetune" if task == "auto" else f"finetune/{task}" for task in tasks}


_BOTH = {"probe/fused": "probe, fused", "probe/audio": "probe, audio", "probe/video": "probe, video"}
_FOUND = {
    "audio_to_video/recall@1": "audio to video, recall@1",
    "video_to_audio/recall@1": "video to audio, recall@1",
}
_TUNED = {
    "finetune/av": "fine-tuned, fused",
    "finetune/audio": "fine-tuned, audio",
    "finetune/video": "fine-tuned, video",
}
_SOUND = {"probe/audio": "probe", "finetune": "fine-tuned"}
SETS = {
    "synthetic": Study("Generated set", {**_BOTH, **_FOUND}),
    "fsdd": Study("Free Spoken Digits", _SOUND, "fsdd", (RECIPES["fsdd"][""],)),
    "esc10": Study("ESC-10, fold 1", _SOUND, "esc10", (RECIPES["esc10"]["fold 1"],), finetune=True),
    "esc10-folds": Study("ESC-10, mean of five folds", _SOUND, "esc10", tuple(RECIPES["esc10"].values())),
    "grid": Study("GRID, words of one speaker", {**_BOTH, **_FOUND, **_TUNED}, "grid", (RECIPES["grid"]["words"],)),
}


@dataclass(frozen=True)
class Cell:
    """One run. Its fields are the first keys of its line."""

    set: str
    setting: str
    budget: float
    """Part of the samples that `BASE` is trained with, by the recipe where there is one."""
    seed: int
    samples: int


@dataclass(frozen=True)
class Asked:
    """What is the same for all cells of one invocation."""

    name: str
    """Key of `SETS`."""
    invocation: str = ""
    """When it was started, and at which commit: CPU seconds are compared within it alone."""
    data: Path | None = None
    """Folder of the recipe's tables or prepared sets."""
    cache: str | None = None
    extra: tuple[str, ...] = ()
    """Further flags of the training."""
    finetune: bool = False
    jobs: int = 1
    keep: Path | None = None
    """Where pretrained runs stay, for `reading.py` and others; None: they do not."""
    part: int = 0
    """Which of the study's splits."""

    @property
    def study(self) -> Study:
        return SETS[self.name]

    def parts(self) -> list[Asked]:
        """One for each split."""
        return [replace(self, part=part) for part in range(max(1, len(self.study.splits)))]

    def data_flags(self) -> list[str]:
        """Decoding in the process itself: its seconds then count, which those of the workers' server would not."""
        cache = ["--data.cache", self.cache] if self.cache else []
        return ["--data.workers", "0", *cache, *self.scored()]

    def scored(self) -> list[str]:
        return scored_on(self.data, self.study.splits[self.part]) if self.study.splits and self.data else []

    def training(self, setting: str) -> tuple[str, list[str]]:
        """Preset and flags, all but seed and length."""
        preset, flags, _ = _resolved(self, setting)
        return preset, [*flags]

    def config(self, setting: str) -> Config:
        """Raises `UsageError` for flags in `extra` that are not allowed; unknown ones end in `SystemExit`, code 2."""
        return _resolved(self, setting)[2]

    def trained(self, setting: str) -> str:
        """A digest of all settings but seed, length and clips that differ from a plain config's: a name may come to
        mean others."""
        plain, own = flat_settings(Config()), flat_settings(self.config(setting))
        told = {name: value for name, value in own.items() if name not in _ELSEWHERE and value != plain.get(name)}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]

    def settings(self) -> Result:
        """What all settings of the set were trained with besides, for the lines: others are not put beside them."""
        recipe = self.study.recipe
        stages = ("pretrain", "finetune") if recipe else ()
        files = {stage: yaml.safe_load(config_of(recipe, stage).read_text()) for stage in stages}
        return {**files, "extra": list(self.extra)}


@functools.cache
def _resolved(asked: Asked, setting: str) -> tuple[str, tuple[str, ...], Config]:
    """Preset, flags and what they come to."""
    preset = setting.partition(",")[0]
    recipe = ["--config", str(config_of(asked.study.recipe, "pretrain"))] if asked.study.recipe else []
    flags = [*recipe, *CHANGES[setting].split()]
    flags += [*held_ratios([preset, *flags]), *asked.extra, *asked.data_flags()]
    return preset, tuple(flags), _with_teacher(parse_train([preset, *flags])[1])


def distinct(asked: Asked, settings: Sequence[str]) -> dict[str, str | None]:
    """Each setting -> an earlier one that trains the very same here, or None: a model without a picture does not care
    for the decoder of it."""
    found: dict[str, str] = {}
    same: dict[str, str | None] = {}
    for setting in settings:
        config = asked.config(setting)
        if not sees(config.model.modalities):
            model = replace(config.model, video_decoder=config.model.audio_decoder)
            config = replace(config, model=model, mask=replace(config.mask, video=RatioSchedule()))
        first = found.setdefault(repr((config, STAGES.get(setting))), setting)
        same[setting] = None if first == setting else first
    return same


def cells(asked: Asked, settings: Sequence[str], budgets: Sequence[float], seeds: Sequence[int]) -> Iterator[Cell]:
    """Seed by seed, and from the smallest budget on, so that a study that is stopped early compares every setting."""
    recipe = asked.config(BASE).train
    for seed in seeds:
        if asked.finetune:
            yield Cell(asked.name, FROM_SCRATCH, 0.0, seed, 0)
        for budget in sorted(budgets):
            samples = max(1, round(recipe.steps * budget)) * recipe.batch_size
            for setting in settings:
                yield Cell(asked.name, setting, budget, seed, samples)


def cell_of(result: Result) -> Cell:
    return Cell(*(result[name] for name in ("set", "setting", "budget", "seed", "samples")))


def make_ready(asked: Asked) -> None:
    """Generate the set and measure its statistics, if they are not in the cache: no cell is to pay for it.

    Raises:
        ValueError: there is no such table, or it cannot be read.
    """
    for part in asked.parts():
        open_data(part.config(BASE))


def run_cell(cell: Cell, asked: Asked, processes: Processes) -> Result:
    """Its line: the commands are run in a folder that is gone afterwards, but for the pretrained run if it is kept."""
    line: Result = {**vars(cell), **identity(torch.device("cpu"), threads=1)}
    line |= mean_of([_measured(cell, part, processes) for part in asked.parts()])
    about = {"invocation": asked.invocation, "jobs": asked.jobs, "load": os.getloadavg()[0]}
    trained = {} if cell.setting == FROM_SCRATCH else {"trained": asked.trained(cell.setting)}
    return {**line, **about, **trained, "settings": asked.settings()}


def _measured(cell: Cell, asked: Asked, processes: Processes) -> Result:
    """Scores and costs of one split."""
    with tempfile.TemporaryDirectory(dir=asked.keep) as folder:
        run = Path(folder) / "run"
        line = _pretrained(cell, asked, processes, run)
        source = SCRATCH if cell.setting == FROM_SCRATCH else str(run / JUDGED.get(cell.setting, ""))
        for task, metric in asked.study.tuned.items() if asked.finetune else ():
            flags = ["--config", str(config_of(asked.study.recipe, "finetune")), "--train.seed", str(cell.seed)]
            seconds, found = tune(processes.python, source, task, run.with_name(task), [*flags, *asked.data_flags()])
            line["scores"][metric], line["intervals"][metric] = _headline(found)
            line["finetune_cpu_seconds"] = line.get("finetune_cpu_seconds", 0.0) + seconds
            line["clips"] = found.clips["test"]["used"]
        if asked.keep and run.exists():
            run.rename(kept(cell, asked.keep))
    return line


def mean_of(parts: Sequence[Result]) -> Result:
    """Of several splits' scores and costs the means; their held-out clips, which are others in each, are added up, and
    the half widths of their intervals joined as those of independent numbers.
    """
    if len(parts) == 1:
        return parts[0]
    line: Result = {}
    for name, value in parts[0].items():
        of_parts = [part[name] for part in parts]
        if name == "clips":
            line[name] = sum(of_parts)
        elif name != "intervals":
            keyed = isinstance(value, dict)
            line[name] = {k: fmean(one[k] for one in of_parts) for k in value} if keyed else fmean(of_parts)
    line["intervals"] = {}
    for metric in parts[0]["intervals"]:
        half = math.hypot(*((high - low) / 2 for low, high in (part["intervals"][metric] for part in parts)))
        score, half = line["scores"][metric], half / len(parts)
        line["intervals"][metric] = (score - half, score + half)
    return line


def kept(cell: Cell, folder: Path) -> Path:
    """Where its pretrained run stays."""
    return folder / re.sub(r"[^a-z0-9]+", "-", f"{cell.set} {cell.setting} {cell.samples} seed {cell.seed}")


def _pretrained(cell: Cell, asked: Asked, processes: Processes, run: Path) -> Result:
    """Costs and scores of a cell before fine-tuning."""
    if cell.setting == FROM_SCRATCH:
        return {"gflop_per_clip": 0.0, "tflop": 0.0, "cpu_seconds": 0.0, "scores": {}, "untrained": {}, "intervals": {}}
    config = asked.config(cell.setting)
    preset, flags = asked.training(cell.setting)
    flags += ["--train.seed", str(cell.seed)]
    # With the seed of the cell, so that the untrained model is another one for each.
    judged = [*asked.scored(), "--seed", str(cell.seed)]
    steps, seconds, tflop = cell.samples // config.train.batch_size, 0.0, 0.0
    if cell.setting in STAGES:
        first, teacher = round(FIRST_STAGE * steps), str(run.with_name("teacher"))
        seconds = train(processes.python, preset, Path(teacher), [*flags, "--train.steps", str(first)])
        tflop = _tflop(config, first)
        config = _with_teacher(replace(config, teacher=TeacherConfig(stage=2)))
        preset, steps = f"{preset}{STAGE_2}", steps - first
        flags += [flag for name in STAGES[cell.setting] for flag in (name, teacher)]
    if cell.setting in JUDGED:
        judged += ["--weights", str(run / JUDGED[cell.setting])]
    spent, evaluation = pretrain(processes.python, preset, run, [*flags, "--train.steps", str(steps)], judged)
    return {
        "gflop_per_clip": scheduled_flops(config.model, config.mask).total * 1e-9,
        "tflop": tflop + _tflop(config, steps),
        "cpu_seconds": seconds + spent,
        "clips": evaluation.clips["heldout"].used,
        "scores": dict(evaluation.results["trained"]),
        "untrained": evaluation.results["untrained"],
        "chance": evaluation.results["chance"],
        "intervals": dict(evaluation.intervals["trained"]),
    }


def _with_teacher(config: Config) -> Config:
    """In the second stage, the student of a teacher as wide as it is."""
    if config.teacher.stage == 1:
        return config
    return replace(config, model=replace(config.model, target_width=config.model.encoder.width))


def _tflop(config: Config, steps: int) -> float:
    """Of a pretraining, Muon's iterations among it; in the second stage with the teacher's forwards."""
    flop = FORWARDS * scheduled_flops(config.model, config.mask).total
    if config.teacher.stage == 2:
        flop += teacher_flops(meta_teacher(config.model))
    return steps * (flop * config.train.batch_size + optimizer_flops(config.model, config.optim)) * 1e-12


def _headline(found: Classification) -> tuple[float, tuple[float, float]]:
    """The score of a fine-tuned model, with its interval."""
    weights, crops, metric = (found.headline[name] for name in ("weights", "crops", "metric"))
    return found.results[weights][crops][metric], found.intervals[weights][crops][metric]
