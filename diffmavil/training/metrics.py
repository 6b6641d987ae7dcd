"""What a run says: metrics.jsonl, boards for curves, and one live line (plain lines when not on a terminal)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from diffmavil.config.progress import format_seconds
from diffmavil.data.durable import write_whole
from diffmavil.training.boards import Board, Boards

METRICS_FILE = "metrics.jsonl"
Metrics = dict[str, float]
"""NaN where there is nothing to tell, as of the loss of an interval whose steps were all skipped; in the file: null."""


def read_metrics(run_dir: Path) -> list[Metrics]:
    """The records of a run; a last line cut off by a kill is left out."""
    path = run_dir / METRICS_FILE
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        records.append({name: math.nan if value is None else value for name, value in record.items()})
    return records


def _line(metrics: Metrics) -> str:
    """A record as it stands in the file: JSON, which has no NaN."""
    plain = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    return json.dumps(plain, allow_nan=False) + "\n"


class RunLog:
    """Writes each record to every place; on resume, records past the checkpoint are dropped first."""

    def __init__(self, run_dir: Path, boards: Sequence[Board], *, resumed_step: int, total_steps: int) -> None:
        kept = [r for r in read_metrics(run_dir) if r["step"] <= resumed_step]
        path = run_dir / METRICS_FILE
        write_whole(path, "".join(map(_line, kept)).encode())
        self._file = path.open("a")
        self._boards = Boards(boards)
        self._total = total_steps
        self.console = Console()
        self._live = Live(console=self.console, refresh_per_second=4) if self.console.is_terminal else None

    def __enter__(self) -> RunLog:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
        self._file.close()
        for line in self._boards.close(failed=kind is not None):
            self.say(line)

    def say(self, message: str) -> None:
        """One line above the live line."""
        self.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def record(self, metrics: Metrics, eta_seconds: float) -> None:
        self._file.write(_line(metrics))
        self._file.flush()
        os.fsync(self._file.fileno())
        for line in self._boards.record(metrics, int(metrics["step"])):
            self.say(line)
        line = progress_line(metrics, self._total, eta_seconds)
        if self._live:
            self._live.update(Text(line))
        else:
            self.say(line)


def progress_line(m: Metrics, total_steps: int, eta_seconds: float) -> str:
    """The state of a run in one line."""
    parts_of_loss = [f"{name.removeprefix('loss/')} {m[name]:.3f}" for name in m if name.startswith("loss/")]
    loss = f"loss {m['loss']:.4f}" + (f" ({' '.join(parts_of_loss)})" if parts_of_loss else "")
    if math.isnan(m["loss"]):
        loss = "no loss (all steps skipped)"
    seen = [f"{name.replace('/', ' ')} {m[name]:.3f}" for name in m if name.startswith("val/")][:1]
    ratios = [f"{m[name]:.3f}" for name in m if name.startswith("mask_ratio/")]
    parts = [
        f"step {m['step']:.0f}/{total_steps}",
        loss,
        *seen,
        *([f"mask {'/'.join(ratios)}"] if ratios else []),
        f"batch {m['batch_size']:.0f}",
        f"lr {m['lr']:.2e}",
        f"{m['clips_per_second']:.1f} clips/s",
        _rate(m["gflop_per_second"]),
        f"data wait {m['data_wait']:.0%}",
        f"ETA {format_seconds(eta_seconds)}",
    ]
    if m["nonfinite_steps"]:
        parts.append(f"{m['nonfinite_steps']:.0f} steps skipped (non-finite)")
    if m["bad_clips"]:
        parts.append(f"{m['bad_clips']:.0f} bad clips")
    return " | ".join(parts)


def _rate(gflop_per_second: float) -> str:
    return f"{gflop_per_second / 1000:.1f} TFLOP/s" if gflop_per_second >= 1000 else f"{gflop_per_second:.0f} GFLOP/s"
