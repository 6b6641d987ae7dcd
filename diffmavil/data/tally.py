"""Which clips of a set were tried so far, which of them were bad, and whether that is too many."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

_TRIED, _BAD = 1, 2
_SURE = 4.0
"""Standard deviations by which the share of bad clips must lie above the limit while clips are left to be tried."""


class Tally:
    """Counts each clip once, however often it comes. It belongs to a run: `as_json` goes into checkpoints.

    Attributes:
        reasons: file -> reason, of every bad clip.
    """

    def __init__(self, clips: int) -> None:
        self.reasons: dict[str, str] = {}
        self._seen = np.zeros(clips, np.uint8)
        self.tried = self.bad = 0

    def count(self, tried: Sequence[int], bad: Sequence[tuple[int, str, str]]) -> None:
        """Clips by their index; of the bad ones file and reason too."""
        for clip in tried:
            self.tried += not self._seen[clip]
            self._seen[clip] |= _TRIED
        for clip, path, reason in bad:
            self.bad += not self._seen[clip] & _BAD
            self._seen[clip] |= _BAD
            self.reasons.setdefault(path, reason)

    def too_many(self, most: float) -> bool:
        """Whether the share of bad clips is above `most`: of all clips for sure, or of those tried beyond chance.

        Beyond chance: the lower end of Wilson's interval is, so that a set a little below the limit is not given
        up for an unlucky start.
        """
        if self.tried >= len(self._seen) or most == 0:
            return self.bad > most * self.tried
        n, share, z = self.tried, self.bad / self.tried, _SURE
        middle, spread = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
        return (middle - spread) / (1 + z**2 / n) > most

    def as_json(self) -> dict[str, Any]:
        bits = {"tried": self._seen > 0, "bad": self._seen & _BAD > 0}
        packed = {name: base64.b64encode(np.packbits(found).tobytes()).decode() for name, found in bits.items()}
        return {"clips": len(self._seen), **packed, "reasons": self.reasons}

    def add(self, found: dict[str, Any]) -> None:
        """Count what another tally of the same clips gave as JSON: of another process, or before a resume.

        Of other clips nothing is known: it is left out.
        """
        if found.get("clips") != len(self._seen):
            return
        for name, value in (("tried", _TRIED), ("bad", _BAD)):
            bits = np.frombuffer(base64.b64decode(found[name]), np.uint8)
            self._seen |= value * np.unpackbits(bits, count=len(self._seen))
        self.tried, self.bad = int((self._seen > 0).sum()), int((self._seen & _BAD > 0).sum())
        self.reasons |= {path: reason for path, reason in found["reasons"].items() if path not in self.reasons}
