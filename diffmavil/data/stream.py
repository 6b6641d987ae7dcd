"""The order of the training stream: a pure function of (seed, position), the same for any number of processes.

`position` counts the samples seen since the first step, without end. Epoch = position // n; inside an epoch every clip
comes once, in the order of a Philox permutation keyed by (seed, epoch). A global step covers the positions
[p, p + G); rank r of W takes the contiguous slice [p + r G/W, p + (r + 1) G/W). Nothing else has to be remembered to
resume: the next position is enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from diffmavil.config import require

# Domains of the Philox counter, so that order, crops and substitutes never share random numbers.
_ORDER, _CROP, _SUBSTITUTE = 0, 1, 2
MAX_ATTEMPTS = 256
"""Clips tried for one position before it is given up."""


def generator(seed: int, key: int, domain: int, attempt: int = 0) -> np.random.Generator:
    """An independent stream for each (seed, key, domain, attempt)."""
    # The low counter words run on while numbers are drawn; the high ones tell the streams apart.
    return np.random.Generator(np.random.Philox(key=[seed, key], counter=[0, 0, domain, attempt]))


@lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return _shuffled(n, generator(seed, epoch, _ORDER))


def _shuffled(n: int, rng: np.random.Generator) -> np.ndarray:
    # Sorting raw words: numpy keeps these for ever, but not what `Generator.permutation` makes of them.
    return np.argsort(rng.bit_generator.random_raw(n), kind="stable")


class ClipStream:
    """Which of `n` clips is at a position, and the random numbers of its crop."""

    def __init__(self, n: int, seed: int) -> None:
        require(n >= 1, "n", n, "at least one clip")
        require(0 <= seed < 2**63, "seed", seed, "in [0, 2^63)")
        self.n = n
        self.seed = seed

    def item(self, position: int) -> int:
        """Index of the clip at `position`."""
        epoch, index = divmod(position, self.n)
        return int(_permutation(self.n, self.seed, epoch)[index])

    def candidates(self, position: int) -> Iterator[int]:
        """The clip at `position`, then its substitutes in the order to try them, each clip at most once."""
        rng = generator(self.seed, position, _SUBSTITUTE)
        if self.n <= MAX_ATTEMPTS:
            others = _shuffled(self.n, rng)
        else:
            others = rng.bit_generator.random_raw(MAX_ATTEMPTS) % self.n
        yield from dict.fromkeys([self.item(position), *others.tolist()])

    def crop_rng(self, position: int, attempt: int = 0) -> np.random.Generator:
        """Random numbers for the crops of the clip tried at `position`."""
        return generator(self.seed, position, _CROP, attempt)


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
