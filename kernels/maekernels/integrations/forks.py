"""Drop-in replacements for code in forks of MAE, AudioMAE, CrossMAE or VideoMAE.

    random_masking       MAE's method of this name: same arguments, same three results
    tube_mask            VideoMAE's boolean mask: one set of positions, masked in every frame
    masked_ids           the token indices of a boolean mask, without waiting for the device
    MaskedPatchEmbed     embeds only the visible patches, with the weights of the convolution that embedded them all

Shapes: B samples, N tokens of which K are visible, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maekernels import MaskIds, gather_tokens, patchify, random_mask
from maekernels._checks import FLOATS, check, check_ids, describe, refuse
from maekernels._pixels import MAX_CHANNELS
from maekernels.integrations._instance import has_hooks, overridden


def random_masking(
    x: Tensor, mask_ratio: float, *, seed: int | Tensor | None = None, offset: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """MAE's `random_masking`: keep int(N (1 - mask_ratio)) tokens of each sample.

    The kept tokens stay in order, where MAE shuffles them; `ids_restore` holds the new position of each token, so that
    the usual `gather` of kept tokens and mask tokens restores them all.

    Args:
        x: float [B, N, D].
        mask_ratio: in [0, 1).
        seed: as in `random_mask`. None draws one from torch's generator of the device, as MAE does with its noise.
        offset: as in `random_mask`, for use with an explicit seed.

    Returns:
        x_masked [B, K, D]; mask float32 [B, N], 0 kept and 1 removed; ids_restore int64 [B, N].
    """
    check(x.dim() == 3 and x.dtype in FLOATS, "x", describe(x), "a float tensor [B, N, D]")
    check(0 <= mask_ratio < 1, "mask_ratio", mask_ratio, "in [0, 1)")
    batch, length, _ = x.shape
    keep = int(length * (1 - mask_ratio))
    if seed is None:
        seed = torch.randint(2**63 - 1, (), device=x.device)
    ids = random_mask(batch, length, keep, seed=seed, offset=offset, device=x.device)
    ids_shuffle = torch.cat(ids, dim=1).long()
    mask = torch.ones(batch, length, device=x.device).scatter_(1, ids_shuffle[:, :keep], 0.0)
    return gather_tokens(x, ids.ids_keep), mask, inverse(ids_shuffle)


def inverse(ids: Tensor) -> Tensor:
    """The inverse of a permutation, i.e. the position of each token: int64 [B, N] -> int64 [B, N]. An involution."""
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return torch.empty_like(ids).scatter_(1, ids, places)


def tube_mask(
    batch: int,
    frames: int,
    patches: int,
    mask_ratio: float,
    *,
    seed: int | Tensor,
    offset: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """VideoMAE's tube masks: bool [B, frames * patches], True where masked, the same positions in every frame.

    Args:
        frames: of tokens, i.e. frames of the clip / tubelet size.
        patches: per frame.
        mask_ratio: int(mask_ratio * patches) of them are masked, as VideoMAE counts.
        seed, offset, device: as in `random_mask`: the mask of a clip depends only on (seed, its index).
    """
    check(frames > 0 and patches > 0, "frames, patches", (frames, patches), "positive")
    check(0 <= mask_ratio < 1, "mask_ratio", mask_ratio, "in [0, 1)")
    keep = patches - int(mask_ratio * patches)
    visible = random_mask(batch, patches, keep, seed=seed, offset=offset, device=device).ids_keep.long()
    hidden = torch.ones(batch, patches, dtype=torch.bool, device=visible.device).scatter_(1, visible, False)
    return hidden.repeat(1, frames)


def masked_ids(mask: Tensor, masked: int | None = None) -> MaskIds:
    """The token indices of a boolean mask [B, N], True where masked, with equally many in every sample.

    Args:
        masked: the number per sample. None reads it from the mask, which waits for the device; a given number is
            checked on the device, where a wrong one stops the process with an assertion.

    Returns:
        ids_keep and ids_mask, int64, each ascending.

    Raises:
        ValueError: not such a mask, or unequal numbers per sample, where that can be checked without waiting.
    """
    check(mask.dim() == 2 and mask.dtype == torch.bool, "mask", describe(mask), "bool [B, N], True where hidden")
    length = mask.shape[1]
    counts = mask.sum(1)
    if masked is None:
        low, high = (int(count) for count in counts.aminmax()) if len(mask) else (0, 0)
        check(low == high, "mask", f"{low} to {high} masked tokens", "as many in every sample")
        masked = low
    check(0 <= masked <= length, "masked", masked, f"in [0, {length}]")
    if mask.device.type == "cpu" and not torch.compiler.is_compiling():
        right = bool((counts == masked).all())
        check(right, "mask", f"{counts.tolist()} masked tokens", f"masked={masked} of every sample")
    else:
        # Without the number, which a compiler may see as a symbol and then cannot format.
        torch.ops.aten._assert_async.msg((counts == masked).all(), "mask: must hide `masked` tokens of every sample")
    # A stable sort of 0 and 1: visible tokens in order, then masked tokens in order.
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)
    return MaskIds(*order.split([length - masked, masked], dim=1))


class MaskedPatchEmbed(nn.Module):
    """Embeds selected patches: conv(x).flatten(2).mT[:, ids] without computing the others.

    conv: the Conv2d or Conv3d that embeds all patches. It stays in place and keeps its weights: this module has no
        parameters of its own and adds nothing to a state_dict. If the owner replaces the convolution, create this
        module again.
    mean, std: of the pixels, per channel; required for uint8 pixels, which are scaled as x / 255 and so are never
        stored as floats.
    """

    def __init__(
        self,
        conv: nn.Module,
        mean: Sequence[float] | Tensor | None = None,
        std: Sequence[float] | Tensor | None = None,
    ) -> None:
        super().__init__()
        problem = _unusable(conv)
        check(problem is None, "conv", conv, f"an embedding of patches by Conv2d or Conv3d: {problem}")
        check((mean is None) == (std is None), "std", std, f"given with mean={mean}, or left out with it")
        # Held in a tuple, so that it is not registered as a submodule: its owner saves, moves and trains it.
        self.held = (conv,)
        self.mean, self.std = (None if v is None else [float(channel) for channel in v] for v in (mean, std))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        """x [B, C, H, W] or [B, C, T, H, W], ids [B, K] -> [B, K, D]."""
        problem = _unusable(self.held[0])
        if problem is not None:
            refuse("conv", self.held[0], f"as it was given: {problem}")
        check(x.dtype != torch.uint8 or self.mean is not None, "x", describe(x), "float without mean and std")
        return embed_patches(self.held[0], x, ids, self.mean, self.std, channels_first=True)

    def _replicate_for_data_parallel(self) -> nn.Module:
        allowed = "in DistributedDataParallel: its convolution has no replica"
        refuse("module", "MaskedPatchEmbed in DataParallel", allowed)


def _unusable(conv: nn.Module) -> str | None:
    """Why the weights of `conv` cannot be used without calling it; None if they can."""
    # weight_norm and prune compute the weight in a hook.
    return unknown_embedding(conv) or ("it has hooks, which would not run" if has_hooks(conv) else None)


def unknown_embedding(conv: nn.Module) -> str | None:
    """Why `conv` is not a plain embedding of non-overlapping patches; None if it is."""
    if type(conv) not in (nn.Conv2d, nn.Conv3d):
        return f"it is a {type(conv).__name__}"
    assert isinstance(conv, nn.Conv2d | nn.Conv3d)
    if overridden(conv, "forward"):
        return "its forward was replaced"
    if conv.stride != conv.kernel_size:
        return f"its stride is {conv.stride}, its kernel {conv.kernel_size}"
    padded = conv.padding != "valid" and any(conv.padding)
    if padded or any(d != 1 for d in conv.dilation) or conv.groups != 1:
        return "it has padding, dilation or groups"
    if conv.in_channels > MAX_CHANNELS:
        return f"it has {conv.in_channels} channels of at most {MAX_CHANNELS}"
    return None


def embed_patches(
    conv: nn.Module,
    x: Tensor,
    ids: Tensor,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    *,
    channels_first: bool,
) -> Tensor:
    """The patches `ids` embedded by the weights of `conv`, [B, K, D]. Differentiable in the weights and a float `x`."""
    assert isinstance(conv, nn.Conv2d | nn.Conv3d)
    check_ids(ids, x.shape[0], x.device)
    dtype = conv.weight.dtype if x.dtype == torch.uint8 else x.dtype
    mean = [0.0] * conv.in_channels if mean is None else mean
    std = [1.0] * conv.in_channels if std is None else std
    patches = patchify(x, ids, conv.kernel_size, mean, std, dtype, channels_first=channels_first)
    # [D, C, t, h, w] to patch order, (t, h, w, c).
    return F.linear(patches, conv.weight.movedim(1, -1).flatten(1), conv.bias)
