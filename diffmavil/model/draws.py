"""What is random in a step: which patches are seen, which are predicted, and how they are noised.

It is drawn apart from the arithmetic that follows, from (seed, position in the stream of samples) alone. The arithmetic
is then the same for every batch of a shape, which is what a CUDA graph needs.

With mixed masking the samples of one batch keep different numbers of patches: runs of `MIX_RUN` samples, by their
position in the stream, take the counts in turn, so that any number of processes cuts the stream alike. A batch is then
several `Span`s, each of which is one rectangle for every op; the transformer's blocks take them packed.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from diffmavil.config import require

MIX_RUN = 8
Keep = int | tuple[int, ...]
"""Visible tokens: of every sample, or of the runs of samples in turn."""


class Masks(NamedTuple):
    """Positions in row-major grid order, int32, ascending in each row."""

    keep: Tensor
    """`[B, V, K]`: visible."""
    decode: Tensor
    """`[B, W, Q]`: masked and to be predicted, of the first W views."""
    contrast: tuple[Tensor, ...] = ()
    """`[B, V, L]`: visible in the views that the contrast alone reads; nothing where it reads those of `keep`."""


class Drawn(NamedTuple):
    """One modality of one span."""

    masks: Masks
    diffused: tuple[Tensor, ...]
    """x_t `[(B W), Q, P]` and t `[(B W)]`; nothing for a model with mask tokens."""
    target: tuple[Tensor, ...] = ()
    """What a teacher makes of the patches to decode, float32 `[(B W), Q, D]` (`diffmavil.model.teacher`); nothing for a
    model that predicts patches."""


class Draws(NamedTuple):
    """Both modalities, a `Drawn` for each span."""

    audio: tuple[Drawn, ...]
    video: tuple[Drawn, ...]


class Span(NamedTuple):
    """Samples first..last - 1 of a batch, which keep the same numbers of patches."""

    first: int
    last: int
    keep_audio: int
    keep_video: int

    @property
    def samples(self) -> int:
        return self.last - self.first


def check_keep(name: str, keep: Keep, tokens: int) -> None:
    """Every count leaves at least one visible and one masked token."""
    for count in keep if isinstance(keep, tuple) else (keep,):
        allowed = f"in 1..{tokens - 1}: at least one visible and one masked of {tokens}"
        require(1 <= count < tokens, name, count, allowed)


def turns(keep_audio: Keep, keep_video: Keep) -> list[tuple[int, int]]:
    """Visible tokens of sound and picture in each turn; one turn where nothing is mixed.

    Raises:
        ValueError: counts for different numbers of turns, or for none.
    """
    count = max(len(keep) if isinstance(keep, tuple) else 1 for keep in (keep_audio, keep_video))
    audio, video = (keep if isinstance(keep, tuple) else (keep,) * count for keep in (keep_audio, keep_video))
    require(len(audio) == len(video) > 0, "keep_audio, keep_video", (audio, video), "counts for as many turns")
    return list(zip(audio, video, strict=True))


def spans(batch: int, offset: int, keep_audio: Keep, keep_video: Keep) -> list[Span]:
    """The spans of the samples offset..offset + batch - 1.

    Raises:
        ValueError: counts for different numbers of turns.
    """
    if isinstance(keep_audio, int) and isinstance(keep_video, int):
        return [Span(0, batch, keep_audio, keep_video)]
    counts = turns(keep_audio, keep_video)
    found, first = [], 0
    while first < batch:
        run = (offset + first) // MIX_RUN
        last = min(batch, (run + 1) * MIX_RUN - offset)
        found.append(Span(first, last, *counts[run % len(counts)]))
        first = last
    return found
