"""Stands in for the commands of the study of quality."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from benchmarks import quality

SCORES = {"probe/audio": 0.8, "probe/fused": 0.9, "audio_to_video/recall@1": 0.1}


class Commands:
    """Stands in for `Processes.python`: notes what is given, and how many ran at once. The first waits until `together`
    do."""

    def __init__(self) -> None:
        self.given: list[tuple[str, ...]] = []
        self.fails = ""
        self.most = self._now = 0
        self.together = 1
        self._lock = threading.Condition()

    def python(self, *arguments: str) -> float:
        with self._lock:
            self.given.append(arguments)
            self._now += 1
            self.most = max(self.most, self._now)
            self._lock.notify_all()
            self._lock.wait_for(lambda: self.most >= self.together, timeout=60)
        time.sleep(0.02)
        with self._lock:
            self._now -= 1
        if self.fails and self.fails in " ".join(arguments):
            raise RuntimeError("python -m diffmavil.train ended with 1:\nno luck")
        return 5.0

    def flags(self, name: str) -> list[str]:
        return [" ".join(command[1:]) for command in self.given if command[0] == name]


def study(folder: Path, name: str, *flags: str) -> int:
    data = [] if name == "synthetic" else ["--data", str(folder)]
    return quality.main([name, *data, "--json", str(folder / "out.jsonl"), *flags])
