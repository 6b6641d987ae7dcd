"""Weights: what a run started from, what of that was used, and whether what it wrote can be used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from diffmavil.config import FinetuneConfig
from diffmavil.config.errors import RunError, UsageError
from diffmavil.config.folders import expand
from diffmavil.evaluation.beginning import begin_with, own_weights
from diffmavil.evaluation.checkup.case import Case
from diffmavil.evaluation.checkup.findings import Finding, Unchecked
from diffmavil.model import DiffMAViL
from diffmavil.model.classifier import Classifier
from diffmavil.model.weights import WEIGHTS_FILE, read_weights

_NOTHING = "none"
_TINY = 192
"""Width of the encoders whose presets begin anew; the larger ones are published as started from an image MAE."""


def pretrained_of(case: Case) -> Path | None:
    """The file that a fine-tuning run started from; None: from nothing of ours."""
    if not isinstance(case.config, FinetuneConfig) or case.config.head.source == _NOTHING:
        return None
    source = expand(case.config.head.source)
    return source / WEIGHTS_FILE if source.is_dir() else source


def check_weights(case: Case) -> Iterator[Finding]:
    """Of the start: parts that nothing was loaded for, and parts of the file that were left over."""
    yield from _exported(case)
    source = pretrained_of(case)
    if source is not None:
        yield from _from_pretrained(case, source)
    elif case.config.train.init:
        yield from _from_init(case, case.config.train.init)
    elif case.finetuned:
        advice = "give --from RUN: without pretraining, scores of papers are far away"
        yield Finding("weights", "newly initialised", "pretrained weights", "all", advice, 0.75)
    elif case.config.model.encoder.width > _TINY:
        advice = "start with --init from an image MAE's checkpoint, as MAViL does, or train several times as long"
        yield Finding("weights", "encoders newly initialised", "an image MAE's weights (MAViL)", "all", advice, 0.45)


def _from_pretrained(case: Case, source: Path) -> list[Finding]:
    config = case.config
    assert isinstance(config, FinetuneConfig)
    if not source.exists():
        raise Unchecked(f"the weights it started from are gone: {source}")
    try:
        state, _ = read_weights(source)
    except UsageError as error:
        return [_unusable(str(source), str(error))]
    with torch.device("meta"):
        own = Classifier(config.model, config.head)
    wanted = {name for name in own.state_dict() if name.startswith(tuple(f"{part}." for part in own.branches))}
    missing = sorted(wanted - state.keys())
    used = tuple(f"{part}.encoder." for part in own.branches)
    left = sorted(name for name in state.keys() - wanted if name.startswith(used))
    return _mapping(str(source), missing, left, len(wanted))


def _mapping(source: str, missing: list[str], left: list[str], wanted: int) -> list[Finding]:
    found = []
    if missing:
        here = f"{len(missing)} of {wanted} tensors are not in {source}: {', '.join(missing[:3])}"
        advice = "start from weights of the same size and modalities; the parts named begin anew"
        found.append(Finding("weights", here, "all loaded", f"{len(missing) / wanted:.0%} new", advice, 0.85))
    if left:
        here = f"left over of {source}: {', '.join(left[:3])}" + (f" and {len(left) - 3} more" if left[3:] else "")
        advice = "the model is shallower than the weights: take the model settings that they were trained with"
        found.append(Finding("weights", here, "nothing of the encoders", f"{len(left)} tensors", advice, 0.6))
    return found


def _from_init(case: Case, source: str) -> list[Finding]:
    path = expand(source)
    if not path.exists():
        raise Unchecked(f"what it started from is gone, or on the Hub: {path}")
    try:
        tuned, model = case.config, case.config.model
        report = begin_with(
            Classifier(model, tuned.head) if isinstance(tuned, FinetuneConfig) else DiffMAViL(model), source
        )
        ours = own_weights(source) is not None
    except (ValueError, UsageError, RunError) as error:
        return [_unusable(str(path), str(error))]
    found = []
    new = [part for part in report.new if ".encoder" in part]
    if new:
        here = f"begin anew: {', '.join(new)}"
        found.append(Finding("weights", here, "all encoders loaded", f"{len(new)} parts", "take another file", 0.7))
    # Of ours the depth agrees; what is left over belongs to a part that the model does not have.
    left = () if ours else report.left
    blocks = [name for name in left if "block" in name or "layer" in name if "decoder" not in name]
    if blocks:
        here = f"left over of {path}: {', '.join(blocks)}"
        advice = "its encoder is deeper than the model's: raise model.encoder.depth, or take a smaller one"
        found.append(Finding("weights", here, "every block used", f"{len(blocks)} groups", advice, 0.5))
    return found


def _unusable(source: str, why: str) -> Finding:
    return Finding("weights", why, f"{source} as it was", "cannot be read", "find the file it started from", 0.6)


def _exported(case: Case) -> list[Finding]:
    """What the run wrote: finite numbers."""
    path = case.folder / WEIGHTS_FILE
    if not path.exists():
        return []
    try:
        state, _ = read_weights(path)
    except UsageError as error:
        advice = "export it again: resume the run, which writes its weights at its end"
        return [Finding("weights", str(error), "readable weights", "cannot be read", advice, 1.0)]
    broken = [name for name, value in state.items() if not value.isfinite().all()]
    if not broken:
        return []
    here = f"{len(broken)} of {len(state)} tensors are not finite: {', '.join(broken[:3])}"
    advice = "go back to a checkpoint before the losses became NaN, and lower optim.lr or use --train.precision fp32"
    return [Finding("weights", here, "finite numbers", f"{len(broken)} tensors", advice, 1.0)]
