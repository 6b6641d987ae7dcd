"""Features of whole clips, nothing masked, by one or more models in a single pass over the data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor

from diffmavil import __version__
from diffmavil.config import Config, ModelConfig
from diffmavil.config.errors import RunError
from diffmavil.data.audio import frames_in, make_log_mel
from diffmavil.data.clips import ClipSet, cut_from
from diffmavil.data.dataset import Batch
from diffmavil.data.durable import whole_file
from diffmavil.data.loader import eval_batches
from diffmavil.evaluation.bootstrap import numbered
from diffmavil.evaluation.result import NOT_FINITE
from diffmavil.model import DiffMAViL
from diffmavil.model.weights import runs_here
from diffmavil.training.precision import use_bf16

KINDS = ("audio", "video", "fused")
"""Of a model with sound and picture. Of one with a single modality, that one alone."""


@dataclass(frozen=True)
class FeatureTable:
    """Every clip that could be used; row i is the same clip everywhere."""

    features: dict[str, dict[str, Tensor]]
    """Model's name -> kind -> `[N, D]` (audio, video) or `[N, 2D]` (fused), float32 on the models' device."""
    labels: list[tuple[int, ...]]
    """Indices into `classes`."""
    classes: list[str]
    paths: list[str]
    cut_from: list[tuple[str, float | None]]
    """File of each clip, of a prepared one the name that it had, and second of it at which the clip begins."""
    starts: list[float | None]
    """Seconds into the file, where the source gives them."""
    clips: int
    """Clips asked for; those that are not in the rows could not be used."""
    bad: dict[str, str]
    """File -> reason, of the clips left out."""
    centre: FeatureTable | None = None
    """Where features are means over several crops: the same of the centre crop alone."""

    def __len__(self) -> int:
        return len(self.paths)

    def files(self, rows: Sequence[int]) -> Tensor | None:
        """Which clips of these rows were cut from one file, as `bootstrap.numbered` tells."""
        return numbered([self.cut_from[row][0] for row in rows])

    @property
    def kinds(self) -> list[str]:
        return list(next(iter(self.features.values())))


def untrained_model(config: ModelConfig, seed: int, device: torch.device | str = "cpu") -> DiffMAViL:
    """A newly initialised model, by kernels that run on the device; the caller's random numbers are left alone."""
    with torch.random.fork_rng(devices=[]):  # torch.manual_seed would seed every GPU too
        torch.default_generator.manual_seed(seed)
        return DiffMAViL(runs_here(config, device)).to(device).eval()


class PooledFeatures:
    """Decoded clips to the pooled features of models, nothing masked.

    Args:
        config: what the models take.
        device: where they are.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self.device = device
        self._bf16 = use_bf16(config, device)
        self._log_mel = make_log_mel(config.model).to(device)
        self._sample_rate = config.model.audio.sample_rate

    def __call__(self, models: Mapping[str, DiffMAViL], batch: Batch) -> dict[str, dict[str, Tensor]]:
        """Model's name -> kind -> float32 `[B, D]`: of `KINDS`, those that the model has."""
        spec = self._log_mel(batch.wave, batch.wave_valid)
        heard = frames_in(batch.wave_valid, self._sample_rate)
        found = {}
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, self._bf16):
            for name, model in models.items():
                features = model.features(batch.video, spec, heard)
                found[name] = {kind: x.float() for kind, x in features.kinds.items()}
        return found


@torch.no_grad()
def extract(
    models: Mapping[str, DiffMAViL],
    config: Config,
    clips: ClipSet,
    *,
    batch_size: int = 32,
    crops: int = 1,
    progress: Callable[[int], None] = lambda clips_done: None,
) -> FeatureTable:
    """Decode each clip once and show it to every model; with several crops in time, features are their mean.

    Of an odd number of crops, the one in the middle is the centre crop; with an even number, that is decoded besides.

    Args:
        models: on one device; all take what `config.model` describes.
        progress: called after each batch with the index of the last clip seen, plus one.

    A clip of which any model gives a feature that is not finite is left out and named like one that cannot be decoded:
    whatever is compared with NaN counts as right.

    Raises:
        TooManyBadClips: there are clips, and none could be decoded.
        RunError: a model gives no finite features of any clip.
    """
    if not clips.clips:
        return FeatureTable({name: {} for name in models}, [], clips.classes, [], [], [], 0, {})
    device = next(next(iter(models.values())).parameters()).device
    look = PooledFeatures(config, device)
    sums: dict[str, dict[str, list[Tensor]]] = {name: {} for name in models}
    places = []
    with eval_batches(config, clips, batch_size, crops, device) as loader:
        for batch in loader:
            for name, seen in look(models, batch).items():
                for kind, x in seen.items():
                    sums[name].setdefault(kind, []).append(x)
            places.append(batch.position)
            progress(int(batch.position[-1]) // crops + 1)
        bad = dict(loader.bad)
    features = {name: {kind: torch.cat(parts) for kind, parts in kinds.items()} for name, kinds in sums.items()}
    clip, crop = torch.cat(places) // crops, torch.cat(places) % crops
    table = _by_clip(features, clip, clips, bad)
    if crops == 1:
        return table
    if crops % 2 == 0:
        return replace(table, centre=extract(models, config, clips, batch_size=batch_size, progress=progress))
    middle = crop == crops // 2
    alone = {name: {kind: x[middle] for kind, x in kinds.items()} for name, kinds in features.items()}
    return replace(table, centre=_by_clip(alone, clip[middle], clips, bad))


def _by_clip(features: dict[str, dict[str, Tensor]], clip: Tensor, clips: ClipSet, bad: dict[str, str]) -> FeatureTable:
    """Means of the rows `[R, D]` of each clip, which are neighbours; a crop that could not be decoded is missing.

    clip: int64 `[R]`, which clip each row shows.
    """
    index, clip_of_row, rows = clip.unique_consecutive(return_inverse=True, return_counts=True)
    features = {
        name: {kind: _mean_by_clip(x, clip_of_row, rows) for kind, x in kinds.items()}
        for name, kinds in features.items()
    }
    finite = _finite(features)
    spoilt = {clips.clips[i].path: NOT_FINITE for i in index[~finite].tolist()}
    chosen = [clips.clips[i] for i in index[finite].tolist()]
    return FeatureTable(
        features={name: {kind: x[finite] for kind, x in kinds.items()} for name, kinds in features.items()},
        labels=[clip.labels for clip in chosen],
        classes=clips.classes,
        paths=[clip.path for clip in chosen],
        cut_from=[cut_from(clip) for clip in chosen],
        starts=[clip.start for clip in chosen],
        clips=len(clips.clips),
        bad=spoilt | bad,
    )


def _finite(features: dict[str, dict[str, Tensor]]) -> Tensor:
    """Bool `[N]`: clips of which every model gives finite features. Raises `RunError` when a model gives none."""
    by_model = {
        name: torch.stack([x.isfinite().all(dim=1) for x in kinds.values()]).all(dim=0)
        for name, kinds in features.items()
    }
    finite = torch.stack(list(by_model.values())).all(dim=0)
    if not finite.any():
        broken = [name for name, good in by_model.items() if not good.any()] or list(by_model)
        raise RunError(
            f"the {' and the '.join(broken)} model gives no finite features of any of {len(finite)} clips: look at the "
            "run's losses, and evaluate the weights of an earlier checkpoint"
        )
    return finite


def _mean_by_clip(rows: Tensor, clip_of_row: Tensor, count: Tensor) -> Tensor:
    """Rows `[R, D]` of crops -> `[N, D]` of clips."""
    sums = rows.new_zeros(len(count), rows.shape[1]).index_add_(0, clip_of_row, rows)
    return sums / rearrange(count, "n -> n 1")


def save_features(path: Path, train: FeatureTable, heldout: FeatureTable) -> None:
    """One safetensors file: `{train,heldout}/{trained,untrained}/{audio,video,fused}` float32, `{train,heldout}/labels`
    uint8 `[N, C]` (1: the clip carries the class); in the header, as JSON: `classes`, `paths`, `starts` (seconds) and
    `cut_from` (file and second that a prepared clip was cut from) of both sets.
    """
    tensors: dict[str, Tensor] = {}
    header = {"diffmavil_version": __version__}
    for split, table in (("train", train), ("heldout", heldout)):
        for model, kinds in table.features.items():
            tensors |= {f"{split}/{model}/{kind}": x.cpu().contiguous() for kind, x in kinds.items()}
        labels = torch.zeros(len(table), len(table.classes), dtype=torch.uint8)
        for row, carried in zip(labels, table.labels, strict=True):
            row[list(carried)] = 1
        tensors[f"{split}/labels"] = labels
        header |= {
            f"{split}/classes": json.dumps(table.classes),
            f"{split}/paths": json.dumps(table.paths),
            f"{split}/starts": json.dumps(table.starts),
            f"{split}/cut_from": json.dumps(table.cut_from),
        }
    with whole_file(path) as draft:
        save_file(tensors, draft, metadata=header)
