"""All checks of a run, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from diffmavil.config.errors import UsageError
from diffmavil.evaluation.checkup.case import Case, open_case
from diffmavil.evaluation.checkup.clips import check_clips, check_sound
from diffmavil.evaluation.checkup.features import check_features
from diffmavil.evaluation.checkup.findings import Checkup, Finding, Unchecked
from diffmavil.evaluation.checkup.settings import (
    check_batch,
    check_precision,
    check_rate,
    check_recipe,
    check_samples,
)
from diffmavil.evaluation.checkup.weights import check_weights

CHECKS: dict[str, Callable[[Case], Iterable[Finding]]] = {
    "clips": check_clips,
    "sound": check_sound,
    "weights": check_weights,
    "samples seen": check_samples,
    "batch": check_batch,
    "learning rate": check_rate,
    "precision": check_precision,
    "other settings": check_recipe,
    "features": check_features,
}


def examine(folder: Path, preset: str | None = None, most: int = 64) -> Checkup:
    """Every check of the run in `folder`, finished or not.

    Args:
        preset: the one to compare with; None: the one that the run is nearest to.
        most: clips that are decoded for each check that looks at clips.

    Raises:
        UsageError: no run there, or a damaged one.
        ValueError: no such preset for a run of this kind.
    """
    case = open_case(folder, preset, most)
    found: list[Finding] = []
    clean, unchecked = [], {}
    for name, check in CHECKS.items():
        said: list[Finding] = []
        try:
            said.extend(check(case))  # of a check that breaks off, what came before it counts
        except (Unchecked, UsageError) as why:
            unchecked[name] = str(why)
        found += said
        if not said and name not in unchecked:
            clean.append(name)
    return Checkup(
        run=str(folder),
        kind="fine-tuning" if case.finetuned else "pretraining",
        preset=case.preset,
        state=case.state,
        findings=sorted(found, key=lambda finding: -finding.weight),
        clean=clean,
        unchecked=unchecked,
    )
