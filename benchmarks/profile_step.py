"""Where the time of a training step goes: its kernels, the gaps between them, and the host's waits.

    python benchmarks/profile_step.py --device cuda --compile --trace trace.json.gz
    python benchmarks/profile_step.py --device cpu          # ops in place of kernels: what Python costs between them

The whole step of `diffmavil.train` on clips that are on the device already: log-mel, augmentation, forward, backward,
clipping, update. The trace opens in chrome://tracing or Perfetto.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:
    # Run by path: Python puts this folder first, where kernels.py would hide the package `kernels` of the Hub.
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), str(here.parent / "kernels"), *(p for p in sys.path if Path(p).resolve() != here)]

import torch
from rich.console import Console
from rich.table import Table
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.identity import identity
from benchmarks.kernels import write
from diffmavil.config import Config
from diffmavil.config.presets import PRESETS
from diffmavil.data.loader import Batch
from diffmavil.training.distributed import World
from diffmavil.training.planner import plan
from diffmavil.training.pretraining import Pretraining
from diffmavil.training.step import TrainStep

_WARM_UP = 5
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
"""Calls in which the host waits for the device."""


class Span(NamedTuple):
    """One kernel, copy or op; microseconds."""

    name: str
    start: float
    end: float


class Gap(NamedTuple):
    """Between two spans nothing ran for `length` microseconds."""

    before: str
    after: str
    length: float


def gaps(spans: Iterable[Span]) -> list[Gap]:
    """Every time at which none of the spans, which may overlap, was running."""
    found: list[Gap] = []
    last: Span | None = None
    for span in sorted(spans, key=lambda span: span.start):
        if last is not None and span.start > last.end:
            found.append(Gap(last.name, span.name, span.start - last.end))
        if last is None or span.end > last.end:
            last = span
    return found


def make_step(config: Config, device: torch.device, clips: int) -> tuple[TrainStep, Batch]:
    """The step that `diffmavil.train` makes of the config, and random clips for it."""
    task = Pretraining(config, device)
    step = TrainStep(task, config, World(rank=0, size=1, device=device))
    video, _ = task.random_inputs(clips)
    wave = torch.randn(clips, config.model.audio.samples, generator=torch.Generator().manual_seed(1)).to(device)
    valid = torch.full((clips,), wave.shape[1], dtype=torch.int64, device=device)
    position = torch.arange(clips, device=device)
    return step, Batch(video, wave, valid, [()] * clips, position, [""] * clips)


def record(step: TrainStep, batch: Batch, steps: int) -> tuple[profile, float]:
    """A profile of some steps, and the wall-clock seconds of one without the profiler."""
    now = plan(step.config, 0)

    def run(count: int) -> None:
        for _ in range(count):
            step(batch, now, 0)
        if step.device.type == "cuda":
            torch.cuda.synchronize(step.device)

    run(_WARM_UP)
    begin = time.perf_counter()
    run(steps)
    seconds = (time.perf_counter() - begin) / steps
    activities = [ProfilerActivity.CPU]
    if step.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, acc_events=True) as profiled:
        run(steps)
    return profiled, seconds


def spans_of(profiled: profile, device: torch.device) -> tuple[list[Span], Counter[str]]:
    """What ran on the device, and how often the host waited for it."""
    kind = DeviceType.CUDA if device.type == "cuda" else DeviceType.CPU
    # On a GPU an optimiser's name spans all its kernels: no kernel of its own.
    events = [event for event in profiled.events() or [] if not event.is_user_annotation]
    spans = [Span(e.name, e.time_range.start, e.time_range.end) for e in events if e.device_type == kind]
    return spans, Counter(e.name for e in events if e.name in _WAITS)


def summarise(spans: Sequence[Span], steps: int) -> dict[str, Any]:
    """Milliseconds and launches of one step; the share of time in which nothing ran."""
    between = gaps(spans)
    whole = max(span.end for span in spans) - min(span.start for span in spans)
    idle = sum(gap.length for gap in between)
    return {
        "span_ms": whole / steps * 1e-3,
        "busy_ms": (whole - idle) / steps * 1e-3,
        "idle": idle / whole if whole else 0.0,
        "launches": len(spans) / steps,
    }


def tables(spans: Sequence[Span], steps: int, most: int) -> list[Table]:
    """What takes longest, and between what the device idles longest; of one step."""
    kernels: dict[str, list[float]] = defaultdict(list)
    for span in spans:
        kernels[span.name].append(span.end - span.start)
    idle: dict[str, list[float]] = defaultdict(list)
    for gap in gaps(spans):
        idle[f"{gap.before[:48]} .. {gap.after[:48]}"].append(gap.length)
    shown = []
    for title, groups in (("kernels", kernels), ("gaps between kernels", idle)):
        table = Table(title=title, title_justify="left")
        for name in ("", "us", "count"):
            table.add_column(name, justify="right" if name else "left", no_wrap=True)
        for name, times in sorted(groups.items(), key=lambda item: -sum(item[1]))[:most]:
            table.add_row(name[:100], f"{sum(times) / steps:,.0f}", f"{len(times) / steps:,.1f}")
        shown.append(table)
    return shown


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/profile_step.py", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--preset", choices=PRESETS, help="default: diffmavil-tiny-fast on a CPU, diffmavil-base-fast on a GPU")
    add("--frames", type=int, help="default: the preset's")
    add("--batch", type=int, help="clips of a step (default: 8 on a CPU, 64 on a GPU)")
    add("--steps", type=int, default=3, help="steps that are recorded (default 3)")
    add("--compile", action="store_true", help="with compiled blocks")
    add("--cuda-graph", action="store_true", help="forward and backward replayed as a CUDA graph")
    add("--top", type=int, default=20, help="rows of the tables (default 20)")
    add("--trace", type=Path, metavar="FILE", help="write the trace there (.json or .json.gz)")
    add("--json", type=Path, metavar="FILE", help="append a line of JSON")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    if args.cuda_graph and args.device == "cpu":
        parser.error("--cuda-graph: needs --device cuda")
    for name, least in (("frames", 2), ("batch", 1), ("steps", 1), ("top", 1)):
        given = getattr(args, name)
        if given is not None and given < least:
            parser.error(f"--{name} {given}: must be at least {least}")
    args.preset = args.preset or f"diffmavil-{'base' if args.device == 'cuda' else 'tiny'}-fast"
    return args


def make_config(args: argparse.Namespace, clips: int) -> Config:
    config = PRESETS[args.preset]
    model = config.model
    video = replace(model.video, frames=args.frames or model.video.frames)
    # Statistics of AudioSet; any would do.
    model = replace(model, video=video, audio=replace(model.audio, mean=-4.2677393, std=4.5689974))
    train = replace(config.train, batch_size=clips, compile=args.compile, cuda_graph=args.cuda_graph)
    return replace(config, model=model, train=train)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    console = Console(width=None if sys.stdout.isatty() else 132)
    device = torch.device(args.device)
    clips = args.batch or (64 if args.device == "cuda" else 8)
    config = make_config(args, clips)
    profiled, seconds = record(*make_step(config, device, clips), args.steps)
    if args.trace:
        args.trace.parent.mkdir(parents=True, exist_ok=True)
        profiled.export_chrome_trace(str(args.trace))
    spans, waits = spans_of(profiled, device)
    found = summarise(spans, args.steps)
    console.print(
        f"a step of {clips} clips takes {seconds * 1e3:.2f} ms; with the profiler {found['span_ms']:.2f} ms, of which "
        f"the device was idle {found['idle']:.1%}; {found['launches']:,.0f} launches; the host waited: "
        f"{', '.join(f'{name} {count}' for name, count in waits.items()) or 'never'}",
        highlight=False,
    )
    for table in tables(spans, args.steps, args.top):
        console.print(table)
    if args.json:
        line = {
            "preset": args.preset,
            "frames": config.model.video.frames,
            "batch": clips,
            "compile": args.compile,
            "cuda_graph": args.cuda_graph,
            "step_ms": seconds * 1e3,
            **found,
            "waits": dict(waits),
            **identity(device),
        }
        write(args.json, line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
