"""Features: whether they have collapsed, and whether they know more than those of an untrained model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from diffmavil.config import FinetuneConfig
from diffmavil.config.errors import RunError, UsageError
from diffmavil.data.audio import frames_in, make_log_mel
from diffmavil.data.clips import ClipSet
from diffmavil.data.loader import eval_batches
from diffmavil.evaluation.checkup.case import Case
from diffmavil.evaluation.checkup.findings import Finding, Unchecked
from diffmavil.evaluation.classification import read_classification
from diffmavil.evaluation.features import extract, untrained_model
from diffmavil.evaluation.monitor import DEAD_SHARE, LOWEST_RANK, RANK_LOSS, statistics
from diffmavil.evaluation.result import read_evaluation
from diffmavil.model.classifier import Classifier
from diffmavil.model.weights import WEIGHTS_FILE, load_classifier, load_weights
from diffmavil.training.precision import use_bf16

_AT_ONCE = 16
_ONE_ANSWER = 0.5
"""A class given as the answer to more clips than this, and to twice as many as carry it, is a collapse."""


def check_features(case: Case) -> Iterator[Finding]:
    """The effective rank and dead dimensions, now or as last recorded, beside those of the untrained model."""
    yield from _scores(case)
    if not (case.folder / WEIGHTS_FILE).exists():
        yield from _recorded(case)
        return
    clips = case.split.held_out.spread(case.most)
    try:
        now, reference = _of_classifier(case, clips) if case.finetuned else _of_pretrained(case, clips)
    except (RunError, UsageError) as error:
        raise Unchecked(str(error)) from error
    for kind, x in now.items():
        finite = x.isfinite().all(dim=1)
        if not finite.any():
            raise Unchecked(f"no {kind} features are finite")
        if not finite.all():
            lost = 1 - finite.double().mean().item()
            here = f"{kind} features of {lost:.0%} of the clips are not finite"
            yield Finding("features", here, "all are", f"{lost:.0%} of them", "train again at a lower optim.lr", 0.9)
        yield from _signs(kind, statistics(x[finite]), statistics(reference[kind][finite]))


def _of_pretrained(case: Case, clips: ClipSet) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Kind -> `[N, D]`, of the trained and of the untrained model."""
    model, config = load_weights(case.folder / WEIGHTS_FILE)
    config = replace(config, data=replace(case.config.data, workers=0))
    models = {"trained": model, "untrained": untrained_model(config.model, config.train.seed)}
    table = extract(models, config, clips, batch_size=_AT_ONCE)
    return table.features["trained"], table.features["untrained"]


@torch.inference_mode()
def _of_classifier(case: Case, clips: ClipSet) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the head of the trained and of an untrained classifier reads."""
    model, config = load_classifier(case.folder / WEIGHTS_FILE)
    config = replace(config, data=replace(case.config.data, workers=0))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.train.seed)
        untrained = Classifier(config.model, config.head).eval()
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    log_mel = make_log_mel(config.model)
    with eval_batches(config, clips, _AT_ONCE) as loader:
        for batch in loader:
            spec = log_mel(batch.wave, batch.wave_valid)
            heard = frames_in(batch.wave_valid, config.model.audio.sample_rate)
            with torch.autocast("cpu", torch.bfloat16, use_bf16(config, torch.device("cpu"))):
                for one, rows in zip((model, untrained), found, strict=True):
                    rows.append(one.features(batch.video, spec, heard).float())
    now, first = map(torch.cat, found)
    return {"pooled": now}, {"pooled": first}


def _recorded(case: Case) -> list[Finding]:
    """By the looks in the loop, where there are no weights yet."""
    looks = [record for record in case.records if any(name.startswith("probe/rank/") for name in record)]
    if not looks:
        raise Unchecked(f"there is no {WEIGHTS_FILE} yet, and train.probe_every was 0")
    kinds = [name.split("/")[2] for name in looks[-1] if name.startswith("probe/rank/")]

    def told(look: dict[str, float], kind: str) -> dict[str, float]:
        return {what: look.get(f"probe/{what}/{kind}", math.nan) for what in ("rank", "dead")}

    return [
        finding for kind in kinds for finding in _signs(kind, told(looks[-1], kind), told(looks[0], kind), "at first")
    ]


def _signs(kind: str, now: dict[str, float], first: dict[str, float], when: str = "untrained") -> list[Finding]:
    found = []
    rank, before = now["rank"], first["rank"]
    advice = "the features have collapsed: lower optim.lr, look at the contrast's weights, and watch train.probe_every"
    if not rank >= max(LOWEST_RANK, RANK_LOSS * before):  # NaN too
        here, there = f"effective rank {rank:.3g} of the {kind} features", f"{before:.3g} {when}"
        found.append(Finding("features", here, there, f"{rank / before if before else 0:.2g} times", advice, 0.9))
    if now["dead"] > max(DEAD_SHARE, first["dead"] + 0.1):
        here = f"{now['dead']:.0%} of the dimensions of the {kind} features are the same for all clips"
        there = f"{first['dead']:.0%} {when}"
        found.append(Finding("features", here, there, f"{now['dead'] - first['dead']:+.0%}", advice, 0.8))
    return found


def _scores(case: Case) -> list[Finding]:
    """By what evaluations have left in the folder."""
    if isinstance(case.config, FinetuneConfig):
        return _one_answer(case)
    evaluation = read_evaluation(case.folder)
    metric = evaluation and evaluation.headline
    if not evaluation or not metric or metric not in evaluation.results.get("untrained", {}):
        return []
    ours, theirs = (evaluation.results[name][metric] for name in ("trained", "untrained"))
    if ours > theirs:
        return []
    here, there = f"{metric} {ours:.1%}", f"{theirs:.1%} untrained"
    advice = "nothing was learnt that the probe can use: look at the other findings, and at the losses"
    return [Finding("features", here, there, f"{100 * (ours - theirs):+.1f} points", advice, 0.65)]


def _one_answer(case: Case) -> list[Finding]:
    found = read_classification(case.folder)
    if found is None or found.confusion is None:
        return []
    answers = [sum(column) for column in zip(*found.confusion, strict=True)]
    most = max(range(len(answers)), key=answers.__getitem__)
    share, true = answers[most] / max(1, sum(answers)), sum(found.confusion[most]) / max(1, sum(answers))
    if share <= max(_ONE_ANSWER, 2 * true):
        return []
    here = f"{share:.0%} of the held-out clips are told to be {found.classes[most]!r}"
    advice = "lower optim.lr, look at head.balance and at the labels"
    return [Finding("features", here, f"{true:.0%} are", f"{100 * (share - true):+.0f} points", advice, 0.6)]
