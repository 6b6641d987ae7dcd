"""A frozen model over streams of windows: decoded clips in, features or scores of each clip out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from diffmavil.config import Config, FinetuneConfig, Modalities, require
from diffmavil.config.errors import RunError
from diffmavil.data.audio import frames_in, make_log_mel
from diffmavil.data.decode import BadClip
from diffmavil.data.looks import Look, Readable
from diffmavil.data.window_stream import SourceClips, WindowBatch, stream_windows
from diffmavil.evaluation.embedding import Embedding, Scores
from diffmavil.evaluation.result import NOT_FINITE
from diffmavil.model import DiffMAViL
from diffmavil.model.classifier import Classifier
from diffmavil.model.reading import read_clips

Found = dict[tuple[str, str], Tensor]
"""(field of `Embedding`, kind) -> rows of windows `[R, ...]`."""
Compute = Callable[[Mapping[str, Tensor], Tensor], Found]
"""("audio" and "video" as the model takes them, frames that are sound int64 `[R]`) -> what is wanted of the windows."""


@dataclass(frozen=True)
class FrozenModel:
    """A model that only looks.

    Attributes:
        model: in evaluation mode: `DiffMAViL`, or a fine-tuned `Classifier`.
        config: of the run; `config.model` has the preprocessing and the statistics of the sound.
        device: where the model is.
        dtype: in which Linear layers and attention compute.
    """

    model: DiffMAViL | Classifier
    config: Config
    device: torch.device
    dtype: torch.dtype

    @property
    def modalities(self) -> Modalities:
        """What it has encoders for: "av", "audio" or "video"."""
        return self.config.model.modalities

    @property
    def classes(self) -> tuple[str, ...]:
        """What a fine-tuned model tells apart; of a pretrained one nothing."""
        return self.config.head.classes if isinstance(self.config, FinetuneConfig) else ()

    def stream(
        self,
        items: Sequence[Readable] | SourceClips,
        look: Look,
        *,
        layers: Sequence[int] = (),
        tokens: bool = False,
        batch_size: int = 8,
        workers: int = 0,
    ) -> Generator[tuple[int, Embedding | BadClip]]:
        """Number and features of each clip, or why it cannot be used, as they come to their end.

        Raises:
            RunError: the storage failed.
        """

        def compute(inputs: Mapping[str, Tensor], heard: Tensor) -> Found:
            branches = {name: branch for name, branch in self.model.branches.items() if name in inputs}
            read = read_clips(branches, self.model.fusion, inputs, heard, layers)
            found: Found = {("windows", kind): x for kind, x in read.pooled.items()}
            found |= {("layers", kind): x for kind, x in read.layers.items()}
            if tokens:
                found |= {("tokens", name): self._grid(name, x) for name, x in read.tokens.items()}
                found |= {("layer_tokens", name): self._grid(name, x) for name, x in read.layer_tokens.items()}
            return found

        for index, found, problem in self._clips(items, look, compute, batch_size, workers):
            if isinstance(found, BadClip):
                yield index, found
                continue
            fields: dict[str, dict[str, Tensor]] = {}
            for (what, kind), x in found.items():
                fields.setdefault(what, {})[kind] = x
            steps = {name: self._token_times(name, fields["times"][name]) for name in fields.get("tokens", {})}
            yield index, Embedding("", token_times=steps, problem=problem, **fields)

    def stream_scores(
        self, items: Sequence[Readable] | SourceClips, look: Look, *, batch_size: int = 8, workers: int = 0
    ) -> Generator[tuple[int, Scores | BadClip]]:
        """As `stream`, of a classifier."""
        model = self.model
        assert isinstance(model, Classifier)

        def compute(inputs: Mapping[str, Tensor], heard: Tensor) -> Found:
            none = torch.empty(len(heard), 0, device=self.device)
            return {("scores", ""): model.scores(inputs.get("video", none), inputs.get("audio", none), heard)}

        for index, found, problem in self._clips(items, look, compute, batch_size, workers):
            if isinstance(found, BadClip):
                yield index, found
                continue
            times = {kind: x for (what, kind), x in found.items() if what == "times"}
            yield index, Scores("", self.classes, found["scores", ""], times, problem)

    def _clips(
        self,
        items: Sequence[Readable] | SourceClips,
        look: Look,
        compute: Compute,
        batch_size: int,
        workers: int,
    ) -> Iterator[tuple[int, Found | BadClip, str]]:
        """Of each clip its number, the rows of its windows or `BadClip`, and why some of them are missing."""
        require(batch_size >= 1, "batch_size", batch_size, ">= 1")
        require(workers >= 0, "workers", workers, ">= 0")
        held: dict[int, list[Found]] = {}
        for batch in stream_windows(items, look, self.config, batch_size=batch_size, workers=workers):
            if batch.failure:
                raise RunError(batch.failure)
            if len(batch):
                found = self._computed(batch, compute)
                for index in dict.fromkeys(batch.clip.tolist()):
                    mine = torch.from_numpy(batch.clip == index)
                    held.setdefault(index, []).append({name: x[mine] for name, x in found.items()})
            for index, reason in batch.ended.items():
                yield index, _joined(held.pop(index, []), reason), reason

    def _computed(self, batch: WindowBatch, compute: Compute) -> Found:
        """What `compute` makes of a batch, float32 on the CPU, and "times", float64 `[R, 2]`."""
        spans = torch.from_numpy(batch.spans)
        times: Found = {}
        with torch.no_grad():  # in inference mode, nobody could train on what it gives
            inputs: dict[str, Tensor] = {}
            valid = torch.from_numpy(batch.wave_valid).to(self.device)
            if batch.wave.shape[1]:
                log_mel = make_log_mel(self.config.model).to(self.device)
                inputs["audio"] = log_mel(torch.from_numpy(batch.wave).to(self.device), valid)
                times["times", "audio"] = spans[:, 1]
            if batch.video.shape[1]:
                inputs["video"] = torch.from_numpy(batch.video).to(self.device)
                times["times", "video"] = spans[:, 0]
            heard = frames_in(valid, self.config.model.audio.sample_rate)
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                found = compute(inputs, heard)
            return times | {name: x.float().cpu() for name, x in found.items()}

    def _grid(self, modality: str, tokens: Tensor) -> Tensor:
        """`[..., N, D]` as `[..., time, mel, D]` or `[..., time, height, width, D]`."""
        return tokens.unflatten(-2, self.model.branches[modality].grid)

    def _token_times(self, modality: str, times: Tensor) -> Tensor:
        """float64 `[W, time, 2]`, of windows that last `times` `[W, 2]`; sound counts on into its padding."""
        model = self.config.model
        steps = self.model.branches[modality].grid[0]
        if modality == "audio":
            each = torch.full((len(times), 1), model.audio.patch[0] / 100, dtype=times.dtype)
        else:
            each = rearrange(times[:, 1] - times[:, 0], "w -> w 1") / steps
        begin = rearrange(times[:, 0], "w -> w 1") + torch.arange(steps) * each
        return torch.stack([begin, begin + each], dim=-1)


def _joined(parts: list[Found], reason: str) -> Found | BadClip:
    """All rows of a clip, or why there are none."""
    if not parts:
        return BadClip("", reason)
    rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return rows if all(bool(x.isfinite().all()) for x in rows.values()) else BadClip("", NOT_FINITE)
