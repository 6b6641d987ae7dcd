"""The same work as AudioMAE, VideoMAE and MAE implement it: the baseline of every speed-up.

Their conventions, kept on purpose: a mask from two argsorts of uniform noise; gathers with an int64 index `repeat`ed to
the width of a token; pixels as a float32 clip `[B, C, T, H, W]` that is normalised and cut into patches as a whole
before a fifth of the patches is selected; noise drawn and stored; a target of all patches stored in float32 for the
loss.

What is not timed is in their favour: `patchify` includes the conversion from uint8, as ours does, but the normalised
clip is then available to `diffuse_patches` and `masked_mse` (their loaders compute it once), and so are int64 ids
(their argsort returns those).

Shapes: B samples, N tokens, K kept, Q selected, P elements per patch, D width. A spectrogram has one channel; images
and spectrograms have no T.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def random_mask(batch: int, length: int, num_keep: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """ids_keep `[B, K]`, mask `[B, N]` (1 is masked) and ids_restore `[B, N]`; MAE's `random_masking`."""
    noise = torch.rand(batch, length, device=device)
    ids_shuffle = torch.argsort(noise, dim=1)
    ids_restore = torch.argsort(ids_shuffle, dim=1)
    mask = torch.ones(batch, length, device=device)
    mask[:, :num_keep] = 0
    mask = torch.gather(mask, dim=1, index=ids_restore)
    return ids_shuffle[:, :num_keep], mask, ids_restore


def gather_tokens(x: Tensor, ids: Tensor) -> Tensor:
    """x `[B, N, D]`, ids int64 `[B, K]` -> `[B, K, D]`."""
    return torch.gather(x, dim=1, index=ids.unsqueeze(-1).repeat(1, 1, x.shape[2]))


def scatter_tokens(values: Tensor, ids_restore: Tensor, mask_token: Tensor) -> Tensor:
    """Visible tokens `[B, K, D]` restored among mask tokens `[D]`: `[B, N, D]`; MAE's decoder input."""
    missing = ids_restore.shape[1] - values.shape[1]
    mask_tokens = mask_token.repeat(values.shape[0], missing, 1)
    x = torch.cat([values, mask_tokens], dim=1)
    return torch.gather(x, dim=1, index=ids_restore.unsqueeze(-1).repeat(1, 1, x.shape[2]))


def normalise(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Stored pixels `[B, T, H, W, C]`, `[B, H, W, C]` or `[B, F, M]` -> the normalised clip `[B, C, ...]`.

    mean, std: `[C]`, in the dtype of the clip.
    """
    clip = pixels.unsqueeze(1) if pixels.dim() == 3 else pixels.movedim(-1, 1).contiguous()
    clip = clip.to(mean.dtype).div(255) if pixels.dtype == torch.uint8 else clip.to(mean.dtype)
    of_channel = (-1, *(1,) * (clip.dim() - 2))
    return (clip - mean.view(of_channel)) / std.view(of_channel)


def cut(clip: Tensor, patch: Sequence[int]) -> Tensor:
    """Every patch of a clip `[B, C, (T,) H, W]`: `[B, N, P]`, P ordered (t, h, w, c)."""
    if len(patch) == 2:
        clip, patch = clip.unsqueeze(2), (1, *patch)
    batch, channels, *sizes = clip.shape
    (pt, ph, pw), (t, h, w) = patch, (size // p for size, p in zip(sizes, patch, strict=True))
    x = clip.reshape(batch, channels, t, pt, h, ph, w, pw).permute(0, 2, 4, 6, 3, 5, 7, 1)
    return x.reshape(batch, t * h * w, math.prod(patch) * channels)


def normalise_patches(patches: Tensor) -> Tensor:
    """Normalise each patch by its own mean and standard deviation; MAE's `norm_pix_loss`."""
    mean, var = patches.mean(dim=-1, keepdim=True), patches.var(dim=-1, keepdim=True)
    return (patches - mean) / (var + 1.0e-6) ** 0.5


def add_noise(x0: Tensor, alpha_bar: Tensor) -> Tensor:
    """x_t of the DDPM forward process. x0 `[B, ...]`, alpha_bar float32 `[B]`."""
    noise = torch.randn_like(x0)
    alpha_bar = alpha_bar.view(-1, *(1,) * (x0.dim() - 1))
    return (alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise).to(x0.dtype)


def diffuse_patches(clip: Tensor, ids: Tensor, patch: Sequence[int], alpha_bar: Tensor, dtype: torch.dtype) -> Tensor:
    """x_t of the selected patches `[B, Q, P]`, each patch normalised separately first."""
    patches = normalise_patches(cut(clip, patch))
    return add_noise(gather_tokens(patches, ids), alpha_bar).to(dtype)


def masked_mse(pred: Tensor, clip: Tensor, ids: Tensor, patch: Sequence[int]) -> Tensor:
    """Loss of pred `[B, Q, P]` against the selected patches, each normalised separately."""
    target = gather_tokens(normalise_patches(cut(clip, patch)), ids)
    return ((pred - target) ** 2).mean(dim=-1).mean()


def info_nce(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Symmetric InfoNCE of a and b `[B, D]` with stored B x B logits; in half precision under autocast, as they run."""
    with torch.autocast(a.device.type, dtype=torch.bfloat16, enabled=a.dtype == torch.bfloat16):
        logits = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T / temperature
        target = torch.arange(len(a), device=a.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
