"""How fast clips become batches: decoders by source and threads, storage, and whole loaders. JSON lines.

    python benchmarks/data.py                                        # on a generated 720p set, about 5 minutes
    python benchmarks/data.py --source /data/clips --prepared OUT    # on your clips, and what prepare made of them
    python benchmarks/data.py --json benchmarks/results/data.jsonl

Every row does the same positions of the training stream, the first `--positions`, in whole passes: clips differ in
cost. Clips per second of wall clock, after warming up; `per_core` is over the CPU time of this process and its workers,
so that a busy machine does not change it much. Bare decoding and our loaders take turns, `--rounds` times. Loaders
deliver batches of 8 clips of `--preset`; webdataset shuffles its own way, so its row holds other positions of the same
clips. Providers that are not installed are named and left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

if not __package__:
    # Run by path: Python puts this folder first, where `kernels.py` would hide the package of the Hub.
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), str(here.parent / "kernels"), *(p for p in sys.path if Path(p).resolve() != here)]

import av
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.identity import identity
from diffmavil.config import Config, DataConfig
from diffmavil.config.presets import preset
from diffmavil.data.clips import ClipSet
from diffmavil.data.dataset import NothingUsable, TrainClips
from diffmavil.data.decode import decode_clip
from diffmavil.data.decoders import missing
from diffmavil.data.loader import make_loader
from diffmavil.data.sources import split_source
from diffmavil.data.transforms import random_framing
from diffmavil.data.workers import process_context
from diffmavil.prepare import main as prepare

BATCH = 8


def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    same = {**identity(device), "av": av.__version__, "cores": len(os.sched_getaffinity(0))}
    with tempfile.TemporaryDirectory() as scratch:
        source = arguments.source or generate(Path(scratch) / "clips", arguments.clips)
        prepared = arguments.prepared or Path(scratch) / "prepared"
        if arguments.prepared is None:
            prepare([str(source), str(prepared)])
        out = arguments.json.open("a") if arguments.json else None
        for row in rows(source, prepared, arguments):
            line = json.dumps(
                {
                    **row,
                    "set": arguments.source.name if arguments.source else "generated",
                    **same,
                    "load": os.getloadavg()[0],
                }
            )
            print(line, flush=True)
            if out:
                out.write(line + "\n")
                out.flush()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/data.py", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--source", type=Path, help="folder of original clips; default: generated 720p ones")
    add("--prepared", type=Path, help="what prepare made of it; default: made now")
    add("--clips", type=int, default=8, help="clips to generate")
    add("--positions", type=int, default=32, help=f"of the training stream, done by each row; a multiple of {BATCH}")
    add("--seconds", type=float, default=6.0, help="each reading takes whole passes for at least as long")
    add("--rounds", type=int, default=3, help="readings of bare decoding and of each of our loaders")
    add("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes of the loaders")
    add("--preset", default="diffmavil-base", help="whose frames, sizes and windows")
    add("--json", type=Path, help="append the lines to this file too")
    arguments = parser.parse_args()
    if arguments.positions < BATCH or arguments.positions % BATCH:
        parser.error(f"--positions {arguments.positions}: must be a multiple of {BATCH}")
    return arguments


def generate(folder: Path, count: int) -> Path:
    """Ten seconds of 1280x720 at 30 fps: drifting texture with grain, and noise, as x264 and AAC code by default."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        texture = rng.integers(0, 255, (90, 160, 3), dtype=np.uint8).repeat(10, 0).repeat(10, 1)
        with av.open(str(folder / f"{number:03}.mp4"), "w") as container:
            picture = container.add_stream("libx264", rate=30, options={"preset": "veryfast", "crf": "23"})
            picture.width, picture.height, picture.pix_fmt = 1280, 720, "yuv420p"
            sound = container.add_stream("aac", rate=44_100, layout="mono")
            for index in range(300):
                shifted = np.roll(texture, (2 * index, 3 * index), (0, 1))[:720, :1280]
                grain = rng.integers(0, 12, (720, 1280, 1), dtype=np.uint8)
                frame = av.VideoFrame.from_ndarray(shifted // 2 + 50 + grain, format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 30)
                container.mux(picture.encode(frame))
            container.mux(picture.encode(None))
            wave = (0.1 * rng.standard_normal((1, 441_000))).astype(np.float32)
            samples = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = 44_100, 0, Fraction(1, 44_100)
            container.mux(sound.encode(samples))
            container.mux(sound.encode(None))
    return folder


@dataclass
class Speed:
    """Clips, and the seconds of wall clock and of CPU time that they took."""

    clips: int = 0
    wall: float = 0.0
    cpu: float = 0.0

    def add(self, other: Speed) -> None:
        self.clips += other.clips
        self.wall += other.wall
        self.cpu += other.cpu

    @property
    def cpu_ms(self) -> float:
        """Milliseconds of CPU time for a clip."""
        return 1e3 * self.cpu / self.clips

    @property
    def wall_ms(self) -> float:
        return 1e3 * self.wall / self.clips

    def row(self, **what: Any) -> dict[str, Any]:
        return {
            **what,
            "clips": self.clips,
            "clips_per_second": round(1e3 / self.wall_ms, 2),
            "per_core": round(1e3 / max(self.cpu_ms, 1e-6), 2),
        }


def measure(once: Callable[[], int], seconds: float) -> Speed:
    """Call `once`, which does a whole pass and gives how many clips that was, for some seconds."""
    clips, begin, cpu = 0, time.perf_counter(), cpu_seconds()
    while time.perf_counter() - begin < seconds or not clips:
        clips += once()
    return Speed(clips, time.perf_counter() - begin, cpu_seconds() - cpu)


def cpu_seconds() -> float:
    """CPU time of this process and of its workers so far."""
    ticks = 0
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def rows(source: Path, prepared: Path, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    seconds, positions = arguments.seconds, range(arguments.positions)
    config = preset(arguments.preset)
    wanted, clips = with_data(config, prepared, 0), whole(prepared)
    yield storage(wanted, clips, seconds)
    original = decoding(with_data(config, source, 0), whole(source))
    original(positions[:BATCH])
    first = measure(lambda: original(positions), seconds)
    yield first.row(what="decode", source="original", decoder="pyav", threads=1)
    loaders = sorted({0, 1, arguments.workers})
    bare, ours = decoding(wanted, clips), {workers: Speed() for workers in loaders}
    bare(positions)
    again = Speed()
    for _ in range(arguments.rounds):
        again.add(measure(lambda: bare(positions), seconds))
        for workers, speed in ours.items():
            speed.add(loader_speed(with_data(config, prepared, workers), clips, positions, seconds))
    yield again.row(what="decode", source="prepared", decoder="pyav", threads=1)
    yield {"what": "decode", "prepared_over_original_per_core": round(first.cpu_ms / again.cpu_ms, 2)}
    for workers, speed in ours.items():
        yield speed.row(
            what="loader", provider="ours", source="prepared", workers=workers,
            cpu_over_bare_decoding=round(speed.cpu_ms / again.cpu_ms - 1, 3),
            wall_over_bare_decoding=round(speed.wall_ms * max(1, workers) / again.wall_ms - 1, 3),
        )  # fmt: skip
    yield from others(wanted, clips, positions, seconds)
    yield from foreign(config, source, prepared, positions, arguments.workers, seconds)


def with_data(config: Config, root: Path, workers: int) -> Config:
    data = DataConfig(root=str(root), workers=workers, max_bad_share=1.0)
    return replace(config, data=data, train=replace(config.train, batch_size=BATCH))


def whole(root: Path) -> ClipSet:
    """All clips that are long enough to be compared, held out or not."""
    split = split_source(DataConfig(root=str(root)))
    clips = {clip.path: clip for clip in (*split.train.clips, *split.held_out.clips)}
    return replace(split.train, clips=list(clips.values()))


def storage(config: Config, clips: ClipSet, seconds: float) -> dict[str, Any]:
    """Samples out of the page cache, in the order of training, with their checksums, by one process."""
    dataset = TrainClips(config, clips)

    def once() -> int:
        nonlocal size
        for position in range(len(clips)):
            sample = dataset.reader(dataset.clips[dataset.stream.item(position)])
            assert not isinstance(sample, str)
            size += len(sample.mp4) + len(sample.flac)
        return len(clips)

    size = 0
    once()
    size = 0
    speed = measure(once, seconds)
    return speed.row(what="read", source="prepared", gigabytes_per_second=round(size / speed.wall / 1e9, 2))


def decoding(config: Config, clips: ClipSet) -> Callable[[Sequence[int]], int]:
    """Bare decoding, one clip after the other, as a loop of its own would do it."""
    dataset = TrainClips(config, clips)
    model = config.model

    def once(positions: Sequence[int]) -> int:
        for position in positions:
            clip = dataset.clips[dataset.stream.item(position)]
            rng = dataset.stream.crop_rng(position)
            framing = random_framing(model.video.size, config.data.crop_scale, config.data.flip, rng)
            decode_clip(dataset.reader(clip), model.video, model.audio, rng=rng, framing=framing)
        return len(positions)

    return once


def in_batches(positions: range) -> list[range]:
    return [positions[first : first + BATCH] for first in range(0, len(positions), BATCH)]


def others(config: Config, clips: ClipSet, positions: range, seconds: float) -> Iterator[dict[str, Any]]:
    """The optional decoders on the prepared clips."""
    if why := missing("torchcodec"):
        yield {"what": "decode", "decoder": "torchcodec", "left_out": why}
    else:
        wanted = replace(config, data=replace(config.data, decoder="torchcodec"))
        dataset = TrainClips(wanted, clips, decoder="torchcodec")

        def drawn_by_torchcodec() -> int:
            return sum(len(dataset[batch]) for batch in in_batches(positions))

        drawn_by_torchcodec()
        speed = measure(drawn_by_torchcodec, seconds)
        yield speed.row(what="decode", source="prepared", decoder="torchcodec", threads=1)
    if why := missing("dali"):
        yield {"what": "decode", "decoder": "dali", "left_out": why}
        return
    from diffmavil.data.decoders.dali import DaliDecoder

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    coded = TrainClips(config, clips, decoder="dali")
    for threads in (1, 2, 4):
        decoder = DaliDecoder(config.model.video, device, BATCH, threads)

        def once(decode: DaliDecoder = decoder) -> int:
            for positions_of_batch in in_batches(positions):
                batch = coded[positions_of_batch]
                assert not isinstance(batch, NothingUsable)
                decode(batch.later)
            return len(positions)

        once()
        speed = measure(once, seconds)
        yield speed.row(what="decode", source="prepared", decoder=f"dali-{device.type}", threads=threads)


def loader_speed(config: Config, clips: ClipSet, positions: range, seconds: float) -> Speed:
    orders = in_batches(positions)
    with make_loader(config, clips, orders=Endless(orders)) as loader:
        return drawn(iter(loader), len, len(orders), seconds)


@dataclass(frozen=True)
class Endless:
    """The same batches again and again, from the first on in each iteration."""

    orders: list[range]

    def __iter__(self) -> Iterator[range]:
        return itertools.cycle(self.orders)


def drawn(batches: Iterator[Any], size: Callable[[Any], int], of_a_pass: int, seconds: float) -> Speed:
    """Take passes of `of_a_pass` batches from an endless loader, after one for warming up.

    As many batches as are ready when the clock starts are ready when it stops, and of the same clips.
    """

    def once() -> int:
        return sum(size(next(batches)) for _ in range(of_a_pass))

    once()
    return measure(once, seconds)


class PlainVideos(Dataset):
    """A torch Dataset as one writes it first: open the mp4, decode all of it, take what is needed."""

    def __init__(self, config: Config, paths: Sequence[str]) -> None:
        self.model = config.model
        self.paths = paths

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        video, audio = self.model.video, self.model.audio
        with av.open(self.paths[index % len(self.paths)], "r") as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        with av.open(self.paths[index % len(self.paths)], "r") as container:
            resampler = av.AudioResampler(format="fltp", layout="mono", rate=audio.sample_rate)
            pieces = [p.to_ndarray()[0] for f in container.decode(audio=0) for p in resampler.resample(f)]
        wave = np.zeros(audio.samples, np.float32)
        sound = np.concatenate(pieces)[: audio.samples]
        wave[: len(sound)] = sound
        chosen = np.linspace(0, len(frames) - 1, video.frames).astype(int)
        return resized(torch.from_numpy(np.stack([frames[i] for i in chosen])), video.size), torch.from_numpy(wave)


def resized(frames: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 `[T, H, W, 3]` -> `[T, size, size, 3]`."""
    x = frames.permute(0, 3, 1, 2).float()
    x = torch.nn.functional.interpolate(x, (size, size), mode="bilinear", antialias=True)
    return x.to(torch.uint8).permute(0, 2, 3, 1)


def webdataset_sample(config: Config) -> Callable[[dict[str, Any]], tuple[torch.Tensor, torch.Tensor]]:
    """webdataset with torchcodec, as their documentation puts them together."""
    from torchcodec.decoders import AudioDecoder, VideoDecoder  # pyright: ignore[reportMissingImports]

    video, audio = config.model.video, config.model.audio

    def decode(sample: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        decoder = VideoDecoder(sample["mp4"], dimension_order="NHWC", num_ffmpeg_threads=1)
        begin, end = decoder.metadata.begin_stream_seconds or 0.0, decoder.metadata.end_stream_seconds or 0.0
        start = float(torch.rand(())) * max(0.0, end - video.seconds)
        times = start + (np.arange(video.frames) + 0.5) * min(video.seconds, end) / video.frames
        frames = resized(decoder.get_frames_played_at(np.clip(times, begin, end - 1e-3).tolist()).data, video.size)
        wave = torch.zeros(audio.samples)
        sound = AudioDecoder(sample["flac"]).get_all_samples().data[0, : audio.samples]
        wave[: len(sound)] = sound
        return frames, wave

    return decode


def foreign(
    config: Config, source: Path, prepared: Path, positions: range, workers: int, seconds: float
) -> Iterator[dict[str, Any]]:
    """What others would use: webdataset with torchcodec, and a plain Dataset over the originals."""
    common: dict[str, Any] = {"batch_size": BATCH, "num_workers": workers}
    of_a_pass = len(in_batches(positions))
    if workers:
        common["multiprocessing_context"] = process_context()
    try:
        import webdataset  # pyright: ignore[reportMissingImports]

        decode = webdataset_sample(config)
    except ImportError as error:
        yield {"what": "loader", "provider": "webdataset+torchcodec", "left_out": str(error)}
    else:
        tars = sorted(str(path) for path in prepared.glob("*.tar"))
        stream = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False, nodesplitter=None,
                                       workersplitter=None).repeat().shuffle(100).map(decode)  # fmt: skip
        common_fork = {**common, "multiprocessing_context": "fork"} if workers else common
        speed = drawn(iter(DataLoader(stream, **common_fork)), lambda b: len(b[0]), of_a_pass, seconds)
        yield speed.row(what="loader", provider="webdataset+torchcodec", workers=workers, source="prepared")
    clips = whole(source)
    stream = TrainClips(with_data(config, source, 0), clips).stream
    paths = [clips.clips[stream.item(position)].path for position in positions]
    batches = iter(DataLoader(PlainVideos(config, paths), **common))
    speed = drawn(batches, lambda b: len(b[0]), of_a_pass, seconds)
    yield speed.row(what="loader", provider="plain Dataset over mp4", workers=workers, source="original")


if __name__ == "__main__":
    main()
