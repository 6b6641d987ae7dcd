"""Looks at the features of a model while it is trained, so that a collapse is seen in hours and not at the end.

Of each kind of feature of some held-out clips, nothing masked:

    probe/knn/KIND    accuracy (mAP with several labels) of nearest neighbours among labelled training clips. Chosen
                      over a linear probe since nothing is fitted: one matrix product, no setting, no random part.
    probe/rank/KIND   RankMe (Garrido et al. 2023): exp of the entropy of the singular values of `[N, D]`, divided by
                      their sum; at most the smaller of N and D.
    probe/norm/KIND   mean Euclidean norm.
    probe/dead/KIND   share of dimensions that hardly differ between clips (`DEAD`).
    probe/seconds     what all that took.

Clips are decoded once, on the first look, and kept if they are few; each look then costs a forward pass of the
encoders over at most twice `train.probe_clips` clips.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from diffmavil.config import Config
from diffmavil.config.errors import TooManyBadClips
from diffmavil.data.clips import ClipSet, Split
from diffmavil.data.dataset import Batch
from diffmavil.data.kept import crop_bytes
from diffmavil.data.loader import eval_batches
from diffmavil.evaluation.features import PooledFeatures
from diffmavil.evaluation.labels import make_targets, score
from diffmavil.evaluation.neighbours import knn_scores, neighbour_count
from diffmavil.model import DiffMAViL
from diffmavil.training.metrics import Metrics, read_metrics
from diffmavil.training.telemetry import Observation

DEAD = 1e-2
"""A dimension is dead when its standard deviation over clips is below this share of the features' root mean square."""
DEAD_SHARE = 0.5
"""More dead dimensions than this are a collapse."""
LOWEST_RANK, RANK_LOSS = 2.0, 0.1
"""So is a RankMe below the one, or below this share of the run's first."""
KEEP_BYTES = 2 * 2**30
"""Decoded clips are kept in memory up to this size, else decoded again for each look."""
_AT_ONCE = 16


class FeatureMonitor:
    """`diffmavil.training.telemetry.Monitor`: `train.probe_clips` held-out clips and as many labelled training clips.

    The model is looked at through a copy that shares its parameters and is never compiled; random numbers are put back.

    Args:
        folder: of the run, whose first RankMe is read there after a resume.
    """

    def __init__(self, model: DiffMAViL, config: Config, split: Split, folder: Path) -> None:
        self._model, self._folder = model, folder
        device = next(model.parameters()).device
        self._look = PooledFeatures(config, device)
        self._heldout = _Clips(split.held_out.spread(config.train.probe_clips), config, device)
        labelled = [clip for clip in split.train.clips if clip.labels]
        told = any(clip.labels for clip in self._heldout.clips.clips)
        learn_from = replace(split.train, clips=labelled if told else [], parts=())
        self._train = _Clips(learn_from.spread(config.train.probe_clips), config, device)
        self._first: Metrics | None = None
        self._warned: set[str] = set()

    def __call__(self, done: int) -> Observation:
        begin = time.perf_counter()
        cuda = [self._look.device] if self._look.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):  # a DataLoader draws a seed for its processes
            found, lines = self._observe()
        found = {f"probe/{name}": value for name, value in found.items()}
        if found:
            lines += self._complaints(found)
        found["probe/seconds"] = time.perf_counter() - begin
        return Observation(found, [f"step {done}: {line}" for line in lines])

    def _observe(self) -> tuple[Metrics, list[str]]:
        model = _twin(self._model)
        try:
            heldout, labels = self._features(model, self._heldout)
            train, train_labels = self._features(model, self._train)
        except TooManyBadClips as error:
            return {}, [f"the features were not looked at: {error}"]
        found = {f"{name}/{kind}": value for kind, x in heldout.items() for name, value in statistics(x).items()}
        targets = make_targets(train_labels, self._train.clips.classes, labels, self._heldout.clips.classes)
        if not targets.missing:
            k = neighbour_count(targets.train)
            for kind, x in heldout.items():
                known, asked = targets.train.any(dim=1).to(x.device), targets.heldout.any(dim=1).to(x.device)
                target, true = targets.train.to(x.device)[known], targets.heldout.to(x.device)[asked]
                votes = knn_scores(train[kind][known], target, x[asked], k)
                found[f"knn/{kind}"] = score(votes, true, targets.score)
        return found, []

    def _features(self, model: DiffMAViL, clips: _Clips) -> tuple[dict[str, Tensor], list[tuple[int, ...]]]:
        """Kind -> `[N, D]`, and the labels, of the clips whose features are finite."""
        parts: dict[str, list[Tensor]] = {}
        labels: list[tuple[int, ...]] = []
        for batch in clips:
            seen = self._look({"": model}, batch.to(self._look.device))[""]
            finite = torch.stack([x.isfinite().all(dim=1) for x in seen.values()]).all(dim=0)
            for kind, x in seen.items():
                parts.setdefault(kind, []).append(x[finite])
            labels += itertools.compress(batch.labels, finite.tolist())
        return {kind: torch.cat(rows) for kind, rows in parts.items()}, labels

    def _complaints(self, found: Metrics) -> list[str]:
        """Signs of a collapse, each until it is gone once. A rank is compared with that of the run's first look."""
        if self._first is None:
            past = (record for record in read_metrics(self._folder) if any(name in record for name in found))
            self._first = next(past, found)
        signs = {}
        for name, value in found.items():
            _, what, kind = name.split("/")
            first = self._first.get(name, math.nan)
            if what == "rank" and math.isnan(value):
                signs[name] = f"no {kind} features are finite"
            if what == "rank" and (value < LOWEST_RANK or value < RANK_LOSS * first):
                signs[name] = f"the effective rank of the {kind} features is {value:.1f}, at first {first:.1f}"
            if what == "dead" and value > DEAD_SHARE:
                signs[name] = f"{value:.0%} of the dimensions of the {kind} features are the same for all clips"
        new = [sign for name, sign in signs.items() if name not in self._warned]
        self._warned = set(signs)
        return [f"warning, the model may be collapsing: {sign}" for sign in new]


def statistics(x: Tensor) -> Metrics:
    """Of features `[N, D]`: "rank", "norm" and "dead", as the module's docstring tells them; NaN without clips."""
    if not len(x):
        return {"rank": math.nan, "norm": math.nan, "dead": math.nan}
    x = x.double()
    dead = x.std(dim=0, correction=0) <= DEAD * x.square().mean().sqrt()
    return {"rank": effective_rank(x), "norm": x.norm(dim=1).mean().item(), "dead": dead.double().mean().item()}


def effective_rank(x: Tensor) -> float:
    """RankMe of `[N, D]`, not centred, as in the paper; 0 of zeros."""
    values = torch.linalg.svdvals(x.double())
    if not values.any():
        return 0.0
    return torch.special.entr(values / values.sum()).sum().exp().item()


class _Clips:
    """Batches of decoded clips, again and again the same."""

    def __init__(self, clips: ClipSet, config: Config, device: torch.device) -> None:
        self.clips, self._config, self._device = clips, config, device
        self._kept: list[Batch] | None = None
        self._keep = len(clips) * crop_bytes(config) <= KEEP_BYTES / 2  # there are two sets

    def __iter__(self) -> Iterator[Batch]:
        if not len(self.clips):
            return
        if self._kept is not None:
            yield from self._kept
            return
        decoded = []
        with eval_batches(self._config, self.clips, _AT_ONCE, device=self._device) as loader:
            for batch in loader:
                if self._keep:  # in memory of its own: that of the batch is shared with the decoding processes
                    decoded.append(batch.map(lambda x: x.to("cpu", copy=True)))
                yield batch
        if self._keep:
            self._kept = decoded


def _twin(model: DiffMAViL) -> DiffMAViL:
    """The model in evaluation mode, with the same parameters in memory; compiled code is not copied."""
    shared: dict[int, object] = {id(x): x for x in itertools.chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared).eval()
