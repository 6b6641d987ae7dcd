"""Settings: batch, learning rate, samples seen, precision and schedule, beside those of the preset."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from diffmavil.config import FinetuneConfig
from diffmavil.config.files import flat_settings
from diffmavil.evaluation.checkup.case import Case
from diffmavil.evaluation.checkup.findings import Finding

_FACTOR = 1.5
"""Batches and learning rates that differ by less are alike."""
_ENOUGH = 0.9
"""A run that has seen this share of the preset's samples is as long."""
_GROUPS: dict[str, tuple[tuple[str, ...], float, str]] = {
    "schedule": (
        (
            *("optim.name", "optim.min_lr", "optim.warmup", "optim.betas", "optim.weight_decay", "optim.clip_grad"),
            *("optim.muon_steps", "optim.layer_decay", "batch.rule", "batch.lr_rule", "batch.gflop"),
        ),
        0.35,
        "take the preset's, unless they were chosen by a comparison",
    ),
    "masking": (
        (
            *("mask.", "model.diffusion.", "model.decode_fraction", "model.contrast.", "model.views"),
            *("model.decoded_views", "model.norm_pix", "model.video_masks", "model.audio_masks"),
        ),
        0.4,
        "take the preset's: masks, noise and contrast are what is learnt from",
    ),
    "model": (
        (
            *("model.modalities", "model.encoder.", "model.shared_encoder", "model.video.", "model.audio."),
            *("model.video_decoder.", "model.audio_decoder.", "model.fusion_"),
            *("model.video_weight", "model.audio_weight"),
        ),
        0.3,
        "compare with scores of a model that sees and hears as much",
    ),
    "augmentation": (("data.crop_scale", "data.crops_kept", "data.flip", "data.augment."), 0.2, "take the preset's"),
    "head": (("head.",), 0.35, "take the preset's, unless validation clips say otherwise"),
}
"""Check -> (settings, how suspicious, what to do)."""
_OWN = ("model.audio.mean", "model.audio.std", "head.source", "head.classes", "head.labels", "head.epochs")
_OF_WEIGHTS = ("masking", "model")
"""In fine-tuning these come with the weights."""


def check_samples(case: Case) -> list[Finding]:
    """Samples seen so far against those of the preset's whole run; in fine-tuning, epochs."""
    seen = case.last.get("samples", 0)
    config, reference = case.config, case.reference
    if isinstance(config, FinetuneConfig) and isinstance(reference, FinetuneConfig):
        wanted, unit = reference.head.epochs or 0, "epochs"
        if config.head.epochs is not None:  # of the clips that it learns from, fewer than the set has
            seen = config.head.epochs * seen / (case.steps * config.train.batch_size)
        else:
            seen = seen / max(1, len(case.split.train))
    else:
        wanted, unit = reference.train.steps * reference.train.batch_size, "samples"
    if not wanted or seen >= _ENOUGH * wanted:
        return []
    share = seen / wanted
    advice = "resume it: it has not ended" if case.done < case.steps else f"train longer: {_longer(case, wanted, unit)}"
    number = ",.1f" if unit == "epochs" else ",.0f"
    here, there = f"{seen:{number}} {unit}", f"{wanted:{number}} {unit}"
    return [Finding("samples seen", here, there, f"{share:.1%} of the reference", advice, 0.15 + 0.75 * (1 - share))]


def _longer(case: Case, wanted: float, unit: str) -> str:
    if unit == "epochs":
        return f"--head.epochs {wanted:g}"
    return f"--train.steps {math.ceil(wanted / case.config.train.batch_size)}"


def check_batch(case: Case) -> list[Finding]:
    """Clips of a step; contrast is among these."""
    here, there = case.config.train.batch_size, case.reference.train.batch_size
    times = here / there
    if 1 / _FACTOR < times < _FACTOR:
        return []
    contrast = "" if case.finetuned else "; contrast has the other clips of a step alone as negatives"
    if times < 1:
        advice = f"raise train.batch_size (with batch.memory-gib it is computed in passes){contrast}"
    else:
        advice = "a larger batch needs another learning rate, and makes fewer steps of as many samples"
    weight = min(0.7, 0.25 + 0.1 * abs(math.log2(times)))
    return [Finding("batch", f"{here} clips", f"{there} clips", f"{times:.2g} times", advice, weight)]


def check_rate(case: Case) -> list[Finding]:
    """The peak learning rate: between the preset's own and the same scaled with the batch it should lie."""
    ours, theirs = case.config.optim.lr, case.reference.optim.lr
    batches = case.config.train.batch_size / case.reference.train.batch_size
    low, high = sorted((theirs, theirs * batches))
    if low / _FACTOR < ours < high * _FACTOR:
        return []
    off = ours / (high if ours > high else low)
    fits = f"{theirs:g}" if batches == 1 else f"{low:g} to {high:g} (kept, or scaled with the batch)"
    weight = min(0.85, 0.3 + 0.15 * abs(math.log2(off)))
    return [Finding("learning rate", f"{ours:g}", fits, f"{off:.2g} times", f"use --optim.lr {theirs:g}", weight)]


def check_precision(case: Case) -> list[Finding]:
    """Precision, and steps that were skipped because of it."""
    found = []
    ours, theirs = case.config.train.precision, case.reference.train.precision
    if ours != theirs:
        advice = (
            f"use --train.precision {theirs}; fp32 costs time, not score"
            if ours == "fp32"
            else (f"use --train.precision {theirs}, which takes bf16 where the device computes in it")
        )
        found.append(Finding("precision", ours, theirs, "another", advice, 0.1 if ours == "fp32" else 0.2))
    skipped = case.last.get("nonfinite_steps", 0)
    if skipped and case.done:
        share = skipped / case.done
        advice = "lower optim.lr, set optim.clip_grad, or use --train.precision fp32"
        here = f"{skipped:,.0f} of {case.done:,} steps were skipped: their gradient was not finite"
        found.append(
            Finding("precision", here, "none", f"{share:.1%} of the steps", advice, min(0.95, 0.4 + 5 * share))
        )
    return found


def check_recipe(case: Case) -> list[Finding]:
    """Every other setting that differs, by group."""
    ours, theirs = flat_settings(case.config), flat_settings(case.reference)
    found = []
    for group, (prefixes, weight, advice) in _GROUPS.items():
        if case.finetuned and group in _OF_WEIGHTS:
            continue
        names = [name for name in ours if name.startswith(prefixes) and not name.startswith(_OWN)]
        changed = [name for name in names if ours[name] != theirs.get(name)]
        if changed:
            here, there = _told(changed, ours), _told(changed, theirs)
            count = "1 setting" if len(changed) == 1 else f"{len(changed)} settings"
            found.append(Finding(group, here, there, count, advice, weight))
    return found


def _told(names: Sequence[str], values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_plain(values[name])}" for name in names)


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
