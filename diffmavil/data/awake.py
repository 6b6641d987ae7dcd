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
    def __init__(self) -> None:
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
    return (_watch or _start()).seconds()


def _start() -> _Watch:
    global _watch
    _watch = _Watch()
    return _watch


def _forget() -> None:
    """A thread does not survive a fork."""
    global _watch
    _watch = None


os.register_at_fork(after_in_child=_forget)
