"""VGGSounder (Zverev et al. 2025, "VGGSounder: Audio-Visual Evaluations for Foundation Models"): VGGSound's test set
with several labels to a clip, each audible, visible or both.

Its file is a CSV with a row for each label of a clip; the columns read here are

    video_id   YouTube id, underscore, second of the start in six digits: --U7joUcTCo_000000
    label      name of the class
    modality   A: audible; V: visible; AV: both

Scored as its authors do: audible labels (A and AV) by what the audio says, visible ones (V and AV) by the video, those
that are both by the two together; each on the clips that have such labels. Clips with background music, where a column
`background_music` says so, are left out, as in the paper's main results. hit@1: the first answer is one of the
labels. f1@1: of first answers, micro-averaged: 2 hits / (clips + labels). mAP: over the classes that clips carry.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from diffmavil.config import require
from diffmavil.data.clips import Clip, cut_from
from diffmavil.evaluation.bootstrap import Interval, interval, mean_interval, precision_interval
from diffmavil.evaluation.features import FeatureTable
from diffmavil.evaluation.judge import Judgement
from diffmavil.evaluation.torch_metrics import average_precision

COLUMNS = ("video_id", "label", "modality")
MODALITIES = ("A", "V", "AV")
_MUSIC = "background_music"
SUBSETS = {"audible": ("audio", ("A", "AV")), "visible": ("video", ("V", "AV")), "both": ("fused", ("AV",))}
"""Name -> kind of feature whose answers are scored, modalities of the labels they are scored by."""


@dataclass(frozen=True)
class Annotations:
    """Clip's id -> class -> modality."""

    labels: dict[str, dict[str, str]]
    with_music: frozenset[str] = frozenset()
    """Ids of clips with background music, which are not scored."""


def read_annotations(path: Path) -> Annotations:
    """VGGSounder's labels.

    Raises:
        ValueError: no such file, or one of another layout, with the line.
    """
    if not path.is_file():
        raise ValueError(f"vggsounder={path}: is no file")
    labels: dict[str, dict[str, str]] = defaultdict(dict)
    with_music: set[str] = set()
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
            if missing:
                raise ValueError(
                    f"vggsounder={path}: has no column {', '.join(missing)}: must have {', '.join(COLUMNS)}"
                )
            for row in rows:
                where = f"vggsounder={path}, line {rows.line_num}: "
                require(row["modality"] in MODALITIES, f"{where}modality", row["modality"], f"one of {MODALITIES}")
                require(
                    bool(row["video_id"] and row["label"]), f"{where}video_id, label", "an empty cell", "both given"
                )
                labels[row["video_id"]][row["label"]] = row["modality"]
                if (row.get(_MUSIC) or "").strip().lower() == "true":
                    with_music.add(row["video_id"])
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"vggsounder={path}: is not a readable CSV: {error}") from error
    return Annotations({clip: of for clip, of in labels.items() if clip not in with_music}, frozenset(with_music))


def judge_vggsounder(found: Judgement, heldout: FeatureTable, annotations: Annotations, seed: int) -> None:
    """Adds to `found` what the trained model's probes score by these labels, and what chance would.

    Clips and labels that the other does not know are left out, and counted in a note; so are kinds without features.
    """
    if found.answers is None:
        found.notes.append("VGGSounder is left out: there is no linear probe to score.")
        return
    rows = found.answers.rows.tolist()
    given = [_find(annotations, *heldout.cut_from[i]) for i in rows]
    known = sum(labels is not None for labels in given)
    unknown = {label for labels in given if labels for label in labels} - set(found.classes)
    note = f"VGGSounder: it has labels of {known} of the {len(rows)} held-out clips."
    if annotations.with_music:
        note += (
            f" {len(annotations.with_music)} of its clips have background music and are left out, as by its authors."
        )
    if unknown:
        note += f" {len(unknown)} of its classes are none of the training clips' and are left out."
    found.notes.append(note)
    for subset, (kind, modalities) in SUBSETS.items():
        if kind in found.answers.scores:
            target = torch.tensor(
                [[bool(labels) and labels.get(name) in modalities for name in found.classes] for labels in given]
            )
            carries = target.any(dim=1)
            if carries.any():
                scores = found.answers.scores[kind]
                chosen = carries.to(scores.device)
                files = heldout.files([row for row, has in zip(rows, carries.tolist(), strict=True) if has])
                right = target[carries].to(scores.device)
                _add(found, f"vggsounder_{subset}", scores[chosen], right, seed, files)


def check_known(annotations: Annotations, clips: Sequence[Clip]) -> None:
    """Raises `ValueError` where it has labels of none of the clips."""
    found = any(_find(annotations, *cut_from(clip)) for clip in clips)
    some = cut_from(clips[0])[0] if clips else "no clip"
    allowed = "a file of these held-out clips: files are named by their ids, as ID_000030.mp4, or ID.mp4 with a start"
    require(found, "vggsounder", f"labels of none of the {len(clips)} held-out clips, as {some}", allowed)


def _find(annotations: Annotations, path: str, start: float | None) -> dict[str, str] | None:
    """Labels of a clip whose file is named after its id, or after the YouTube id where a table tells the start."""
    stem = Path(path).stem
    names = [stem] if start is None else [stem, f"{stem}_{round(start):06d}"]
    return next((annotations.labels[name] for name in names if name in annotations.labels), None)


def _add(found: Judgement, prefix: str, scores: Tensor, target: Tensor, seed: int, files: Tensor | None) -> None:
    hit = target.gather(1, scores.argmax(dim=1, keepdim=True)).squeeze(1).double()
    labels = target.sum(dim=1).double()
    present = target.any(dim=0).nonzero().flatten().tolist()
    precision = fmean(average_precision(scores[:, c], target[:, c]) for c in present)
    found.add("trained", f"{prefix}/mAP", precision, precision_interval(scores, target, seed, files))
    found.add("trained", f"{prefix}/f1@1", _f1(hit, labels), _f1_interval(hit, labels, seed, files))
    found.add("trained", f"{prefix}/hit@1", hit.mean().item(), mean_interval(hit, seed, files))
    share = target.double().mean(dim=0)
    common = target[:, share.argmax()].double()
    found.add("chance", f"{prefix}/mAP", share[share > 0].mean().item())
    found.add("chance", f"{prefix}/f1@1", _f1(common, labels))
    found.add("chance", f"{prefix}/hit@1", common.mean().item())


def _f1(hit: Tensor, labels: Tensor) -> float:
    return (2 * hit.sum() / (len(hit) + labels.sum())).item()


def _f1_interval(hit: Tensor, labels: Tensor, seed: int, files: Tensor | None) -> Interval:
    def f1(weights: Tensor) -> Tensor:
        weights = weights.double()
        return 2 * (weights @ hit) / (weights @ (1 + labels))

    return interval(f1, len(hit), seed, hit.device, files)
