"""How fast clips become batches: decoders by source and threads, storage, and whole loaders. JSON lines.

    python benchmarks/data.py                                        # on a generated 720p set, about 5 minutes
    python benchmarks/data.py --source /data/clips --prepared OUT    # on your clips, and what prepare made of them
    python benchmarks/data.py --json benchmarks/results/data.jsonl

Clips per second of wall clock, after one pass for warming up; `per_core` is over the CPU time of this process and
its workers, so that a busy machine does not change it much. Loaders deliver batches of 8 clips of `--preset`.
Providers that are not installed are named and left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import platform
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

from diffmavil.config import Config, DataConfig
from diffmavil.data.dataset import NothingUsable, TrainClips
from diffmavil.data.decode import decode_clip
from diffmavil.data.decoders import missing
from diffmavil.data.loader import make_loader
from diffmavil.data.sources import ClipSet, split_source
from diffmavil.data.transforms import random_framing
from diffmavil.data.workers import process_context
from diffmavil.prepare import main as prepare
from diffmavil.presets import preset

BATCH = 8


def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        source = arguments.source or generate(Path(scratch) / "clips", arguments.clips)
        prepared = arguments.prepared or Path(scratch) / "prepared"
        if arguments.prepared is None:
            prepare([str(source), str(prepared)])
        out = arguments.json.open("a") if arguments.json else None
        for row in rows(source, prepared, arguments):
            line = json.dumps({**row, **identity()})
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
    add("--seconds", type=float, default=6.0, help="how long each row is measured")
    add("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes of the loaders")
    add("--preset", default="diffmavil-base", help="whose frames, sizes and windows")
    add("--json", type=Path, help="append the lines to this file too")
    return parser.parse_args()


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


def identity() -> dict[str, Any]:
    versions = {"torch": torch.__version__, "av": av.__version__, "python": platform.python_version()}
    return {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), **versions}


@dataclass(frozen=True)
class Speed:
    """Clips per second of wall clock and of CPU time."""

    per_second: float
    per_core: float

    def row(self, **what: Any) -> dict[str, Any]:
        return {**what, "clips_per_second": round(self.per_second, 2), "per_core": round(self.per_core, 2)}


def measure(once: Callable[[], int], seconds: float) -> Speed:
    """Call `once`, which gives how many clips it did, for some seconds."""
    once()
    clips, begin, cpu = 0, time.perf_counter(), cpu_seconds()
    while time.perf_counter() - begin < seconds or not clips:
        clips += once()
    return Speed(clips / (time.perf_counter() - begin), clips / max(1e-9, cpu_seconds() - cpu))


def cpu_seconds() -> float:
    """CPU time of this process and of its workers so far."""
    ticks = 0
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def rows(source: Path, prepared: Path, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    seconds = arguments.seconds
    config = preset(arguments.preset)
    sets = {
        name: (with_data(config, root, 0), whole(root)) for name, root in (("original", source), ("prepared", prepared))
    }
    yield storage(*sets["prepared"], seconds)
    speeds: dict[str, Speed] = {}
    for name, (wanted, clips) in sets.items():
        speeds[name] = measure(decoding(wanted, clips), seconds)
        yield speeds[name].row(what="decode", source=name, decoder="pyav", threads=1)
    ratio = speeds["prepared"].per_core / speeds["original"].per_core
    yield {"what": "decode", "prepared_over_original_per_core": round(ratio, 2)}
    yield from others(*sets["prepared"], seconds)
    bare = speeds["prepared"]
    for workers in sorted({0, 1, arguments.workers}):
        speed = loader_speed(with_data(config, prepared, workers), sets["prepared"][1], seconds)
        over = bare.per_core / speed.per_core - 1
        yield speed.row(what="loader", provider="ours", workers=workers, cpu_over_bare_decoding=round(over, 3))
    yield from foreign(config, source, prepared, arguments.workers, seconds)


def with_data(config: Config, root: Path, workers: int) -> Config:
    data = DataConfig(root=str(root), workers=workers, max_bad_share=1.0)
    return replace(config, data=data, train=replace(config.train, batch_size=BATCH))


def whole(root: Path) -> ClipSet:
    """All clips that are long enough to be compared, held out or not."""
    split = split_source(DataConfig(root=str(root)))
    clips = {clip.path: clip for clip in (*split.train.clips, *split.held_out.clips)}
    return replace(split.train, clips=list(clips.values()))


def storage(config: Config, clips: ClipSet, seconds: float) -> dict[str, Any]:
    """Samples out of the page cache, in the order of training, with their checksums."""
    dataset = TrainClips(config, clips)
    order = itertools.count()
    total = 0

    def once() -> int:
        nonlocal total
        sample = dataset.reader(dataset.clips[dataset.stream.item(next(order))])
        assert not isinstance(sample, str)
        total += len(sample.mp4) + len(sample.flac)
        return 1

    for _ in clips.clips:
        once()
    total, begin = 0, time.perf_counter()
    speed = measure(once, seconds)
    rate = total / (time.perf_counter() - begin) / 1e9
    return speed.row(what="read", gigabytes_per_second=round(rate, 2))


def decoding(config: Config, clips: ClipSet) -> Callable[[], int]:
    """Bare decoding, one clip after the other, as a loop of its own would do it."""
    dataset = TrainClips(config, clips)
    model = config.model
    order = itertools.count()

    def once() -> int:
        position = next(order)
        clip = clips.clips[dataset.stream.item(position)]
        rng = dataset.stream.crop_rng(position)
        framing = random_framing(model.video.size, config.data.crop_scale, True, rng)
        decode_clip(dataset.reader(clip), model.video, model.audio, rng=rng, framing=framing)
        return 1

    return once


def others(config: Config, clips: ClipSet, seconds: float) -> Iterator[dict[str, Any]]:
    """The optional decoders on the prepared clips."""
    if why := missing("torchcodec"):
        yield {"what": "decode", "decoder": "torchcodec", "left_out": why}
    else:
        wanted = replace(config, data=replace(config.data, decoder="torchcodec"))
        dataset = TrainClips(wanted, clips, decoder="torchcodec")
        yield measure(batched(dataset), seconds).row(what="decode", source="prepared", decoder="torchcodec", threads=1)
    if why := missing("dali"):
        yield {"what": "decode", "decoder": "dali", "left_out": why}
        return
    from diffmavil.data.decoders.dali import DaliDecoder

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dataset = TrainClips(config, clips, decoder="dali")
    for threads in (1, 2, 4):
        decoder = DaliDecoder(config.model.video, device, BATCH, threads)
        first = itertools.count(step=BATCH)

        def once(decode: DaliDecoder = decoder, first: Iterator[int] = first) -> int:
            begin = next(first)
            batch = dataset[range(begin, begin + BATCH)]
            assert not isinstance(batch, NothingUsable)
            decode(batch.later)
            return BATCH

        yield measure(once, seconds).row(
            what="decode", source="prepared", decoder=f"dali-{device.type}", threads=threads
        )


def batched(dataset: TrainClips) -> Callable[[], int]:
    first = itertools.count(step=BATCH)

    def once() -> int:
        begin = next(first)
        return len(dataset[range(begin, begin + BATCH)])

    return once


def loader_speed(config: Config, clips: ClipSet, seconds: float) -> Speed:
    with make_loader(config, clips) as loader:
        return drawn(iter(loader), lambda batch: len(batch), config.data.workers * config.data.prefetch, seconds)


def drawn(batches: Iterator[Any], size: Callable[[Any], int], ready: int, seconds: float) -> Speed:
    """Take batches; those that were ready when the clock started are not counted."""
    for _ in range(ready + 1):
        next(batches)
    return measure(lambda: size(next(batches)), seconds)


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
        end = decoder.metadata.end_stream_seconds or 0.0
        start = float(torch.rand(())) * max(0.0, end - video.seconds)
        times = start + (np.arange(video.frames) + 0.5) * min(video.seconds, end) / video.frames
        frames = resized(decoder.get_frames_played_at(np.clip(times, 0, end - 1e-3).tolist()).data, video.size)
        wave = torch.zeros(audio.samples)
        sound = AudioDecoder(sample["flac"]).get_all_samples().data[0, : audio.samples]
        wave[: len(sound)] = sound
        return frames, wave

    return decode


def foreign(config: Config, source: Path, prepared: Path, workers: int, seconds: float) -> Iterator[dict[str, Any]]:
    """What others would use: webdataset with torchcodec, and a plain Dataset over the originals."""
    common: dict[str, Any] = {"batch_size": BATCH, "num_workers": workers}
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
        speed = drawn(iter(DataLoader(stream, **common_fork)), lambda b: len(b[0]), 2 * workers, seconds)
        yield speed.row(what="loader", provider="webdataset+torchcodec", workers=workers, source="prepared")
    paths = [clip.path for clip in whole(source).clips]
    batches = iter(DataLoader(PlainVideos(config, paths), **common))
    speed = drawn(batches, lambda b: len(b[0]), 2 * workers, seconds)
    yield speed.row(what="loader", provider="plain Dataset over mp4", workers=workers, source="original")


if __name__ == "__main__":
    main()
