"""Scores of a fine-tuned classifier for clips, and how good they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffmavil.config import FinetuneConfig
from diffmavil.config.errors import RunError
from diffmavil.data.audio import frames_in, make_log_mel
from diffmavil.data.augment import multi_hot
from diffmavil.data.clips import ClipSet, file_of
from diffmavil.data.loader import eval_batches
from diffmavil.evaluation.bootstrap import numbered
from diffmavil.evaluation.scores import ClassScores, classification_scores
from diffmavil.model.classifier import Classifier
from diffmavil.training.precision import use_bf16


@dataclass(frozen=True)
class Predictions:
    """Of every clip that could be used; row i is the same clip everywhere."""

    scores: dict[str, Tensor]
    """Model's name -> `[N, C]` in [0, 1], float32 on the CPU, the mean over crops."""
    target: Tensor
    """bool `[N, C]`."""
    paths: list[str]
    files: Tensor | None
    """Which clips were cut from one file, as `bootstrap.numbered` tells."""
    bad: dict[str, str]
    """File -> reason, of the clips left out."""
    centre: Predictions | None = None
    """By the centre crop alone, where that is one of several: of an odd number."""

    def judge(self, name: str, config: FinetuneConfig, seed: int) -> ClassScores:
        """How good a model's scores are.

        Raises:
            RunError: so few clips could be used that nothing can be told, or scores that are no numbers.
        """
        several = config.head.labels == "several"
        try:
            return classification_scores(self.scores[name], self.target, config.head.classes, several, seed, self.files)
        except ValueError as error:
            bad = f", {len(self.bad)} could not be used" if self.bad else ""
            raise RunError(f"{len(self.paths)} clips cannot be scored{bad}: {error}") from error


@torch.no_grad()
def predict(
    models: Mapping[str, Classifier],
    config: FinetuneConfig,
    clips: ClipSet,
    *,
    batch_size: int,
    crops: int = 1,
    progress: Callable[[int], None] = lambda clips_done: None,
) -> Predictions:
    """Show each clip to every model, all in evaluation mode and on one device; crops are evenly spaced in time.

    Args:
        progress: called after each batch with the index of the last clip seen, plus one.

    Raises:
        TooManyBadClips: no clip could be decoded.
    """
    device = next(next(iter(models.values())).parameters()).device
    log_mel = make_log_mel(config.model).to(device)
    parts: dict[str, list[Tensor]] = {name: [] for name in models}
    shown, rows = [], []
    with eval_batches(config, clips, batch_size, crops, device) as loader:
        for batch in loader:
            spec = log_mel(batch.wave, batch.wave_valid)
            heard = frames_in(batch.wave_valid, config.model.audio.sample_rate)
            for name, model in models.items():
                with torch.autocast(device.type, torch.bfloat16, use_bf16(config, device)):
                    parts[name].append(model.scores(batch.video, spec, heard).float().cpu())
            shown.append(batch.clip.cpu())
            rows.append(batch.position.cpu())
            progress(int(batch.clip[-1]) + 1)
        bad = dict(loader.bad)
    scores = {name: torch.cat(each) for name, each in parts.items()}
    clip, row = torch.cat(shown), torch.cat(rows)
    found = _by_clip(scores, clip, clips, config, bad)
    centre = row % crops == crops // 2
    if crops > 1 and crops % 2 and centre.any():
        alone = {name: x[centre] for name, x in scores.items()}
        found = replace(found, centre=_by_clip(alone, clip[centre], clips, config, bad))
    return found


def _by_clip(
    scores: Mapping[str, Tensor], clip: Tensor, clips: ClipSet, config: FinetuneConfig, bad: dict[str, str]
) -> Predictions:
    """The mean of each clip's rows: scores `[R, C]` of clips int64 `[R]`, those of a clip one after the other."""
    index, row, count = clip.unique_consecutive(return_inverse=True, return_counts=True)
    means = {
        name: torch.zeros(len(index), x.shape[1]).index_add_(0, row, x) / count[:, None] for name, x in scores.items()
    }
    chosen = [clips.clips[i] for i in index.tolist()]
    # Of several crops some may fail: a clip was used if one did not.
    unused = {clips.clips[i].path for i in set(range(len(clips))).difference(index.tolist())}
    bad = {path: reason for path, reason in bad.items() if path in unused}
    target = multi_hot([one.labels for one in chosen], len(config.head.classes)) > 0
    return Predictions(means, target, [one.path for one in chosen], numbered([file_of(one) for one in chosen]), bad)
