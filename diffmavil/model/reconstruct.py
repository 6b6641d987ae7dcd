"""Pictures of what a model makes of masked clips."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor

from diffmavil.config import require
from diffmavil.model.branch import NOISE, Branch
from diffmavil.model.decoder import ToDecode
from diffmavil.model.diffusion import ddim_sample
from diffmavil.model.embed import all_ids, unpatchify
from maekernels import MaskIds, patchify, scatter_tokens
from maekernels.philox import fold_in

_GREY = 0.5
_PIX_EPS = 1e-6  # under the root of the patch variance, as in `maekernels.masked_mse`


class Pictures(NamedTuple):
    """One modality: video `[B, T, H, W, 3]` float32 in 0..1, or normalised log-mel `[B, F, M]` float32.

    With `norm_pix` the model predicts patches of mean 0 and deviation 1. To be seen, predicted and diffused patches are
    given the *true* mean and deviation of the patch, as in MAE's own visualisation: coarse brightness and contrast of
    these two pictures are therefore not the model's. Left as they are (`as_predicted`), every patch has the same
    brightness and contrast, and looks wrong without being so.
    """

    original: Tensor
    visible: Tensor
    """Masked patches grey (video) or 0, the data set's mean (spectrogram)."""
    noised: Tensor | None
    """Masked patches diffused to the timestep asked for, or to that with as much signal as noise; None for a model with
    mask tokens."""
    reconstruction: Tensor
    """Masked patches predicted, visible patches as they are."""


class Reconstruction(NamedTuple):
    """What the model has no branch for has pictures without elements."""

    video: Pictures
    audio: Pictures


class _Canvas:
    """The true patches of a batch, and how predicted patches are put among them."""

    def __init__(self, branch: Branch, x: Tensor, ids_mask: Tensor) -> None:
        self.branch, self.ids_mask = branch, ids_mask
        ids = rearrange(all_ids(x.shape[0], 1, branch.tokens, x.device), "b 1 n -> b n")
        self.patches = patchify(x, ids, branch.patch, branch.mean, branch.std, dtype=torch.float32)
        self.masked = patchify(x, ids_mask, branch.patch, branch.mean, branch.std, dtype=torch.float32)
        self.is_masked = torch.zeros(ids.shape, dtype=torch.bool, device=x.device)
        self.is_masked.scatter_(1, ids_mask.long(), True)

    def picture(self, masked: Tensor | None) -> Tensor:
        """The clip with its masked patches `[B, M, P]` replaced; None: the original."""
        patches = self.patches
        if masked is not None:
            replaced = scatter_tokens(masked, self.ids_mask, self.branch.tokens)
            patches = torch.where(self.is_masked[..., None], replaced, patches)
        return self._to_input(unpatchify(patches, self.branch.grid, self.branch.patch))

    def grey(self) -> Tensor:
        """What stands at masked patches in `visible`, in the model's normalisation."""
        if len(self.branch.grid) == 2:
            return torch.zeros_like(self.masked)
        mean, std = self._channels()
        values = self.masked.shape[-1] // len(mean)
        return repeat((_GREY - mean) / std, "c -> b m (v c)", b=len(self.masked), m=self.masked.shape[1], v=values)

    def unnormalise(self, masked: Tensor) -> Tensor:
        """Patches as the model predicts them -> patches with the mean and deviation of the true ones."""
        if not self.branch.norm_pix:
            return masked.float()
        mean = self.masked.mean(dim=-1, keepdim=True)
        variance = self.masked.var(dim=-1, keepdim=True)
        return masked.float() * (variance + _PIX_EPS).sqrt() + mean

    def _to_input(self, x: Tensor) -> Tensor:
        if len(self.branch.grid) == 2:
            return x
        mean, std = self._channels()
        return (x * std + mean).clamp(0, 1)

    def _channels(self) -> tuple[Tensor, Tensor]:
        return self.patches.new_tensor(self.branch.mean), self.patches.new_tensor(self.branch.std)


def draw_pictures(
    branch: Branch,
    fused: Tensor,
    x: Tensor,
    ids: MaskIds,
    seed: int,
    offset: int,
    steps: int,
    timestep: int | None = None,
    as_predicted: bool = False,
    blocks: tuple[Tensor, ...] = (),
) -> Pictures:
    """Decode all masked patches of one modality and draw them.

    Args:
        branch: the modality.
        fused: `[B, 1 + K, D]` from the fusion encoder.
        x: the input, as `DiffMAViL.forward` takes it.
        ids: visible and masked positions.
        seed, offset: key of the noise that sampling starts from.
        steps: DDIM steps of a model with diffused patches.
        timestep: of a model with diffused patches: predict once, from patches diffused to it; None: from pure noise.
        as_predicted: with `norm_pix`, draw patches as they are predicted, of mean 0 and deviation 1.
        blocks: `[B, 1 + K, D]` of each block of the encoder, for a decoder that reads them.

    Raises:
        ValueError: a timestep that the process, or the model, does not have.
    """
    ids_keep, ids_mask = ids
    canvas = _Canvas(branch, x, ids_mask)
    pixels = Tensor.float if as_predicted else canvas.unnormalise
    noised = None
    if branch.diffused:
        noise_seed = fold_in(seed, branch.stream, NOISE, 0)
        alpha_bar = branch.alpha_bar

        def diffuse(level: Tensor) -> Tensor:
            level = repeat(level, " -> b", b=x.shape[0]).contiguous()
            return branch.diffuse_at(x, ids_mask, level, noise_seed, offset)

        def predict(x_t: Tensor, t: int) -> Tensor:
            times = torch.full((x.shape[0],), t, device=x.device)
            return branch.decoder([ToDecode(fused, ids_keep, ids_mask, (x_t, times), blocks)])[0]

        if timestep is None:
            pure_noise = diffuse(alpha_bar.new_zeros(()))
            predicted = ddim_sample(predict, pure_noise, alpha_bar, branch.times, steps)
            trained = alpha_bar[branch.times.start :]
            x_t = diffuse(trained[(trained - 0.5).abs().argmin()])
        else:
            last = len(alpha_bar) - 1
            require(1 <= timestep <= last, "timestep", timestep, f"in 1..{last}")
            x_t = diffuse(alpha_bar[timestep])
            predicted = predict(x_t, timestep)
        noised = canvas.picture(pixels(x_t))
    else:
        require(timestep is None, "timestep", timestep, "None: the model has mask tokens")
        predicted = branch.decoder([ToDecode(fused, ids_keep, ids_mask, (), blocks)])[0]
    return Pictures(
        original=canvas.picture(None),
        visible=canvas.picture(canvas.grey()),
        noised=noised,
        reconstruction=canvas.picture(pixels(predicted)),
    )
