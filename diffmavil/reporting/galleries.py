"""Nearest neighbours and retrieval, with clips that can be seen and heard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from diffmavil.data.decode import BadClip
from diffmavil.evaluation.features import FeatureTable
from diffmavil.evaluation.judge import DIRECTIONS
from diffmavil.evaluation.retrieval import ranks
from diffmavil.reporting.media import Part
from diffmavil.reporting.parts import Card, Gallery, Section
from diffmavil.reporting.study import Missing, Study

NEIGHBOURS, RETRIEVAL = "Nearest neighbours", "Retrieval"
_QUERIES, _ANSWERS = 3, 4
_PARTS: dict[str, Part] = {"audio": "sound", "video": "picture"}
_HEADINGS = {"audio_to_video": "From sound to picture", "video_to_audio": "From picture to sound"}
_FULL = " {} of them did not fit: the page stays below its size."


def neighbours(study: Study) -> Section:
    """Held-out clips and the training clips whose features are nearest."""
    heldout, train = study.held_out, study.train
    kind = heldout.kinds[-1]  # fused, or the only one
    cosine = _cosine(study.features(heldout, kind), study.features(train, kind))
    refused = study.budget.refused
    galleries = []
    for row in chosen(len(heldout)):
        cards = [_card(study, heldout, row, "question", query=True)]
        nearest = cosine[row].topk(min(_ANSWERS, len(train)))
        for value, other in zip(*nearest, strict=True):
            mark = _same(heldout, row, train, int(other))
            cards.append(_card(study, train, int(other), _with_mark(float(value), mark), mark))
        galleries += _gallery(study, f"Like {Path(heldout.paths[row]).stem}", cards)
    note = (
        f"Held-out clips, evenly chosen and not by how well they do, and the nearest of {len(train):,} training clips "
        f"by the cosine of their {kind} features."
    )
    return Section(NEIGHBOURS, note + _left(study, refused), galleries=galleries)


def retrieval(study: Study) -> Section:
    """Which held-out picture goes with a sound, and back. Raises `Missing` for a model of one modality."""
    if not study.both:
        raise Missing("The model has one modality alone: there is nothing to retrieve from the other.")
    refused, table = study.budget.refused, study.held_out
    parts = []
    for direction, (asked, answered) in DIRECTIONS.items():
        queries, gallery = study.features(table, asked), study.features(table, answered)
        cosine, found = _cosine(queries, gallery), ranks(queries, gallery).expected()
        galleries = []
        for row in chosen(len(table)):
            told = f"its own {_word(answered)} is at rank {found[row]:.0f} of {len(table)}"
            cards = [_card(study, table, row, told, query=True, part=_PARTS[asked])]
            for value, other in zip(*cosine[row].topk(min(_ANSWERS, len(table))), strict=True):
                own = int(other) == row
                said = f"cosine {value:.2f}" + (", the right one" if own else "")
                cards.append(_card(study, table, int(other), said, True if own else None))
            galleries += _gallery(study, "", cards)
        hits = ", ".join(f"{ranks(queries, gallery).hits(k).mean():.0%} at {k}" for k in (1, 5, 10))
        parts.append(Section(_HEADINGS[direction], f"Recall: {hits}.", galleries=galleries))
    note = (
        f"The {_word('audio')} or the {_word('video')} of a held-out clip alone asks; the answers are the nearest of "
        f"{len(table):,} held-out clips by the other modality, shown with both."
    )
    return Section(RETRIEVAL, note + _left(study, refused), parts=parts)


def chosen(count: int) -> list[int]:
    """Rows that are shown: evenly spread."""
    return sorted({int((i + 0.5) * count / _QUERIES) for i in range(min(_QUERIES, count))})


def _cosine(queries: Tensor, gallery: Tensor) -> Tensor:
    return F.normalize(queries.double(), dim=1) @ F.normalize(gallery.double(), dim=1).T


def _word(kind: str) -> str:
    return "sound" if kind == "audio" else "picture"


def _classes(table: FeatureTable, row: int) -> set[str]:
    return {table.classes[label] for label in table.labels[row]}


def _same(one: FeatureTable, row: int, other: FeatureTable, at: int) -> bool | None:
    """Whether two clips share a class; None where one has none."""
    ours, theirs = _classes(one, row), _classes(other, at)
    return bool(ours & theirs) if ours and theirs else None


def _with_mark(cosine: float, mark: bool | None) -> str:
    words = {True: ", same class", False: ", another class", None: ""}
    return f"cosine {cosine:.2f}{words[mark]}"


def _card(
    study: Study,
    table: FeatureTable,
    row: int,
    told: str,
    mark: bool | None = None,
    *,
    query: bool = False,
    part: Part = "both",
) -> Card:
    clip, name = study.clip(table, row), Path(table.paths[row]).stem
    title = ", ".join(sorted(_classes(table, row))) or name
    try:
        media = study.player(clip, name, part)
    except BadClip as error:
        raise Missing(f"Clips cannot be played: {error}.") from error
    return Card(media, title, told, mark, query)


def _gallery(study: Study, heading: str, cards: Sequence[Card]) -> list[Gallery]:
    """The cards, if they fit."""
    fits = study.budget.take(sum(card.media.size for card in cards))
    return [Gallery(heading, cards)] if fits else []


def _left(study: Study, before: int) -> str:
    refused = study.budget.refused - before
    return _FULL.format(refused) if refused else ""
