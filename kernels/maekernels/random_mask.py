"""Random masks: which tokens of each sample stay visible.

    key_i  = a Philox word of (seed, sample, token i)                      [32 bits]
    keep   = the `num_keep` tokens with the smallest keys; ties by smaller token index

Groups define structured masks: the tokens of a group share a key, so a group is kept or masked as a whole, except that
exactly `num_keep` tokens are always kept, so at most the last group is split.

    tube mask (VideoMAE)           groups[n] = n % (h * w)                  spatial position
    time / frequency mask (audio)  groups[n] = n // freq   /   n % freq     column / row of the spectrogram
    time x frequency (AudioMAE)    groups = stack([time, freq])             [2, N]

With several group sets, the key of a token is the maximum of its keys in the sets, so the kept tokens are those whose
time *and* frequency keys are small. Tokens with equal group keys are ordered by the token's own key, then by index.

Shapes: B samples, N tokens, K kept. ids_keep [B, K] and ids_mask [B, N-K], int32, each ascending.

Cost: writes 4 B N bytes; B N / 4 Philox blocks, and in the kernel B N more for each group set. The kernel uses one
program per sample and builds the key of the last kept token bit by bit, with 32 counts over keys in registers (64 with
groups), so nothing is sorted. Bound by launch latency. No gradient.

If `maekernels._C_cuda` was built, samples of up to 8192 tokens use its kernel (csrc/cuda/random_mask.h): it finds the
key of the last kept token in digits of 8 bits, usually two of them, and computes a group's word once, not once per
token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from maekernels import philox
from maekernels._checks import check, check_backend, describe, run_op
from maekernels._native import PYTHON_CPU
from maekernels._native_cuda import current_stream, native_ops, runs_native
from maekernels._triton import jit, next_power_of_2, register_cuda
from maekernels.philox import philox_words

if TYPE_CHECKING:
    import triton.language as tl


NATIVE_LENGTH = 8192
"""The maximum number of tokens that the csrc kernel supports."""


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
    split over processes gets the same masks as the whole batch.

    Args:
        seed: int in [0, 2^63), or a 0-d int64 tensor on the device (which can change between replays of a CUDA graph).
        offset: index of the first sample.
        groups: None, or int32/int64 [N] or [G, N] with labels in [0, N) on the device: tokens with the same label stay
            together (see the module).
        device: of the result; by default the seed's, or torch's default device.
        backend: for tests and benchmarks only: 'torch', 'native' (csrc on a CPU), 'triton' or 'cuda' (csrc).
    """
    check(batch >= 0, "batch", batch, "not negative")
    check(0 <= length <= 2**15, "length", length, "in [0, 32768]")
    check(0 <= num_keep <= length, "num_keep", num_keep, f"in [0, length={length}]")
    check(offset >= 0, "offset", offset, "not negative")
    seed = philox.as_seed(seed, torch.device(device) if device is not None else None)
    if backend == "cuda":
        ready = seed.device.type == "cuda" and length <= NATIVE_LENGTH and native_ops() is not None
        ready = ready and runs_native(seed.device)
        where = "used on CUDA from compute capability 8.0 on"
        check(ready, "backend", "'cuda'", f"{where}, with maekernels._C_cuda, for length <= {NATIVE_LENGTH}")
    else:
        check_backend(backend, seed.device)
    if groups is not None:
        ok = groups.dim() in (1, 2) and groups.shape[-1] == length and groups.dtype in (torch.int32, torch.int64)
        ok = ok and groups.device == seed.device
        check(ok, "groups", describe(groups), f"int32 or int64 [{length}] or [G, {length}] on {seed.device}")
        groups = groups if groups.dim() == 2 else groups[None]
    op = {"torch": _reference, "triton": _on_triton}.get(backend or "", _random_mask)
    return MaskIds(*run_op(op, batch, length, num_keep, seed, offset, groups))


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
        # [group key | own key], as signed 64-bit integers with the same order.
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
    return _copy(ids[:, :num_keep]), _copy(ids[:, num_keep:])


def _copy(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)  # outputs of an op must not share memory


@jit
def _word(seed, stream: tl.constexpr, sample, element):
    """One word per element."""
    w0, w1, w2, w3 = philox_words(seed, stream, sample, element // 4)
    return tl.where(element % 4 < 2, tl.where(element % 2 == 0, w0, w1), tl.where(element % 2 == 0, w2, w3))


@jit
def _kth_smallest(key, candidate, k, BITS: tl.constexpr):
    """The k-th smallest (counting from 1) of the candidates' BITS-bit keys, built from its highest bit down."""
    bit = tl.full([], 1, key.dtype) << (BITS - 1)
    found = tl.full([], 0, key.dtype)
    for _ in range(BITS):
        higher = found | bit
        bit = bit >> 1
        found = tl.where(tl.sum((candidate & (key < higher)).to(tl.int32), axis=0) < k, higher, found)
    return found


@jit(do_not_specialize=("offset", "num_keep"))
def _random_mask_kernel(
    seed_ptr, groups_ptr, keep_ptr, mask_ptr, offset, num_keep, N, GROUPS: tl.constexpr, BLOCK: tl.constexpr
):
    """One sample: its keys, the key of the last kept token, and the two ordered lists."""
    batch = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, BLOCK)
    inside = n < N
    seed = tl.load(seed_ptr)
    key = _word(seed, 1, offset + batch, n)
    if GROUPS > 0:
        group_key = tl.zeros([BLOCK], tl.uint32)
        for g in tl.static_range(GROUPS):
            label = tl.load(groups_ptr + g * N + n, mask=inside, other=0).to(tl.int32)
            group_key = tl.maximum(group_key, _word(seed, 16 + g, offset + batch, label))
        key = (group_key.to(tl.uint64) << 32) | key.to(tl.uint64)
        last = _kth_smallest(key, inside, num_keep, 64)
    else:
        last = _kth_smallest(key, inside, num_keep, 32)
    below = inside & (key < last)
    tie = inside & (key == last)
    room = num_keep - tl.sum(below.to(tl.int32), axis=0)
    keep = below | (tie & (tl.cumsum(tie.to(tl.int32), axis=0) <= room))
    kept = tl.cumsum(keep.to(tl.int32), axis=0)
    tl.store(keep_ptr + batch * num_keep + kept - 1, n, mask=keep)
    tl.store(mask_ptr + batch * (N - num_keep) + n - kept, n, mask=inside & (keep == 0))


def _launch_random_mask(
    batch: int, length: int, num_keep: int, seed: Tensor, offset: int, groups: Tensor | None
) -> tuple[Tensor, Tensor]:
    ids_keep = seed.new_empty((batch, num_keep), dtype=torch.int32)
    ids_mask = seed.new_empty((batch, length - num_keep), dtype=torch.int32)
    if batch and length:
        sets = 0 if groups is None else len(groups)
        labels = seed if groups is None else groups.contiguous()
        block = next_power_of_2(length)
        warps = 4 if block <= 4096 else 16
        _random_mask_kernel[(batch,)](
            seed, labels, ids_keep, ids_mask, offset, num_keep, length, GROUPS=sets, BLOCK=block, num_warps=warps
        )
    return ids_keep, ids_mask


@torch.library.custom_op("maekernels::random_mask", mutates_args=(), device_types=PYTHON_CPU)
def _random_mask(
    batch: int, length: int, num_keep: int, seed: Tensor, offset: int, groups: Tensor | None
) -> tuple[Tensor, Tensor]:
    if groups is not None and groups.numel():
        low, high = (int(v) for v in groups.aminmax())
        check(low >= 0 and high < length, "groups", f"labels in [{low}, {high}]", f"in [0, {length})")
    return _reference(batch, length, num_keep, seed, offset, groups)


# torch.library.custom_op puts a Python autograd layer in front of every op, which takes longer than a mask does on a
# CPU. Integers have no gradient, so calls fall through it.
_NO_GRADIENT = torch.library.Library("maekernels", "IMPL")
for _key in ("AutogradCPU", "AutogradCUDA"):
    _NO_GRADIENT.impl("random_mask", torch.library.fallthrough_kernel, _key)


@_random_mask.register_fake
def _(batch, length, num_keep, seed, offset, groups):
    ids = (batch, num_keep), (batch, length - num_keep)
    return tuple(seed.new_empty(shape, dtype=torch.int32) for shape in ids)


def _launch_native(
    batch: int, length: int, num_keep: int, seed: Tensor, offset: int, groups: Tensor | None
) -> tuple[Tensor, Tensor]:
    ops = native_ops()
    if ops is None or length > NATIVE_LENGTH or not runs_native(seed.device):
        return _launch_random_mask(batch, length, num_keep, seed, offset, groups)
    labels = None if groups is None else groups.contiguous()
    return ops.random_mask(batch, length, num_keep, seed, offset, labels, current_stream(seed.device))


def _on_triton(
    batch: int, length: int, num_keep: int, seed: Tensor, offset: int, groups: Tensor | None
) -> tuple[Tensor, Tensor]:
    with torch.cuda.device_of(seed):
        return _launch_random_mask(batch, length, num_keep, seed, offset, groups)


register_cuda(_random_mask, _launch_native)
