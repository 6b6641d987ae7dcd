"""What a model makes of masked clips: at several masking ratios, timesteps and numbers of sampling steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffmavil.config import Config
from diffmavil.data.audio import make_log_mel
from diffmavil.data.dataset import Batch
from diffmavil.model import DiffMAViL, Pictures, Reconstruction
from diffmavil.reporting import pictures
from diffmavil.reporting.parts import Picture, Section, Strip
from diffmavil.reporting.study import Missing
from diffmavil.training.curriculum import keep_count

SAMPLE_STEPS = 2  # more steps give one sharper sample, fewer the mean: clearer while the model is young
_PREDICTED = (
    "Patches are predicted up to their mean and contrast, which are the true ones here, as in MAE's visualisation."
)
_NOISED = (
    "Original; visible patches; the masked patches diffused to x_t (of the timesteps in training the one nearest to as "
    "much signal as noise); and the reconstruction of the masked patches, which starts from pure noise."
)
_HIDDEN = "Original; visible patches; and the reconstruction of the masked patches."
NO_PICTURES = (
    "The run is of the second stage: its decoders predict a teacher's features of masked patches, of which there are "
    "no pictures."
)
_RATIOS = (0.5, 0.75, 0.9)
_LEVELS = (0.25, 0.5, 0.75)
_STEPS = (1, 2, 8, 32)
_WORDS = {"noised": "x_t"}
_NOTES = {
    "ratios": "Of the patches, the share that is hidden from the encoder; its reconstruction below each.",
    "timesteps": "Masked patches diffused to timestep t, and what one prediction makes of them: at a small t most of "
    "the patch is still there, at the last one nothing is.",
    "steps": "From pure noise in one step the model shows its mean expectation, which is smooth; in more steps one "
    "sharper sample of what it thinks possible.",
    "predicted": "Training normalises each target patch to mean 0 and deviation 1 (norm_pix); such patches are what "
    "the model predicts. Drawn as they are they look wrong without being so; with un-normalising, each patch has its "
    "true mean and deviation again.",
}


class Mode(NamedTuple):
    """How a clip is masked and reconstructed."""

    label: str
    ratio: float | None = None
    """Hidden share; None: as at the end of training."""
    steps: int = SAMPLE_STEPS
    timestep: int | None = None
    as_predicted: bool = False


@torch.inference_mode()
def reconstruct(model: DiffMAViL, config: Config, batch: Batch, mode: Mode) -> Reconstruction:
    """Pictures of the batch, on the CPU."""
    return model.reconstruct(
        batch.video,
        make_log_mel(config.model)(batch.wave, batch.wave_valid),
        seed=config.train.seed,
        offset=0,
        keep_video=_keep(config, "video", mode.ratio),
        keep_audio=_keep(config, "audio", mode.ratio),
        sample_steps=min(mode.steps, len(config.model.diffusion.times)),
        timestep=mode.timestep,
        as_predicted=mode.as_predicted,
    )


def _keep(config: Config, name: str, ratio: float | None) -> int:
    """Visible tokens of a modality."""
    tokens = getattr(config.model, name).tokens
    if ratio is None:
        return keep_count(getattr(config.mask, name), 1.0, tokens)
    return min(max(1, round((1 - ratio) * tokens)), tokens - 1)


def clip_strips(result: Reconstruction, index: int, clip: str) -> list[Strip]:
    """Every picture of a clip: of its frames, then of its sound."""
    return [
        strip
        for what, of in (("video", result.video), ("audio", result.audio))
        if of.original.numel()
        for strip in _strips(what, of, index, clip)
    ]


def _strips(what: str, of: Pictures, index: int, clip: str) -> list[Strip]:
    rows = {
        "original": of.original,
        "visible": of.visible,
        "x_t": of.noised,
        "reconstruction": of.reconstruction,
    }
    scale = _scale(of.original[index])
    return [
        Strip(f"{what}, {name}", _picture(what, picture[index], f"{what} of {clip}: {name}", scale))
        for name, picture in rows.items()
        if picture is not None
    ]


def _scale(spec: Tensor) -> tuple[float, float]:
    low, high = np.percentile(spec.numpy(), [1, 99])
    return float(low), float(high)


def _picture(what: str, picture: Tensor, alt: str, scale: tuple[float, float]) -> Picture:
    """scale: of a spectrogram's colours, those of the original."""
    if what == "video":
        return pictures.frame_strip(picture.numpy(), alt)
    return pictures.spectrogram(picture.numpy(), alt, *scale)


def sections(model: DiffMAViL, config: Config, batch: Batch) -> list[Section]:
    """One clip in many ways; after it the others as they were trained on, folded.

    Raises:
        Missing: a model that predicts features.
    """
    if config.model.target_width is not None:
        raise Missing(NO_PICTURES)
    names = [Path(path).stem for path in batch.paths]
    usual = reconstruct(model, config, batch, Mode("as trained"))
    first, *others = (
        Section(f"Clip {name}", strips=clip_strips(usual, i, name), folded=i > 0) for i, name in enumerate(names)
    )
    one = _alone(batch)
    in_ways = [
        Section(way.title, way.note, strips=_strips_of(way, model, config, one, names[0])) for way in ways(config)
    ]
    return [replace(first, note=picture_note(config)), *in_ways, *others]


class Way(NamedTuple):
    """A clip by several modes."""

    title: str
    note: str
    modes: Sequence[Mode]
    fields: Sequence[str]
    """Of `Pictures`, those that are shown."""


def ways(config: Config) -> list[Way]:
    """Of those that there are, what a model of this config can show."""
    both, only = ("visible", "reconstruction"), ("reconstruction",)
    modes = [Mode(f"{ratio:.0%} hidden", ratio, steps=1) for ratio in _RATIOS]
    found = [Way("Masking ratios", _NOTES["ratios"], modes, both)]
    diffusion = config.model.diffusion
    if diffusion.corruption == "diffusion":
        times = {max(diffusion.first_step, round(level * diffusion.steps)) for level in _LEVELS} | {diffusion.steps}
        modes = [Mode(f"t = {time}", timestep=time) for time in sorted(times)]
        found.append(Way("Timesteps", _NOTES["timesteps"], modes, ("noised", "reconstruction")))
        counts = [steps for steps in _STEPS if steps <= len(diffusion.times)]
        modes = [Mode(f"{steps} {'step' if steps == 1 else 'steps'}", steps=steps) for steps in counts]
        found.append(Way("Sampling steps", _NOTES["steps"], modes, only))
    if config.model.norm_pix:
        modes = [Mode("un-normalised"), Mode("as predicted", as_predicted=True)]
        found.append(Way("With and without un-normalising", _NOTES["predicted"], modes, only))
    return found


def picture_note(config: Config) -> str:
    """What the pictures of a clip are."""
    shown = _NOISED if config.model.diffusion.corruption == "diffusion" else _HIDDEN
    return f"{shown} {_PREDICTED}" if config.model.norm_pix else shown


def _strips_of(way: Way, model: DiffMAViL, config: Config, batch: Batch, clip: str) -> list[Strip]:
    """The one clip of the batch by each mode."""
    results = [reconstruct(model, config, batch, mode) for mode in way.modes]
    strips = []
    for what in ("video", "audio"):
        for mode, result in zip(way.modes, results, strict=True):
            of: Pictures = getattr(result, what)
            for name in way.fields if of.original.numel() else ():
                shown: Tensor = getattr(of, name)
                label = f"{what}, {mode.label}, {_WORDS.get(name, name)}"
                picture = _picture(what, shown[0], f"{clip}: {label}", _scale(of.original[0]))
                strips.append(Strip(label, picture))
    return strips


def _alone(batch: Batch) -> Batch:
    """The first clip."""
    first = batch.map(lambda tensor: tensor[:1])
    return Batch(first.video, first.wave, first.wave_valid, batch.labels[:1], first.position, batch.paths[:1])
