"""Making a set once and keeping it: cache folder, worker processes, locking, progress.

A clip depends on nothing but (generator version, style, seed, split, index), so clips are kept in a pool and each set
is a folder of links to the first clips of the pool with its own `clips.csv`:

    CACHE/synthetic-v3-6c1f0a9b-seed0/pool/train/00000.mp4 ...
    CACHE/synthetic-v3-6c1f0a9b-seed0/train-768/00000.mp4 ... clips.csv

Every file is written under a temporary name and renamed, and `clips.csv` is written last: a run that is killed leaves
nothing half-made, and the next continues with the clips that are missing.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from diffmavil.config import require
from diffmavil.config.folders import expand
from diffmavil.config.progress import tracking
from diffmavil.data.cores import usable_cores
from diffmavil.data.locks import Held, hold
from diffmavil.data.synthetic.encode import encode_clip
from diffmavil.data.synthetic.latents import (
    SECONDS,
    SPLITS,
    SceneStyle,
    Split,
    clip_kind,
    clip_latents,
    stream,
)
from diffmavil.data.synthetic.scene import FPS, render_video
from diffmavil.data.synthetic.sound import RATE, render_sound

GENERATOR_VERSION = 3
"""Raised whenever the same latents would give other clips; a change of style renames the folder by itself."""

_LEAST_PER_WORKER = 16  # a process costs about as much to start as this many clips to make


@dataclass(frozen=True)
class Job:
    """The first `clips` clips of a split."""

    folder: Path
    split: Split
    clips: int
    seed: int
    style: SceneStyle

    def path(self, index: int) -> Path:
        return self.folder / "pool" / self.split / f"{index:05d}.mp4"

    def missing(self) -> list[int]:
        return [index for index in range(self.clips) if not self.path(index).exists()]


def ensure_synthetic(
    cache_dir: Path,
    split: Split,
    clips: int,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
    style: SceneStyle | None = None,
) -> Path:
    """Return a folder with the first `clips` clips of a split and their `clips.csv`, making what is missing.

    Any number of processes may call this at once: one makes the clips, the others wait for it. `workers` is the number
    of processes that render (None: one for each usable core, fewer for few clips; 1: this process). `progress` shows a
    live bar on a terminal and single lines elsewhere, on stderr.

    `ValueError` for bad arguments; `RuntimeError` when a rendering process fails.
    """
    require(split in SPLITS, "split", split, f"one of {SPLITS}")
    require(clips >= 1, "clips", clips, ">= 1")
    require(seed >= 0, "seed", seed, ">= 0")
    require(workers is None or workers >= 1, "workers", workers, ">= 1, or None for the number of cores")
    style = SceneStyle() if style is None else style
    folder = expand(cache_dir) / f"synthetic-v{GENERATOR_VERSION}-{_digest(style)}-seed{seed}"
    job = Job(folder, split, clips, seed, style)
    view = folder / f"{split}-{clips}"
    if _complete(view, clips):
        return view
    job.path(0).parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f"{split}.lock", progress):
        if not _complete(view, clips):  # another process may have made it while this one waited
            _make_pool(job, workers, progress)
            _make_view(job, view)
    return view


def make_clip(job: Job, index: int) -> None:
    """Render and encode one clip into the pool."""
    path = job.path(index)
    kind = clip_kind(job.seed, job.split, index)
    latents = clip_latents(job.seed, job.split, index, job.style)
    video = render_video(kind, latents, job.style, stream(job.seed, job.split, index, 2))
    wave = render_sound(kind, latents, job.style, stream(job.seed, job.split, index, 3))
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        encode_clip(partial, video, FPS, wave, RATE)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def work() -> None:
    """Body of a rendering process: make the clips of the job on stdin and write the index of each to stdout."""
    job, indices = json.load(sys.stdin)
    job = Job(Path(job["folder"]), job["split"], job["clips"], job["seed"], SceneStyle(**job["style"]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    with suppress(BrokenPipeError):  # the parent has died: so do we, after this clip
        for index in indices:
            make_clip(job, index)
            os.write(sys.stdout.fileno(), f"{index}\n".encode())  # one write: lines of several processes do not mix


def _digest(style: SceneStyle) -> str:
    return hashlib.sha256(json.dumps(asdict(style), sort_keys=True).encode()).hexdigest()[:8]


def _complete(view: Path, clips: int) -> bool:
    if not (view / "clips.csv").exists():
        return False
    return {f"{index:05d}.mp4" for index in range(clips)} <= {entry.name for entry in os.scandir(view)}


@contextmanager
def _locked(path: Path, progress: bool) -> Iterator[None]:
    """Hold the lock of a file, waiting for another process that holds it."""
    with ExitStack() as held:
        try:
            held.enter_context(hold(path, wait=False))
        except Held:
            if progress:
                print("synthetic clips: waiting for another process that makes them", file=sys.stderr, flush=True)
            held.enter_context(hold(path, wait=True))
        yield


def _make_pool(job: Job, workers: int | None, progress: bool) -> None:
    for leftover in job.path(0).parent.glob("*.tmp"):  # of a process that was killed; the lock says it is not alive
        leftover.unlink(missing_ok=True)
    missing = job.missing()
    if workers is None:
        workers = min(usable_cores(), math.ceil(len(missing) / _LEAST_PER_WORKER))
    if not missing:
        return
    made = _make_here(job, missing) if workers <= 1 else _make_in_processes(job, missing, workers)
    _follow(made, f"synthetic clips, {job.split}", len(missing), progress)


def _make_here(job: Job, missing: list[int]) -> Iterator[int]:
    for index in missing:
        make_clip(job, index)
        yield index


def _make_in_processes(job: Job, missing: list[int], workers: int) -> Iterator[int]:
    """Yield the index of each clip as it is made, in any order.

    Plain subprocesses rather than multiprocessing: nothing of the caller (its main module, its threads, its CUDA state)
    is forked or imported again.
    """
    command = [sys.executable, "-c", "from diffmavil.data.synthetic.cache import work; work()"]
    settings = asdict(job) | {"folder": str(job.folder)}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    reader, writer = os.pipe()
    processes = []
    try:
        with open(reader) as lines:
            try:
                for worker in range(workers):
                    process = subprocess.Popen(
                        command, stdin=subprocess.PIPE, stdout=writer, env=environment, text=True
                    )
                    processes.append(process)
                    assert process.stdin is not None
                    with suppress(BrokenPipeError), process.stdin:  # it failed to start: its exit status will tell
                        json.dump([settings, missing[worker::workers]], process.stdin)
            finally:
                os.close(writer)  # only the children hold it now, so the lines end when they do
            yield from map(int, lines)
        failed = [process.wait() for process in processes if process.wait() != 0]
        if failed:
            raise RuntimeError(f"{len(failed)} of {workers} rendering processes failed (exit status {failed[0]})")
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _follow(made: Iterator[int], title: str, total: int, progress: bool) -> None:
    """Consume the clips made, showing how far it is."""
    console = Console(stderr=True, soft_wrap=True, highlight=False) if progress else None
    quiet = console is None or console.is_terminal
    if console is not None and not quiet:
        console.print(f"{title}: making {total}")
    with tracking(console, title, total) as tracker:
        for done, _ in enumerate(made, 1):
            tracker.update(done)
    if console is not None and not quiet:
        console.print(f"{title}: {total} made")


def _make_view(job: Job, view: Path) -> None:
    """Link the clips into the set's own folder, then write its CSV."""
    view.mkdir(exist_ok=True)
    for index in range(job.clips):
        path = view / job.path(index).name
        if not path.exists():
            _link(job.path(index), path)
    partial = view / "clips.csv.tmp"
    with open(partial, "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["path", "start", "duration", "labels"])
        for index in range(job.clips):
            label = clip_kind(job.seed, job.split, index).name
            writer.writerow([job.path(index).name, 0, SECONDS, label])
    partial.replace(view / "clips.csv")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        partial = target.with_name(f"{target.name}.tmp")
        shutil.copyfile(source, partial)
        partial.replace(target)
