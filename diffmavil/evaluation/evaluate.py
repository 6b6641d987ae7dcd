"""Judge a trained model beside its untrained twin, on held-out clips."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from diffmavil import __version__
from diffmavil.config import Config
from diffmavil.config.progress import tracking
from diffmavil.data.clips import ClipSet
from diffmavil.evaluation.features import extract, save_features, untrained_model
from diffmavil.evaluation.judge import judge
from diffmavil.evaluation.result import Evaluation
from diffmavil.model import DiffMAViL


def evaluate(
    model: DiffMAViL,
    config: Config,
    train_clips: ClipSet,
    heldout_clips: ClipSet,
    *,
    batch_size: int = 32,
    crops: int = 1,
    seed: int = 0,
    weights: str = "",
    features_file: Path | None = None,
    console: Console | None = None,
) -> Evaluation:
    """Judge a model, in evaluation mode, and its untrained twin in one pass over the clips, on the model's device.

    Args:
        config: as the model was trained; its audio statistics and `data.workers` are used.
        train_clips: those with labels serve linear probe and neighbours; the others are not decoded.
        crops: crops in time of each clip; its features are their mean.
        seed: of the untrained model and of the split that chooses the probe's l2.
        weights: name of what is evaluated, for the record.
        features_file: also write features, labels and paths there (`save_features`).
        console: where progress is shown.

    Raises:
        TooManyBadClips: no held-out clip, or no labelled training clip, could be decoded.
    """
    device = next(model.parameters()).device
    models = {"trained": model, "untrained": untrained_model(config.model, seed, device)}
    learn_from = train_clips.clips if any(clip.labels for clip in heldout_clips.clips) else []
    labelled = replace(train_clips, clips=[clip for clip in learn_from if clip.labels])
    tables = []
    for name, clips in (("training clips", labelled), ("held-out clips", heldout_clips)):
        with tracking(console, name, len(clips)) as tracker:
            tables.append(extract(models, config, clips, batch_size=batch_size, crops=crops, progress=tracker.update))
    train, heldout = tables
    if features_file:
        save_features(features_file, train, heldout)
    found = judge(train, heldout, seed)
    return Evaluation(
        version=__version__,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        weights=weights,
        seed=seed,
        crops=crops,
        score=found.score,
        classes=found.classes,
        sources={"train": train_clips.note, "heldout": heldout_clips.note},
        clips=found.clips,
        skipped=train.bad | heldout.bad,
        neighbours=found.neighbours,
        probe_l2=found.probe_l2,
        results=found.results,
        notes=[*found.notes, *_overlap(train_clips, heldout_clips)],
    )


def _overlap(train: ClipSet, heldout: ClipSet) -> list[str]:
    seen = {(clip.path, clip.start) for clip in train.clips}
    both = sum((clip.path, clip.start) in seen for clip in heldout.clips)
    return [f"{both} held-out clips are training clips too: of new clips, the numbers say less."] if both else []
