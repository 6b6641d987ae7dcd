"""Nearest neighbours and retrieval, with clips that can be seen and heard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from diffmavil.data.decode import BadClip
from diffmavil.evaluation.features import FeatureTable
from diffmavil.evaluation.judge import DIRECTIONS, RECALL_AT
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

    def cards(row: int) -> Iterator[Card]:
        yield _card(study, heldout, row, "question", query=True)
        for value, other in _nearest(cosine[row]):
            mark = _same(heldout, row, train, other)
            yield _card(study, train, other, _with_mark(value, mark), mark)

    galleries = [
        gallery
        for row in chosen(len(heldout))
        for gallery in _gallery(study, f"Like {Path(heldout.paths[row]).stem}", cards(row))
    ]
    note = (
        f"Held-out clips, evenly chosen and not by how well they do, and the nearest of {len(train):,} training clips "
        f"by the cosine of their {kind} features."
    )
    return Section(NEIGHBOURS, note + _left(study, refused), galleries=galleries)


def retrieval(study: Study) -> Section:
    """Which held-out picture goes with a sound, and back. Raises `Missing` for a model of one modality."""
    if not study.both:
        raise Missing("The model has one modality alone: there is nothing to retrieve from the other.")
    refused = study.budget.refused
    parts = [_direction(study, _HEADINGS[name], *kinds) for name, kinds in DIRECTIONS.items()]
    note = (
        "The sound or the picture of a held-out clip alone asks; the answers are the nearest of "
        f"{len(study.held_out):,} held-out clips by the other modality, shown with both."
    )
    return Section(RETRIEVAL, note + _left(study, refused), parts=parts)


def _direction(study: Study, title: str, asked: str, answered: str) -> Section:
    """From kind of feature `asked` to kind `answered`."""
    table = study.held_out
    queries, gallery = study.features(table, asked), study.features(table, answered)
    cosine, found = _cosine(queries, gallery), ranks(queries, gallery)
    rank = found.expected()

    def cards(row: int) -> Iterator[Card]:
        told = f"its own {_word(answered)} is at rank {rank[row]:.0f} of {len(table)}"
        yield _card(study, table, row, told, query=True, part=_PARTS[asked])
        for value, other in _nearest(cosine[row]):
            own = other == row
            yield _card(study, table, other, f"cosine {value:.2f}{', the right one' if own else ''}", own or None)

    galleries = [gallery for row in chosen(len(table)) for gallery in _gallery(study, "", cards(row))]
    hits = ", ".join(f"{found.hits(k).mean():.0%} at {k}" for k in RECALL_AT)
    return Section(title, f"Recall: {hits}.", galleries=galleries)


def _nearest(cosine: Tensor) -> list[tuple[float, int]]:
    """The highest of `[N]`, with their places."""
    values, places = cosine.topk(min(_ANSWERS, len(cosine)))
    return list(zip(values.tolist(), places.tolist(), strict=True))


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


def _gallery(study: Study, heading: str, cards: Iterable[Card]) -> list[Gallery]:
    """The cards, if they fit; they are not made when nothing fits any more."""
    made = list(cards) if study.budget.left > 0 else []
    size = sum(card.media.size for card in made)
    return [Gallery(heading, made)] if study.budget.take(size or 1) else []


def _left(study: Study, before: int) -> str:
    refused = study.budget.refused - before
    return _FULL.format(refused) if refused else ""
