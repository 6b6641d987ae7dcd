"""Clips: how many there are, how many are missing or could not be used, and the statistics of their sound."""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from collections.abc import Iterator

from diffmavil.config.errors import RunError, UsageError
from diffmavil.config.folders import expand
from diffmavil.data.clips import Clip
from diffmavil.data.dataset import make_reader
from diffmavil.data.prepare.pack import QUARANTINE_FILE
from diffmavil.data.stats import chosen_clips, measure_audio_stats
from diffmavil.data.tally import Tally
from diffmavil.evaluation.beginning import own_weights, trained_with
from diffmavil.evaluation.checkup.case import Case
from diffmavil.evaluation.checkup.findings import Finding, Unchecked
from diffmavil.evaluation.checkup.weights import pretrained_of

_LOOKED = 20_000
"""Files that are looked for, at most, evenly over the set."""
_SHIFT, _SPREAD = 0.25, 1.25
"""Statistics differ when the mean is off by more of the deviation, or the deviations by more than this factor."""
_SILENT = 0.05
_NAMED = 3


def check_clips(case: Case) -> Iterator[Finding]:
    """Clips that could not be used, files that are not there, and sets that have changed."""
    train = case.split.train
    yield from _missing(train.clips)
    yield from _left_out(case)
    try:
        progress = case.progress
    except RunError as error:
        raise Unchecked(str(error)) from error
    if progress is None or not progress.clips:
        yield from _bad_by_record(case, len(train))
        return
    before = progress.clips["clips"]
    tally = Tally(before)
    tally.add(progress.clips)
    if not case.finetuned and before != len(train):  # fine-tuning holds further clips back
        told, ago = f"{len(train):,} training clips are there now", f"{before:,} when it was trained"
        advice = "find out what became of them, and train again"
        yield Finding("clips", told, ago, f"{len(train) - before:+,} clips", advice, 0.3)
    yield from _bad(tally.bad, tally.tried, tally.reasons)


def _bad(bad: int, tried: int, reasons: dict[str, str]) -> list[Finding]:
    if not bad:
        return []
    share = bad / tried
    common = Counter(reason.partition(":")[0] for reason in reasons.values()).most_common(_NAMED)
    why = ", ".join(f"{reason} ({count})" for reason, count in common)
    names = ", ".join(list(reasons)[:_NAMED])
    advice = f"look at {names}; replace or prepare them again: python -m diffmavil.prepare names every bad clip"
    here = f"{bad:,} of {tried:,} clips tried could not be used: {why}"
    return [Finding("clips", here, "all of them", f"{share:.1%} of the clips", advice, min(0.9, 0.25 + 2 * share))]


def _bad_by_record(case: Case, clips: int) -> list[Finding]:
    """Where no checkpoint tells the names, the records tell how many."""
    bad = case.last.get("bad_clips", 0)
    if not bad or not clips:
        return []
    seen = min(clips, int(case.last.get("samples", clips)))
    share = min(1.0, bad / max(1, seen))
    here = f"{bad:,.0f} clips could not be used"
    advice = "the log of the run names them"
    return [Finding("clips", here, "none", f"about {share:.1%} of the clips", advice, min(0.9, 0.25 + 2 * share))]


def _missing(clips: list[Clip]) -> list[Finding]:
    """Files that a table names and that are not there."""
    plain = [clip.path for clip in clips if clip.stored is None]
    looked = plain[:: max(1, -(-len(plain) // _LOOKED))]
    gone = [path for path in looked if not os.path.exists(path)]
    if not gone:
        return []
    share = len(gone) / len(looked)
    here = f"{len(gone):,} of {len(looked):,} files looked for are not there: {', '.join(gone[:_NAMED])}"
    advice = "get them, or take them out of the table: scores of papers are of the whole set"
    return [Finding("clips", here, "all of them", f"{share:.1%} of the files", advice, min(0.9, 0.3 + 2 * share))]


def _left_out(case: Case) -> list[Finding]:
    """Clips that preparation has put aside."""
    found = []
    for root in (case.config.data.root, *case.config.data.more):
        path = expand(root) / QUARANTINE_FILE
        if not path.is_file():
            continue
        with path.open(newline="", encoding="utf-8") as file:
            aside = max(0, sum(1 for _ in csv.reader(file)) - 1)
        total = aside + len(case.split.train) + len(case.split.held_out)
        if aside:
            share = aside / total
            here = f"preparing {root} left {aside:,} clips out"
            advice = f"read {path} for the reasons: clips that are still to be had can be fetched and prepared again"
            weight = min(0.9, 0.2 + 2 * share)
            found.append(Finding("clips", here, "none left out", f"{share:.1%} of the clips", advice, weight))
    return found


def check_sound(case: Case) -> Iterator[Finding]:
    """The statistics in the config against those measured again, and against those of the weights it started from."""
    audio = case.config.model.audio
    if not case.config.model.hears:
        raise Unchecked("the model does not hear")
    if audio.mean is None or audio.std is None:
        raise Unchecked("the config has no statistics yet")
    here, ours, theirs = f"mean {audio.mean:.4g}, std {audio.std:.4g}", (audio.mean, audio.std), _of_weights(case)
    inherited = theirs is not None and _alike(ours, theirs)
    clips = chosen_clips(case.split.train, case.most)
    silent: list[str] = []
    try:
        mean, std = measure_audio_stats(clips, audio, make_reader(case.config), silent, case.config.model.modalities)
    except ValueError as error:
        if theirs is not None and not inherited:
            yield _other_than_weights(ours, theirs, here, meant=False)
        raise Unchecked(str(error)) from error
    shift, spread = _apart(ours, (mean, std))
    own = shift <= _SHIFT and spread <= _SPREAD
    if theirs is not None and not inherited:
        yield _other_than_weights(ours, theirs, here, meant=own)
    # What comes with the weights need not be that of the clips they are tuned on.
    if not own and not inherited:
        reference = f"mean {mean:.4g}, std {std:.4g}, measured over {len(clips) - len(silent):,} of its clips"
        difference = f"the mean is {shift:.2g} deviations off, the deviation is {audio.std / std:.2g} times as large"
        advice = (
            "leave model.audio.mean and .std out, so that they are measured, and train again; for weights of others "
            "take the statistics that they were trained with"
        )
        weight = min(1.0, 0.6 + 0.4 * shift + 0.4 * math.log(spread))
        yield Finding("sound", here, reference, difference, advice, weight)
    if len(silent) > _SILENT * len(clips):
        share = len(silent) / len(clips)
        told = f"{len(silent):,} of {len(clips):,} clips are silent: {', '.join(silent[:_NAMED])}"
        advice = "take them out, or look whether their sound was lost when they were made"
        yield Finding("sound", told, "sound in every clip", f"{share:.0%}", advice, min(0.8, 0.2 + share))


Statistics = tuple[float, float]


def _apart(ours: Statistics, theirs: Statistics) -> tuple[float, float]:
    """Shift of the mean in deviations of theirs, and by what factor the deviations differ."""
    (mean, std), (other, deviation) = ours, theirs
    return abs(mean - other) / deviation, max(std / deviation, deviation / std)


def _alike(ours: Statistics, theirs: Statistics) -> bool:
    shift, spread = _apart(ours, theirs)
    return shift < 0.05 and spread < 1.05


def _of_weights(case: Case) -> Statistics | None:
    """Of the weights of ours that a run started from; None: they do not tell, or cannot be read."""
    path, init = pretrained_of(case), case.config.train.init
    try:
        if path is None and init is not None and not case.finetuned:
            path = own_weights(init)
        if path is None or not path.exists():
            return None
        theirs = trained_with(path).model.audio
    except (ValueError, UsageError):
        return None
    return None if theirs.mean is None or theirs.std is None else (theirs.mean, theirs.std)


def _other_than_weights(ours: Statistics, theirs: Statistics, here: str, *, meant: bool) -> Finding:
    """meant: ours are those of the run's clips, as AST's recipes set them."""
    shift, spread = _apart(ours, theirs)
    reference = f"mean {theirs[0]:.4g}, std {theirs[1]:.4g}, in the weights it started from"
    difference = f"the mean is {shift:.2g} deviations off, the deviation is {ours[1] / theirs[1]:.2g} times as large"
    advice = "leave model.audio.mean and .std out: they come with the weights"
    if meant:
        advice = f"right if it was meant, for they are those of its clips; else {advice}"
    return Finding(
        "sound", here, reference, difference, advice, 0.3 if meant else min(1.0, 0.6 + shift + math.log(spread))
    )
