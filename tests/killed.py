"""Trainings that are killed."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from diffmavil.training.checkpoint import checkpoints


def kill_after_two_checkpoints(command: Sequence[str], run_dir: Path, environment: dict[str, str]) -> None:
    """Start a training, and kill it with signal 9 once it has written its second checkpoint."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 240
    while len(checkpoints(run_dir)) < 2:
        assert time.monotonic() < deadline, "the run never wrote its second checkpoint"
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, output
