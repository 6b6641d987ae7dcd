"""Features and scores of arbitrary clips from a pretrained model: `diffmavil.load(...).embed(...)`."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from rich.console import Console

from diffmavil.config import FinetuneConfig, require
from diffmavil.config.errors import RunError, UsageError
from diffmavil.config.progress import tracking
from diffmavil.data.decode import BadClip
from diffmavil.data.looks import Look
from diffmavil.evaluation.embedding import Embedding, Scores
from diffmavil.evaluation.frozen_model import FrozenModel
from diffmavil.evaluation.inputs import Given, clips_from
from diffmavil.evaluation.pretrained import find_weights, open_model
from diffmavil.model.classifier import Classifier
from diffmavil.training.precision import use_bf16

T = TypeVar("T", Embedding, Scores)
Layers = Sequence[int] | Literal["all"] | None


def load(
    source: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
) -> Embedder:
    """Load a pretrained or fine-tuned model with its own preprocessing and statistics, ready for arbitrary clips.

    Args:
        source: a run's folder, its model.safetensors, a checkpoint, a folder that holds a model.safetensors, or
            "owner/name" on the Hugging Face Hub.
        device: None: the first GPU, or else the CPU.
        dtype: type in which Linear layers and attention compute: float32, bfloat16 or, on a GPU, float16. None: as in
            training and evaluation, bfloat16 where the device computes in it unless the run's config says otherwise.
        revision: branch, tag or commit of a model on the Hub.

    Raises:
        ValueError: nothing found, a file that is not exported weights, or a device or type that is not available.
    """
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"device={device!r}: must be one that torch knows: {str(error).splitlines()[0]}") from error
    usable = place.type != "cuda" or torch.cuda.is_available()
    require(usable, "device", str(device), "cpu: torch finds no GPU here, or was built without CUDA")
    allowed = (torch.float32, torch.bfloat16, *([torch.float16] if place.type == "cuda" else []))
    require(dtype is None or dtype in allowed, "dtype", dtype, f"one of {', '.join(map(str, allowed))} on {place.type}")
    path = find_weights(source, revision)
    try:
        model, config = open_model(path, place)
    except (UsageError, RunError) as error:
        raise ValueError(str(error)) from error
    if dtype is None:
        dtype = torch.bfloat16 if use_bf16(config, place) else torch.float32
    return Embedder(model, config, place, dtype, path)


@dataclass(frozen=True, repr=False)
class Embedder(FrozenModel):
    """A frozen model for clips of any length, rate and size, nothing masked.

    In addition to the attributes of `FrozenModel` it has its own.

    Attributes:
        weights: file or checkpoint that was loaded.
    """

    weights: Path

    def __repr__(self) -> str:
        encoder, kind = self.config.model.encoder, type(self.model).__name__
        told = f"modalities={self.modalities!r}, depth={encoder.depth}, width={encoder.width}"
        return f"<{kind} {self.weights}: {told}, {self.device}, {self.dtype}>"

    def embed(
        self,
        clips: Any = None,
        *,
        video: Any = None,
        audio: Any = None,
        fps: float | Sequence[float] | None = None,
        sample_rate: int | Sequence[int] | None = None,
        windows: int = 1,
        hop: float | None = None,
        layers: Layers = None,
        tokens: bool = False,
        batch_size: int = 8,
        workers: int = 0,
        progress: bool = False,
        return_errors: bool = False,
    ) -> Any:
        """Features of one clip, or of each clip of a list.

        Args:
            clips: paths of files with all modalities of the model.
            video: paths of files whose video alone is read, or arrays uint8 `[T, H, W, 3]`.
            audio: paths of files whose audio alone is read, or arrays `[S]`, or `[C, S]` whose channels are averaged:
                floats with full scale 1, or int16. With `video`, the i-th of both are one clip and begin together;
                one alone is read by its own encoder only.
            fps: frames per second of video arrays, one number or one for each.
            sample_rate: samples per second of audio arrays, likewise.
            windows: number of the model's windows (4 s of video, 10 s of audio, as it was trained), evenly spread over
                a clip. 1: the centre, as in the evaluation.
            hop: seconds between windows from the clip's start to its end, instead of `windows`.
            layers: numbers of encoder blocks to read as well, from 0, negative from the end; or "all".
            tokens: also return every token, not only means.
            batch_size: windows per forward pass.
            workers: processes that decode files; 0: decode in this process.
            progress: show progress on stderr.
            return_errors: put a `ValueError` in the list in place of a clip that cannot be used; False: raise it.

        Returns:
            `Embedding`, or a list of them.

        Clips shorter than a window are padded (audio) or slowed down (video); padding is not pooled.

        Raises:
            ValueError: arguments that do not fit each other or the model; a clip that cannot be used.
        """
        items, single = clips_from(clips, video, audio, fps, sample_rate, self.config.model)
        look, blocks = Look(windows, hop), self.blocks(layers)
        found = self.stream(items.readable, look, layers=blocks, tokens=tokens, batch_size=batch_size, workers=workers)
        return collected(found, items, single, progress, return_errors)

    def classify(
        self,
        clips: Any = None,
        *,
        video: Any = None,
        audio: Any = None,
        fps: float | Sequence[float] | None = None,
        sample_rate: int | Sequence[int] | None = None,
        windows: int | None = None,
        hop: float | None = None,
        batch_size: int = 8,
        workers: int = 0,
        progress: bool = False,
        return_errors: bool = False,
    ) -> Any:
        """`Scores` of one clip, or of each clip of a list, from a fine-tuned model; arguments as in `embed`.

        windows: None: as the run scored its held-out clips (`head.crops`).

        Raises:
            ValueError: as `embed`; a model that is not fine-tuned; audio or video alone where it needs both.
        """
        require(isinstance(self.model, Classifier), "classify", str(self.weights), "asked of a fine-tuned model")
        assert isinstance(self.config, FinetuneConfig)
        items, single = clips_from(clips, video, audio, fps, sample_rate, self.config.model)
        whole = f"{self.modalities}: a classifier needs all that it was trained on"
        require(items.modalities == self.modalities, "modalities", items.modalities, whole)
        look = Look(1 if hop is not None else self.config.head.crops if windows is None else windows, hop)
        found = self.stream_scores(items.readable, look, batch_size=batch_size, workers=workers)
        return collected(found, items, single, progress, return_errors)

    def blocks(self, layers: Layers) -> tuple[int, ...]:
        """Non-negative numbers of encoder blocks. Raises `ValueError` for one that does not exist."""
        depth = self.config.model.encoder.depth
        if layers is None:
            return ()
        if isinstance(layers, str):
            require(layers == "all", "layers", layers, f"'all', or numbers in [-{depth}, {depth})")
            return tuple(range(depth))
        for number in layers:
            require(-depth <= number < depth, "layers", number, f"in [-{depth}, {depth}): the encoders' blocks")
        return tuple(number % depth for number in layers)


def collected(
    found: Generator[tuple[int, T | BadClip]], given: Given, single: bool, progress: bool, return_errors: bool
) -> T | list[T | ValueError]:
    """The result for each clip, in the order in which they were given."""
    results: dict[int, T | ValueError] = {place: given.complaint(place, why) for place, why in given.errors.items()}
    if results and not return_errors:
        raise next(iter(results.values()))  # type: ignore[misc]  # an error each
    shown = Console(stderr=True) if progress else None
    with closing(found), tracking(shown, "clips", len(given.names)) as tracker:  # a traceback would keep it open
        for index, one in found:
            place = given.places[index]
            if isinstance(one, BadClip):
                results[place] = given.complaint(place, one)
                if not return_errors:
                    raise results[place]  # type: ignore[misc]  # an error
            else:
                results[place] = replace(one, name=given.names[place])
            tracker.update(len(results))
    ordered = [results[place] for place in range(len(given.names))]
    return ordered[0] if single else ordered  # type: ignore[return-value]  # errors were raised or are wanted
