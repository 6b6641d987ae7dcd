"""A clock that stands still while the process is suspended: a paused job must not lose the clips it was at.

A scheduler's SIGSTOP can be neither caught nor seen afterwards, and every clock of the system goes on meanwhile. So a
thread looks at the time a few times a second, and what passed between two looks counts for a second at most.
"""

from __future__ import annotations

import os
import threading
import time

_LOOK = 0.25
_MOST = 1.0


class _Watch:
    """Of one process: a thread does not survive a fork."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._seen = (0.0, time.monotonic())  # awake seconds, and when that was; replaced whole
        threading.Thread(target=self._look, name="awake", daemon=True).start()

    def _look(self) -> None:
        while True:
            time.sleep(_LOOK)
            self._seen = (self.seconds(), time.monotonic())

    def seconds(self) -> float:
        awake, when = self._seen
        return awake + min(time.monotonic() - when, _MOST)


_watch: _Watch | None = None


def awake_seconds() -> float:
    """Seconds since the first call in this process, less those in which it was suspended."""
    global _watch
    if _watch is None or _watch.pid != os.getpid():
        _watch = _Watch()
    return _watch.seconds()
