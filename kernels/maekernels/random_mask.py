"""Random masks: which tokens of each sample stay visible.

    key_i  = a Philox word of (seed, sample, token i)                      [32 bits]
    keep   = the `num_keep` tokens with the smallest keys; ties by smaller token index

Groups make structured masks: tokens of one group share their key, so a group is kept or masked as a whole, except
that exactly `num_keep` tokens are kept always, so at most the last group is split.

    tube mask (VideoMAE)           groups[n] = n % (h * w)                  spatial position
    time / frequency mask (audio)  groups[n] = n // freq   /   n % freq     column / row of the spectrogram
    time x frequency (AudioMAE)    groups = stack([time, freq])             [2, N]

With several group sets the key of a token is the maximum of its keys in the sets, so the kept tokens are those whose
time *and* frequency keys are small. Tokens of equal group key are ordered by an own key of the token, then by index.

Shapes: B samples, N tokens, K kept. ids_keep [B, K] and ids_mask [B, N-K], int32, each ascending.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from maekernels import philox
from maekernels._checks import check, check_backend, describe


class MaskIds(NamedTuple):
    """Token indices of each sample, int32, ascending: `ids_keep` [B, K] and `ids_mask` [B, N-K]."""

    ids_keep: Tensor
    ids_mask: Tensor


def random_mask(
    batch: int,
    length: int,
    num_keep: int,
    *,
    seed: int | Tensor,
    offset: int = 0,
    groups: Tensor | None = None,
    device: torch.device | str | None = None,
    backend: str | None = None,
) -> MaskIds:
    """Split the `length` tokens of each sample into `num_keep` visible and the masked rest.

    A pure function of (seed, sample index offset + b, length, num_keep, groups): the same on CPU and GPU, and a batch
    split over processes gives the same masks as the whole batch.

    Args:
        seed: int in [0, 2^63), or a 0-d int64 tensor on the device (which a CUDA graph can change).
        offset: index of the first sample.
        groups: None, or int32/int64 [N] or [G, N] with labels in [0, N) on the device: tokens of one label stay
            together (see the module).
        device: of the result; default the seed's, or torch's default.
        backend: for tests and benchmarks only: 'torch' or 'triton'.
    """
    check(batch >= 0, "batch", batch, "not negative")
    check(0 <= length < 2**24, "length", length, "in [0, 2^24)")
    check(0 <= num_keep <= length, "num_keep", num_keep, f"in [0, length={length}]")
    check(offset >= 0, "offset", offset, "not negative")
    seed = philox.as_seed(seed, torch.device(device) if device is not None else None)
    check_backend(backend, seed.device)
    if groups is not None:
        ok = groups.dim() in (1, 2) and groups.shape[-1] == length and groups.dtype in (torch.int32, torch.int64)
        ok = ok and groups.device == seed.device
        check(ok, "groups", describe(groups), f"int32 or int64 [{length}] or [G, {length}] on {seed.device}")
        groups = groups if groups.dim() == 2 else groups[None]
    op = _reference if backend == "torch" else _random_mask
    return MaskIds(*op(batch, length, num_keep, seed, offset, groups))


def _reference(
    batch: int, length: int, num_keep: int, seed: Tensor, offset: int, groups: Tensor | None
) -> tuple[Tensor, Tensor]:
    samples = torch.arange(offset, offset + batch, device=seed.device)
    own = philox.uint32(seed, length, samples=samples, stream=philox.MASK)
    key = own
    if groups is not None:
        sets = [
            philox.uint32(seed, length, samples=samples, stream=philox.MASK_GROUPS + g)[:, labels.long()]
            for g, labels in enumerate(groups)
        ]
        # [group key | own key], as signed 64 bits in the same order.
        key = ((torch.stack(sets).amax(0) - 2**31) << 32) | own
    if num_keep == 0 or length == 0:
        keep = torch.zeros(batch, length, dtype=torch.bool, device=seed.device)
    else:
        threshold = key.kthvalue(num_keep, dim=1, keepdim=True).values if batch else key[:, :1]
        below, tie = key < threshold, key == threshold
        keep = below | (tie & (tie.cumsum(1) <= num_keep - below.sum(1, keepdim=True)))
    token = torch.arange(length, device=seed.device).expand(batch, length)
    kept_before = keep.cumsum(1)
    place = torch.where(keep, kept_before - 1, num_keep + token - kept_before)
    ids = torch.empty(batch, length, dtype=torch.int32, device=seed.device).scatter_(1, place, token.int())
    return ids[:, :num_keep].contiguous(), ids[:, num_keep:].contiguous()


@torch.library.custom_op("maekernels::random_mask", mutates_args=(), device_types="cpu")
def _random_mask(
    batch: int, length: int, num_keep: int, seed: Tensor, offset: int, groups: Tensor | None
) -> tuple[Tensor, Tensor]:
    if groups is not None and groups.numel():
        low, high = (int(v) for v in groups.aminmax())
        check(low >= 0 and high < length, "groups", f"labels in [{low}, {high}]", f"in [0, {length})")
    return _reference(batch, length, num_keep, seed, offset, groups)


@_random_mask.register_fake
def _(batch, length, num_keep, seed, offset, groups):
    ids = (batch, num_keep), (batch, length - num_keep)
    return tuple(seed.new_empty(shape, dtype=torch.int32) for shape in ids)
