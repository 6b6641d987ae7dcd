"""A map of held-out clips: their features in two dimensions, by t-SNE of scikit-learn (the extra `report`)."""

from __future__ import annotations

from collections import Counter

import numpy as np
from markupsafe import Markup
from torch import Tensor
from torch.nn import functional as F

from diffmavil.evaluation.features import FeatureTable
from diffmavil.reporting import figures
from diffmavil.reporting.parts import Section
from diffmavil.reporting.study import Missing, Study

TITLE = "Map of held-out clips"
_FEWEST = 8
_NEIGHBOURS = 30
_CLASSES = 40
"""More classes are not told from each other by marks."""
_NOTE = (
    "t-SNE of the features: clips that lie together are alike to the model. Distances between groups, and the size of "
    "groups, mean nothing."
)


def section(study: Study) -> Section:
    """A map of each kind of feature. Raises `Missing` without scikit-learn, or with too few clips."""
    table = study.held_out
    if len(table) < _FEWEST:
        raise Missing(f"The map needs {_FEWEST} held-out clips; there are {len(table)}.")
    marks, names = class_marks(table)
    panels = []
    for kind in table.kinds:
        drawn = figures.scatter(places(study.features(table, kind)), marks, f"{kind} features")
        panels.append(Markup(figures.svg(drawn, f"Map of {len(table)} held-out clips by their {kind} features")))
    note = _NOTE if names else f"{_NOTE} The clips have no labels, or too many, to tell classes apart."
    classes = [(Markup(figures.mark_svg(number)), name) for number, name in enumerate(names)]
    return Section(TITLE, note, panels=panels, classes=classes)


def places(features: Tensor) -> np.ndarray:
    """`[N, D]` -> float32 `[N, 2]`, the same each time."""
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise Missing(f"The map needs scikit-learn: pip install 'diffmavil[report]' ({error}).") from error
    unit = F.normalize(features, dim=1).numpy()
    perplexity = min(_NEIGHBOURS, (len(unit) - 1) / 3)
    return TSNE(init="pca", perplexity=perplexity, random_state=0).fit_transform(unit)


def class_marks(table: FeatureTable) -> tuple[list[int], list[str]]:
    """The mark of each clip, by the first of its classes, and the names of the marks; all alike without names."""
    counts = Counter(labels[0] for labels in table.labels if labels)
    if not counts or len(counts) > _CLASSES:
        return [0] * len(table), []
    number = {label: i for i, label in enumerate(sorted(counts))}
    bare = len(number)
    marks = [number[labels[0]] if labels else bare for labels in table.labels]
    names = [table.classes[label] for label in sorted(counts)]
    return marks, [*names, "no label"] if bare in marks else names
