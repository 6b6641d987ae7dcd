"""Judge a trained model beside its untrained twin, on held-out clips."""

from __future__ import annotations

import platform
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console

from diffmavil import __version__
from diffmavil.config import Config
from diffmavil.config.progress import tracking
from diffmavil.data.clips import ClipSet
from diffmavil.data.durable import digest_of
from diffmavil.data.overlap import shared
from diffmavil.evaluation.features import FeatureTable, extract, save_features, untrained_model
from diffmavil.evaluation.judge import Judgement, judge
from diffmavil.evaluation.result import CENTRE, Evaluation, Protocol
from diffmavil.evaluation.vggsounder import Annotations, judge_vggsounder
from diffmavil.model import DiffMAViL


def evaluate(
    model: DiffMAViL,
    config: Config,
    train_clips: ClipSet,
    heldout_clips: ClipSet,
    *,
    weights: Path | None = None,
    step: int | None = None,
    batch_size: int = 32,
    crops: int = 1,
    seed: int = 0,
    vggsounder: Annotations | None = None,
    features_file: Path | None = None,
    console: Console | None = None,
) -> Evaluation:
    """Judge a model, in evaluation mode, and its untrained twin in one pass over the clips, on the model's device.

    Args:
        config: as the model was trained; its audio statistics and `data.workers` are used.
        train_clips: those with labels serve linear probe and neighbours; the others are not decoded.
        weights: the file that the model was read from, for the record; None: it was not.
        step: of the training that wrote it, for the record.
        crops: crops in time of each clip; its features are their mean, and those of the centre crop are judged besides.
        seed: of the untrained model, of the split that chooses the probe's l2, and of the intervals.
        vggsounder: labels by which the trained model's probes are scored besides.
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
    if vggsounder:
        judge_vggsounder(found, heldout, vggsounder, seed)
    if heldout.centre:
        _add_centre(found, judge(train.centre or train, heldout.centre, seed))
    return Evaluation(
        protocol=_protocol(config, weights, step, seed, crops, {"train": train, "heldout": heldout}, device),
        score=found.score,
        classes=found.classes,
        sources={"train": train_clips.note, "heldout": heldout_clips.note},
        clips=found.clips,
        skipped=train.bad | heldout.bad,
        neighbours=found.neighbours,
        probe_l2=found.probe_l2,
        results=found.results,
        intervals=found.intervals,
        notes=[*found.notes, *_overlap(train_clips, heldout_clips)],
    )


def _add_centre(found: Judgement, centre: Judgement) -> None:
    """The same numbers of the centre crop alone."""
    for name, metrics in centre.intervals.items():
        found.results[name + CENTRE], found.intervals[name + CENTRE] = centre.results[name], metrics
    used = {name: counts.used for name, counts in found.clips.items()}
    missing = sum(used[name] - counts.used for name, counts in centre.clips.items())
    if missing:
        found.notes.append(f"{missing} clips have no centre crop that could be used, but others.")


def _protocol(
    config: Config,
    weights: Path | None,
    step: int | None,
    seed: int,
    crops: int,
    tables: dict[str, FeatureTable],
    device: torch.device,
) -> Protocol:
    video, audio = config.model.video, config.model.audio
    sees, hears = config.model.sees, config.model.hears
    return Protocol(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        weights=str(weights) if weights else None,
        sha256=digest_of(weights) if weights else None,
        step=step,
        seed=seed,
        crops=crops,
        clips={name: {"listed": table.clips, "found": len(table)} for name, table in tables.items()},
        video_seconds=video.seconds if sees else None,
        audio_seconds=audio.samples / audio.sample_rate if hears else None,
        audio_mean=audio.mean if hears else None,
        audio_std=audio.std if hears else None,
        versions={"python": platform.python_version(), "torch": torch.__version__, "diffmavil": __version__},
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    )


def _overlap(train: ClipSet, heldout: ClipSet) -> list[str]:
    both = len(shared(train.clips, heldout.clips))
    return [f"{both} held-out clips are training clips too: of new clips, the numbers say less."] if both else []
