"""The order of the training stream: a pure function of (seed, position), the same for any number of processes.

`position` counts the samples seen since the first step, without end. Epoch = position // n; inside an epoch every clip
comes once, in the order of a Philox permutation keyed by (seed, epoch). A global step covers the positions
[p, p + G); rank r of W takes the contiguous slice [p + r G/W, p + (r + 1) G/W). Nothing else has to be remembered to
resume: the next position is enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from diffmavil.config import require

# Domains of the Philox counter, so that order, crops and substitutes never share random numbers.
_ORDER, _CROP, _SUBSTITUTE, _MIX, _RESAMPLE, _KEPT = range(6)
MIX_BLOCK = 1000
"""Positions in which several sets have exactly their shares, rounded to this."""
MAX_ATTEMPTS = 256
"""Clips tried for one position before it is given up."""


def generator(seed: int, key: int, domain: int, attempt: int = 0) -> np.random.Generator:
    """An independent stream for each (seed, key, domain, attempt)."""
    # The low counter words run on while numbers are drawn; the high ones tell the streams apart.
    return np.random.Generator(np.random.Philox(key=[seed, key], counter=[0, 0, domain, attempt]))


@lru_cache(maxsize=8)
def _permutation(n: int, seed: int, epoch: int, part: int = 0) -> np.ndarray:
    return _shuffled(n, generator(seed, epoch, _ORDER, part))


def _resample(ends: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """As many clips as there are, each by its share, in random order. ends: where each one's share of the n ends."""
    rng, n = generator(seed, epoch, _RESAMPLE), len(ends)
    start = (int(rng.bit_generator.random_raw()) >> 11) * 2.0**-53
    chosen = np.searchsorted(ends, start + np.arange(n), side="right").clip(max=n - 1)
    return chosen[_shuffled(n, rng)]


def _shuffled(n: int, rng: np.random.Generator) -> np.ndarray:
    # Sorting raw words: numpy keeps these for ever, but not what `Generator.permutation` makes of them.
    return np.argsort(rng.bit_generator.random_raw(n), kind="stable")


class ClipStream:
    """Which of `n` clips is at a position, and the random numbers of its crop.

    Args:
        parts: (clips, weight) of each of several sets that follow each other in the n. Then every `MIX_BLOCK` positions
            hold each set by its weight, in an order keyed by (seed, block), and each set has epochs of its own.
        often: positive numbers, one for each clip: in an epoch of n positions a clip comes by its share of their sum,
            rounded up or down at random (systematic resampling), in place of once. Of one set only.
    """

    def __init__(self, n: int, seed: int, parts: Sequence[tuple[int, float]] = (), often: Sequence[float] = ()) -> None:
        require(n >= 1, "n", n, "at least one clip")
        require(0 <= seed < 2**63, "seed", seed, "in [0, 2^63)")
        self.n = n
        self.seed = seed
        self.sizes = tuple(size for size, _ in parts) or (n,)
        require(sum(self.sizes) == n and min(self.sizes) > 0, "parts", parts, f"sets of some clips each, {n} together")
        known = not often or (len(often) == n and not parts and min(often) > 0)
        require(known, "often", f"{len(often)} numbers", f"{n} positive ones, of one set, or none")
        self._shares = np.cumsum(often) / sum(often) * n if often else None
        self._resampled: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))
        self.slots = _slots([weight for _, weight in parts] or [1.0])
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)]).tolist()

    def item(self, position: int) -> int:
        """Index of the clip at `position`."""
        part, inside = self._part(position)
        epoch, index = divmod(inside, self.sizes[part])
        if self._shares is not None:
            if self._resampled[0] != epoch:
                self._resampled = epoch, _resample(self._shares, self.seed, epoch)
            return int(self._resampled[1][index])
        return self.starts[part] + int(_permutation(self.sizes[part], self.seed, epoch, part)[index])

    def _part(self, position: int) -> tuple[int, int]:
        """The set that a position belongs to, and how many positions before it do."""
        if len(self.sizes) == 1:
            return 0, position
        block, place = divmod(position, MIX_BLOCK)
        order, before = _mix(self.slots, self.seed, block)
        part = int(order[place])
        return part, block * self.slots[part] + int(before[place])

    def candidates(self, position: int) -> Iterator[int]:
        """The clip at `position`, then its substitutes in the order to try them, each clip of its set at most once."""
        part, _ = self._part(position)
        n = self.sizes[part]
        rng = generator(self.seed, position, _SUBSTITUTE)
        if n <= MAX_ATTEMPTS:
            others = _shuffled(n, rng)
        else:
            others = rng.bit_generator.random_raw(MAX_ATTEMPTS) % n
        yield from dict.fromkeys([self.item(position), *(self.starts[part] + other for other in others.tolist())])

    def crop_rng(self, position: int, attempt: int = 0) -> np.random.Generator:
        """Random numbers for the crops of the clip tried at `position`."""
        return generator(self.seed, position, _CROP, attempt)

    def kept_crop(self, position: int, crops: int) -> int:
        """Which of a clip's `crops` kept crops is taken at `position`: the epochs of its set take them in turn."""
        part, inside = self._part(position)
        return inside // self.sizes[part] % crops

    def kept_rng(self, clip: int, crop: int) -> np.random.Generator:
        """Random numbers for a kept crop of the clip of that index."""
        return generator(self.seed, clip, _KEPT, crop)


def _slots(weights: Sequence[float]) -> tuple[int, ...]:
    """Weights as whole shares of `MIX_BLOCK`, none of them 0, by largest remainder."""
    share = np.array(weights, np.float64) / sum(weights) * MIX_BLOCK
    slots = np.maximum(1, np.floor(share).astype(np.int64))
    for part in np.argsort(slots - share, kind="stable")[: max(0, MIX_BLOCK - int(slots.sum()))]:
        slots[part] += 1
    slots[np.argmax(slots)] += MIX_BLOCK - slots.sum()
    return tuple(slots.tolist())


@lru_cache(maxsize=4)
def _mix(slots: tuple[int, ...], seed: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """The set at each position of a block, and how many positions of the block before it belong to the same set."""
    order = np.repeat(np.arange(len(slots)), slots)[_shuffled(MIX_BLOCK, generator(seed, block, _MIX))]
    before = np.empty(MIX_BLOCK, np.int64)
    for part, count in enumerate(slots):
        before[order == part] = np.arange(count)
    return order, before


def batches(start_position: int, global_batch: int, rank: int, world: int) -> Iterator[range]:
    """Without end, the positions of this rank's slice of each global step from `start_position` on."""
    require(global_batch % world == 0, "train.batch_size", global_batch, f"a multiple of the {world} processes")
    require(0 <= rank < world, "rank", rank, f"in [0, {world})")
    local = global_batch // world
    position = start_position
    while True:
        first = position + rank * local
        yield range(first, first + local)
        position += global_batch
