"""Philox4x32-10, the counter-based generator behind masks and noise (Salmon et al. 2011, "Parallel random numbers:
as easy as 1, 2, 3").

A 64-bit key and a 128-bit counter yield four uint32, without any state, so every random number of this package is a
pure function of

    key      seed (64 bits)
    counter  (block, stream, sample low 32 bits, sample high 32 bits);   element e: word e % 4 of block e // 4

and therefore identical on CPU and GPU, in any order, on any number of processes. `stream` separates the uses of one
seed: NOISE, MASK and the group sets of `random_mask` from MASK_GROUPS on.

Implementations: Python integers (`fold_in`), torch (int64 lanes holding uint32) and Triton. Normals use Box-Muller:
word pairs (0, 1) and (2, 3) determine radius sqrt(-2 ln(w/2^32 + 2^-33)) and angle 2 pi w'/2^32; |z| < 6.77.

Cost of a block, i.e. four words: 10 rounds of 2 wide multiplications and 2 three-input xors, 40 integer instructions
(and 20 additions for the key, which all lanes share).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from maekernels._checks import check, describe
from maekernels._triton import jit

if TYPE_CHECKING:
    import triton.language as tl
    from triton.language.extra import libdevice

NOISE, MASK, FOLD, MASK_GROUPS = 0, 1, 2, 16
"""Values of the counter's second word, one for each use."""

_MULTIPLY = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def fold_in(seed: int, *data: int) -> int:
    """A 63-bit seed derived from `seed` and the integers `data`; different data give an independent seed.

    Order matters, and `fold_in(s, a, b) == fold_in(fold_in(s, a), b)`. Integers have up to 64 bits, negative ones in
    two's complement.
    """
    for value in data:
        words = _block_of_ints(seed, (value & _LOW, FOLD, (value >> 32) & _LOW, 0))
        seed = (words[0] | words[1] << 32) & (2**63 - 1)
    return seed


def _block_of_ints(seed: int, counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(10):
        p0, p2 = _MULTIPLY[0] * c0, _MULTIPLY[1] * c2
        c0, c1, c2, c3 = (p2 >> 32) ^ c1 ^ k0, p2 & _LOW, (p0 >> 32) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def philox4x32(seed: Tensor, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four uint32 for each counter, as int64 tensors.

    Args:
        seed: int64, 0-d.
        c0, c1, c2, c3: int64 counters in [0, 2^32), broadcastable against each other.
    """
    k0, k1 = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(10):
        # int64 products wrap, but their 64 bits are correct. Words that are only xored keep garbage in the upper half;
        # those that are multiplied are masked. In place, because the cost is memory traffic.
        p0, p2 = c0 * _MULTIPLY[0], c2 * _MULTIPLY[1]
        c0 = ((p2 >> 32).bitwise_xor_(k0) ^ c1).bitwise_and_(_LOW)
        c2 = ((p0 >> 32).bitwise_xor_(k1) ^ c3).bitwise_and_(_LOW)
        c1, c3 = p2, p0
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1 & _LOW, c2, c3 & _LOW


def words(seed: Tensor, samples: Tensor, blocks: Tensor, stream: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four words of each block. int64 `samples` and `blocks` broadcast, e.g. [B, 1] and [NB] to [B, NB]."""
    return philox4x32(seed, blocks, torch.full_like(seed, stream), samples & _LOW, (samples >> 32) & _LOW)


def uint32(seed: int | Tensor, length: int, *, samples: Tensor, stream: int) -> Tensor:
    """The first `length` words of each sample. samples int64 [B] -> int64 [B, length], values in [0, 2^32)."""
    blocks = torch.arange((length + 3) // 4, device=samples.device)
    found = torch.stack(words(as_seed(seed, samples.device), samples[:, None], blocks, stream), dim=-1)
    return found.flatten(1)[:, :length]


def uniform(seed: int | Tensor, length: int, *, samples: Tensor, stream: int) -> Tensor:
    """float32 [B, length], uniform in [0, 1)."""
    return (uint32(seed, length, samples=samples, stream=stream) >> 8).float() * 2.0**-24


def normal(seed: int | Tensor, length: int, *, samples: Tensor, stream: int = NOISE) -> Tensor:
    """float32 [B, length], standard normal."""
    blocks = torch.arange((length + 3) // 4, device=samples.device)
    return normal_of_blocks(as_seed(seed, samples.device), samples[:, None], blocks, stream)[:, :length]


def normal_of_blocks(seed: Tensor, samples: Tensor, blocks: Tensor, stream: int = NOISE) -> Tensor:
    """The four normals of each block: samples [B, 1], blocks [B or 1, NB] -> float32 [B, 4 * NB]."""
    w = words(seed, samples, blocks, stream)
    pairs = [_box_muller(w[0], w[1]), _box_muller(w[2], w[3])]
    return torch.stack([z for pair in pairs for z in pair], dim=-1).flatten(-2)


def _box_muller(radius: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    r = radius.float().mul_(2.0**-32).add_(2.0**-33).log_().mul_(-2.0).sqrt_()
    theta = angle.float().mul_(2.0 * math.pi * 2.0**-32)
    return r * theta.cos(), r * theta.sin()


def as_seed(seed: int | Tensor, device: torch.device | None) -> Tensor:
    """`seed` as a 0-d int64 tensor on `device`; `ValueError` unless it is an int in [0, 2^63) or such a tensor."""
    if isinstance(seed, Tensor):
        here = device is None or (seed.device.type == device.type and device.index in (None, seed.device.index))
        if not (seed.dim() == 0 and seed.dtype == torch.int64 and here):  # build the message only on error: it is slow
            check(False, "seed", describe(seed), f"an int, or a 0-d int64 tensor on {device or 'any device'}")
        return seed
    # A float would be truncated: every value of random.random() would be seed 0.
    allowed = "an int in [0, 2^63), or a 0-d int64 tensor"
    check(not isinstance(seed, float) and 0 <= seed < 2**63, "seed", seed, allowed)
    return torch.full((), seed, dtype=torch.int64, device=device)


@jit
def philox_words(seed, stream: tl.constexpr, sample, block):
    """The four uint32 words of each block. seed and sample are integers, block is int32; they broadcast."""
    sample = tl.cast(sample, tl.int64)
    low = (sample & 0xFFFFFFFF).to(tl.uint32)
    high = ((sample >> 32) & 0xFFFFFFFF).to(tl.uint32)
    return tl.philox(seed, block, stream, low, high)


@jit
def philox_normal(seed, sample, element):
    """One normal of the stream NOISE per element, each from a whole block: for sizes not divisible by 8."""
    w0, w1, w2, w3 = philox_words(seed, 0, sample, element // 4)
    second = element % 4 >= 2
    z0, z1 = box_muller(tl.where(second, w2, w0), tl.where(second, w3, w1), False)
    return tl.where(element % 2 == 0, z0, z1)


@jit
def philox_normals8(seed, sample, pair, FAST: tl.constexpr):
    """Eight normals of the stream NOISE for each pair of blocks (2 * pair, 2 * pair + 1): tile [R, W] -> [R, 8 * W].

    A thread then holds eight contiguous elements: 16 bytes of a 16-bit type, without going through shared memory.
    """
    a0, a1, a2, a3 = philox_words(seed, 0, sample, pair * 2)
    b0, b1, b2, b3 = philox_words(seed, 0, sample, pair * 2 + 1)
    z0, z1 = box_muller(a0, a1, FAST)
    z2, z3 = box_muller(a2, a3, FAST)
    z4, z5 = box_muller(b0, b1, FAST)
    z6, z7 = box_muller(b2, b3, FAST)
    # join adds its axis last: the bits of the element index, lowest first.
    even = tl.join(tl.join(z0, z4), tl.join(z2, z6))
    odd = tl.join(tl.join(z1, z5), tl.join(z3, z7))
    return tl.reshape(tl.join(even, odd), [pair.shape[0], pair.shape[1] * 8])


@jit
def box_muller(radius, angle, FAST: tl.constexpr):
    """Two normals from two words. FAST: use the hardware's log2, cos and sin.

    Their error is below 1e-5, and below 1e-3 where the radius is under 0.04: within the rounding of 16-bit results.
    Otherwise cos and sin are polynomials on an eighth of the circle, because the library functions have a slow path
    that uses local memory.
    """
    u = radius.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10
    if FAST:
        log2 = tl.cast(libdevice.fast_log2f(u), tl.float32)
        r = tl.sqrt(tl.maximum(-1.3862943611198906 * log2, 0.0))
        theta = angle.to(tl.int32, bitcast=True).to(tl.float32) * 1.4629180792671596e-09
        return r * libdevice.fast_cosf(theta), r * libdevice.fast_sinf(theta)
    r = tl.sqrt(tl.maximum(-1.3862943611198906 * tl.log2(u), 0.0))
    # Nearest multiple of a quarter turn, and the remainder x in [-pi/4, pi/4): modulo 2^32, which TRITON_DEBUG would
    # report as an overflow.
    quarter = (angle >> 30) + ((angle >> 29) & 1)
    rest = tl.sub(angle, quarter << 30, sanitize_overflow=False)  # pyright: ignore[reportArgumentType]
    x = rest.to(tl.int32, bitcast=True).to(tl.float32) * 1.4629180792671596e-09
    x2 = x * x
    sine = x + x * x2 * (-1.6666654611e-1 + x2 * (8.3321608736e-3 - x2 * 1.9515295891e-4))
    cosine = (
        1.0 - 0.5 * x2 + x2 * x2 * (4.166664568298827e-2 + x2 * (-1.388731625493765e-3 + x2 * 2.443315711809948e-5))
    )
    swapped = (quarter & 1) != 0
    c = tl.where(swapped, sine, cosine)
    s = tl.where(swapped, cosine, sine)
    return r * tl.where(((quarter + 1) & 2) != 0, -c, c), r * tl.where((quarter & 2) != 0, -s, s)
