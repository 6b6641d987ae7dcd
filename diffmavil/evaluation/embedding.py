"""Result types: the features and the scores of one clip."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Embedding:
    """Features of one clip, on the CPU, in float32. W windows, L layers; D is the encoders' width.

    Kinds are "audio" and "video", the pooled outputs of the encoders `[..., D]`, and "fused", of the fusion encoder
    `[..., 2D]`, as far as the model and the clip have them. Seconds count from the start of the file.
    """

    name: str
    windows: dict[str, Tensor]
    """Kind -> `[W, D]`: the mean over the tokens of each window, without padding."""
    times: dict[str, Tensor]
    """"audio" and "video" -> float64 `[W, 2]`: seconds at which the audio or video of a window begins and ends."""
    layers: dict[str, Tensor] = field(default_factory=dict)
    """"audio" and "video" -> `[W, L, D]`: pooled outputs of the requested encoder blocks, before the last LayerNorm."""
    tokens: dict[str, Tensor] = field(default_factory=dict)
    """"audio" -> `[W, time, mel, D]`, "video" -> `[W, time, height, width, D]`: every token, if requested."""
    layer_tokens: dict[str, Tensor] = field(default_factory=dict)
    """The same for the requested blocks: `[W, L, time, ..., D]`."""
    token_times: dict[str, Tensor] = field(default_factory=dict)
    """"audio" and "video" -> float64 `[W, time, 2]`: seconds at which a step of the tokens' time axis begins and ends.
    Steps that begin after the end in `times` are padding."""
    problem: str = ""
    """Why some windows could not be decoded; they are missing."""

    @property
    def clip(self) -> dict[str, Tensor]:
        """Kind -> `[D]`: the mean over the windows."""
        return {kind: x.mean(0) for kind, x in self.windows.items()}

    @property
    def audio(self) -> Tensor:
        """`[D]`, for the whole clip."""
        return self._one("audio")

    @property
    def video(self) -> Tensor:
        """`[D]`, for the whole clip."""
        return self._one("video")

    @property
    def fused(self) -> Tensor:
        """`[2D]`, for the whole clip."""
        return self._one("fused")

    def _one(self, kind: str) -> Tensor:
        if kind not in self.windows:
            raise AttributeError(f"{self.name}: has no {kind} features, only {', '.join(self.windows)}")
        return self.windows[kind].mean(0)


@dataclass(frozen=True)
class Scores:
    """A fine-tuned classifier's scores of one clip, on the CPU, in float32; C classes, W windows."""

    name: str
    classes: tuple[str, ...]
    windows: Tensor
    """`[W, C]` in [0, 1]: for each window, a distribution over the classes (one label) or one score each (several)."""
    times: dict[str, Tensor]
    """As in `Embedding`."""
    problem: str = ""
    """Why some windows could not be decoded; they are missing."""

    @property
    def scores(self) -> Tensor:
        """`[C]`: the mean over the windows."""
        return self.windows.mean(0)

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The most likely classes and their scores, best first."""
        best = torch.topk(self.scores, min(count, len(self.classes)))
        return [(self.classes[i], score) for score, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
