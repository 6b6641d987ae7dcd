"""Token indexing shared by gather, scatter and the backward pass of patchify.

Shapes: ids [B, K], unique within a sample, out of N tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from maekernels._triton import jit, next_power_of_2

if TYPE_CHECKING:
    import triton.language as tl


def flat_rows(ids: Tensor, length: int) -> Tensor:
    """Row indices into [B * N, D], int64 [B * K]."""
    return (torch.arange(ids.shape[0], device=ids.device)[:, None] * length + ids).flatten()


@jit
def _inverse_kernel(ids_ptr, inverse_ptr, N, K, BLOCK: tl.constexpr):
    """Invert the ids of one sample: inverse[ids[k]] = k, -1 elsewhere."""
    batch = tl.program_id(0).to(tl.int64)
    ids_ptr += batch * K
    inverse_ptr += batch * N
    for first in range(0, N, BLOCK):
        n = first + tl.arange(0, BLOCK)
        tl.store(inverse_ptr + n, tl.full([BLOCK], -1, tl.int32), mask=n < N)
    tl.debug_barrier()  # the same addresses are written again, by other threads of this program
    for first in range(0, K, BLOCK):
        k = first + tl.arange(0, BLOCK)
        token = tl.load(ids_ptr + k, mask=k < K, other=0)
        # An out-of-range id, which the CPU path refuses, must not write to another sample or out of bounds.
        tl.store(inverse_ptr + token, k, mask=(k < K) & (token >= 0) & (token < N))


def launch_inverse(ids: Tensor, length: int) -> Tensor:
    """int32 [B, length]: the k for which ids[b, k] is the token, -1 if there is none. Out-of-range ids are skipped."""
    ids = ids.contiguous()
    inverse = ids.new_empty((len(ids), length), dtype=torch.int32)
    if inverse.numel():
        block = min(1024, next_power_of_2(length))
        _inverse_kernel[(len(ids),)](ids, inverse, length, ids.shape[1], BLOCK=block)
    return inverse
