"""How many Philox blocks a GPU makes in a second when it does nothing else: the integer limit of the noise ops.

The generator is Triton's own (`tl.randint4x`, Philox4x32-10), not ours: the limit does not move with what is measured.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

LANES, BLOCKS_PER_LANE = 256, 256


@triton.jit
def spin_kernel(out, LANES: tl.constexpr, BLOCKS: tl.constexpr):
    """Each lane makes BLOCKS blocks and stores the xor of all their words, so that none can be left out."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    kept = tl.zeros([LANES], dtype=tl.uint32)
    for i in range(BLOCKS):
        a, b, c, d = tl.randint4x(0, lane * BLOCKS + i)  # pyright: ignore[reportGeneralTypeIssues]
        kept ^= a.to(tl.uint32) ^ b.to(tl.uint32) ^ c.to(tl.uint32) ^ d.to(tl.uint32)
    tl.store(out + lane, kept.to(tl.int32, bitcast=True))


def launch(out: torch.Tensor) -> None:
    """Fill int32 `out`, a multiple of LANES long."""
    kernel: Any = spin_kernel  # pyright reads the annotations of a kernel as those of a function
    kernel[(out.numel() // LANES,)](out, LANES=LANES, BLOCKS=BLOCKS_PER_LANE)
