"""A pretrained run looked at closely: its model, the features of some clips, and a few clips to draw."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from diffmavil.config import Config
from diffmavil.config.errors import RunError, TooManyBadClips, UsageError
from diffmavil.config.progress import tracking
from diffmavil.data.audio import frames_in, make_log_mel
from diffmavil.data.clips import Clip, ClipSet, Split
from diffmavil.data.dataset import Batch
from diffmavil.data.loader import eval_batches
from diffmavil.data.sources import split_source
from diffmavil.evaluation.features import FeatureTable, extract
from diffmavil.model import DiffMAViL
from diffmavil.model.weights import WEIGHTS_FILE, load_weights
from diffmavil.reporting.media import Budget, Player

_MODEL = "trained"
_BATCH = 16
PICTURES = 4
"""Clips that are drawn."""


class Missing(Exception):
    """What a section needs and the run does not have, as a sentence for its reader."""


@dataclass(frozen=True)
class Study:
    """A run's exported weights and its clips.

    Attributes:
        name: of the run.
        most: held-out clips whose features are looked at, and as many training clips.
        budget: bytes that its pictures and clips may take.
    """

    name: str
    folder: Path
    config: Config
    model: DiffMAViL
    split: Split
    most: int
    budget: Budget
    console: Console | None = None

    @property
    def both(self) -> bool:
        return self.config.model.hears and self.config.model.sees

    @cached_property
    def player(self) -> Player:
        return Player(self.config)

    @cached_property
    def held_out(self) -> FeatureTable:
        return self._features("held-out clips", self.split.held_out.spread(self.most))

    @cached_property
    def train(self) -> FeatureTable:
        return self._features("training clips", self.split.train.spread(self.most))

    @cached_property
    def clips(self) -> dict[tuple[str, float | None], Clip]:
        """(path, start) -> clip, of all that a feature table may name."""
        return {(clip.path, clip.start): clip for part in self.split for clip in part.clips}

    def clip(self, table: FeatureTable, row: int) -> Clip:
        return self.clips[table.paths[row], table.starts[row]]

    def features(self, table: FeatureTable, kind: str) -> Tensor:
        """float32 `[N, D]` on the CPU."""
        return table.features[_MODEL][kind].cpu()

    @cached_property
    def drawn(self) -> Batch:
        """A few held-out clips, on the CPU."""
        return drawn_clips(self.config, self.split.held_out)

    def spectrograms(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the model hears of a batch, float32 `[B, F, M]`, and the frames before each sound's end."""
        config = self.config.model
        return make_log_mel(config)(batch.wave, batch.wave_valid), frames_in(batch.wave_valid, config.audio.sample_rate)

    def _features(self, what: str, clips: ClipSet) -> FeatureTable:
        """On a GPU where there is one."""
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        try:
            with tracking(self.console, f"{self.name}: {what}", len(clips)) as tracker:
                return extract({_MODEL: self.model}, self.config, clips, batch_size=_BATCH, progress=tracker.update)
        except RunError as error:
            raise Missing(f"No features: {error}.") from error
        finally:
            self.model.to("cpu")


def open_study(name: str, folder: Path, config: Config, most: int, budget: Budget, console: Console | None) -> Study:
    """A run's weights, on the CPU, and its clips.

    Raises:
        Missing: no weights yet, or clips that are gone.
    """
    if not (folder / WEIGHTS_FILE).exists():
        raise Missing(f"There is no {WEIGHTS_FILE} yet: it is written when training ends.")
    try:
        model, trained = load_weights(folder / WEIGHTS_FILE)
        split = split_source(config.data, config.model.modalities)
    except (UsageError, ValueError) as error:
        raise Missing(f"Nothing can be shown: {error}.") from error
    return Study(name, folder, replace(trained, data=config.data), model, split, most, budget, console)


def drawn_clips(config: Config, clips: ClipSet) -> Batch:
    """The first clips of an evenly spread choice that can be decoded.

    Raises:
        TooManyBadClips: none can.
    """
    config = replace(config, data=replace(config.data, workers=0))  # processes would take longer to start than this
    with torch.inference_mode():
        for batch in eval_batches(config, clips.spread(PICTURES), PICTURES):
            return batch
    raise TooManyBadClips("there are no held-out clips")
