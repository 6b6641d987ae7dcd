"""The minimum work of each op: bytes that must move, FLOPs, Philox blocks. They determine the limit of its time.

    python -m benchmarks.counts        # the table of docs/kernels.md

The counts belong to the op, not to a provider: eager code that moves more is slower at the same counts. Bytes: each
input read once and each output written once, activations in the dtype of the case, ids int32, pixels in whole 32-byte
sectors. FLOPs: one for each addition, multiplication, root, exponential, logarithm, sine and cosine. `both` is forward
and backward together; if the gradient can be computed in the same pass (`masked_mse`), it is that pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.cases import CASES, Case

SECTOR = 32
ID_BYTES = 4
TARGET_BYTES = 8  # of a class index, as torch requires it

# FLOPs per element of a patch.
_NORMALISE = 2  # scale and shift of a channel
_NORM_PIX = 5  # mean, centre, variance (2), scale
_NOISE = 8  # Box-Muller: 10 for a pair of normals; mixing with the signal: 3
_SQUARE = 3  # difference, square, sum


@dataclass(frozen=True)
class Count:
    bytes: int
    flops: int = 0
    philox_blocks: int = 0
    """Each yields four uint32."""

    def __add__(self, other: Count) -> Count:
        return Count(self.bytes + other.bytes, self.flops + other.flops, self.philox_blocks + other.philox_blocks)


def pixel_bytes(case: Case, tokens: int) -> int:
    """Expected bytes of the sectors that contain `tokens` random patches of a sample.

    A row of a 16x16 RGB patch is 48 bytes: patches share sectors, and a sector is read if any of its patches is
    selected.
    """
    item = 4 if case.kind == "spectrogram" else 1
    row = case.patch[-1] * len(case.mean) * item
    line = case.size[-1] * len(case.mean) * item
    share = tokens / case.tokens
    touched = 0.0
    for first in range(0, line, SECTOR):
        overlapping = (min(first + SECTOR, line) - 1) // row - first // row + 1
        touched += 1 - (1 - share) ** overlapping
    return round(touched * SECTOR * math.prod(case.size[:-1]))


def count(op: str, case: Case, batch: int, dtype: torch.dtype, mode: str) -> Count:
    """The work of `op` on `batch` samples (for `info_nce`, rows) in mode 'fwd', 'bwd' or 'both'."""
    fwd, bwd, both = (_COUNTS | _ROW_COUNTS)[op](case, batch, dtype.itemsize)
    found = {"fwd": fwd, "bwd": bwd, "both": both}[mode]
    if found is None:
        raise ValueError(f"mode={mode!r}: {op} has no backward")
    return found


Modes = tuple[Count, Count | None, Count | None]


def _random_mask(case: Case, batch: int, item: int) -> Modes:
    blocks = batch * -(-case.tokens // 4)
    return Count(batch * case.tokens * ID_BYTES, philox_blocks=blocks), None, None


def _patchify(case: Case, batch: int, item: int) -> Modes:
    elements = batch * case.kept * case.patch_dim
    moved = batch * (pixel_bytes(case, case.kept) + case.kept * ID_BYTES) + elements * item
    return Count(moved, elements * _NORMALISE), None, None


def _gather_tokens(case: Case, batch: int, item: int) -> Modes:
    row, ids = case.width * item, case.kept * ID_BYTES
    fwd = Count(batch * (2 * case.kept * row + ids))
    bwd = Count(batch * ((case.kept + case.tokens) * row + ids))
    return fwd, bwd, fwd + bwd


def _scatter_tokens(case: Case, batch: int, item: int) -> Modes:
    row, ids = case.decoder_width * item, case.kept * ID_BYTES
    fwd = Count(batch * ((case.kept + case.tokens) * row + ids) + row)
    # The gradient of the fill sums every masked row.
    bwd = Count(fwd.bytes, batch * case.masked * case.decoder_width)
    return fwd, bwd, fwd + bwd


def _add_noise(case: Case, batch: int, item: int) -> Modes:
    elements = batch * case.masked * case.patch_dim
    moved = 2 * elements * item + batch * 4
    fwd = Count(moved, elements * _NOISE, elements // 4)
    bwd = Count(moved, elements)
    return fwd, bwd, fwd + bwd


def _diffuse_patches(case: Case, batch: int, item: int) -> Modes:
    elements = batch * case.masked * case.patch_dim
    moved = batch * (pixel_bytes(case, case.masked) + case.masked * ID_BYTES + 4) + elements * item
    return Count(moved, elements * (_NORMALISE + _NORM_PIX + _NOISE), elements // 4), None, None


def _masked_mse(case: Case, batch: int, item: int) -> Modes:
    elements = batch * case.masked * case.patch_dim
    read = batch * (pixel_bytes(case, case.masked) + case.masked * ID_BYTES) + elements * item
    target = elements * (_NORMALISE + _NORM_PIX)
    fwd = Count(read, target + elements * _SQUARE)
    bwd = Count(read + elements * item, target + elements * 2)
    return fwd, bwd, Count(read + elements * item, fwd.flops + elements)


def _info_nce(case: Case, pairs: int, item: int) -> Modes:
    rows, product = pairs * case.width, 2 * pairs * pairs * case.width
    exponentials = 5 * pairs * pairs  # scale, and exponential and sum in both directions
    fwd = Count(2 * rows * item, product + exponentials + 6 * rows)
    bwd = Count(4 * rows * item, 2 * product + exponentials + 6 * rows)
    return fwd, bwd, fwd + bwd


_COUNTS: dict[str, Callable[[Case, int, int], Modes]] = {
    "random_mask": _random_mask,
    "patchify": _patchify,
    "gather_tokens": _gather_tokens,
    "scatter_tokens": _scatter_tokens,
    "add_noise": _add_noise,
    "diffuse_patches": _diffuse_patches,
    "masked_mse": _masked_mse,
    "info_nce": _info_nce,
}


def _softmax(case: Case, batch: int, item: int) -> Modes:
    elements = batch * case.masked * case.patch_dim
    return Count(2 * elements * item, 4 * elements), None, None  # centre, exponential, sum, scale


def _rms_norm(case: Case, batch: int, item: int) -> Modes:
    elements = batch * case.kept * case.width
    return Count(2 * elements * item + case.width * item, 4 * elements), None, None  # square, sum, scale, weight


def _layer_norm(case: Case, batch: int, item: int) -> Modes:
    elements = batch * case.kept * case.width
    return Count(2 * elements * item + 2 * case.width * item, (_NORM_PIX + 2) * elements), None, None


def _cross_entropy(case: Case, batch: int, item: int) -> Modes:
    rows = batch * case.masked
    moved = rows * (case.patch_dim * item + TARGET_BYTES + item)
    return Count(moved, 3 * rows * case.patch_dim), None, None  # centre, exponential, sum


_ROW_COUNTS: dict[str, Callable[[Case, int, int], Modes]] = {
    "softmax": _softmax,
    "rms_norm": _rms_norm,
    "layer_norm": _layer_norm,
    "cross_entropy": _cross_entropy,
}
"""The ops of `row_ops.py`: not ours, and so not in the table."""


def limit_table(case: Case, dtype: torch.dtype, pairs: int) -> str:
    """Markdown: the counts of one clip, forward and with backward."""
    lines = [
        "| op | forward: MB moved | MFLOP | Philox blocks | with backward: MB moved | MFLOP |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for op, modes in _COUNTS.items():
        fwd, _, both = modes(case, pairs if op == "info_nce" else 1, dtype.itemsize)
        cells = [
            f"{fwd.bytes / 1e6:.3f}",
            f"{fwd.flops / 1e6:,.1f}",
            f"{fwd.philox_blocks:,}" if fwd.philox_blocks else "",
        ]
        cells += [f"{both.bytes / 1e6:.3f}", f"{both.flops / 1e6:,.1f}"] if both else ["", ""]
        lines.append(f"| `{op}` | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(limit_table(CASES["base-16-frames"], torch.bfloat16, pairs=512))
