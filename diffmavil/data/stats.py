"""Mean and standard deviation of the log-mel over the dataset, measured once and remembered.

The model's input is (x - mean) / (2 std) with these two numbers, so they belong to the resolved config and the
checkpoint. They are measured on up to `data.stats_clips` clips, chosen deterministically, over real sound only.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from rich.console import Console

from diffmavil.config import AudioConfig, Config, require
from diffmavil.config.folders import expand, writing
from diffmavil.config.progress import tracking
from diffmavil.data.audio import frames_in, log_mel
from diffmavil.data.clips import Clip, ClipSet, Split
from diffmavil.data.dataset import make_reader
from diffmavil.data.decode import BadClip, Sample, decode_sound
from diffmavil.data.shards.store import StoreError
from diffmavil.data.sources import split_source
from diffmavil.data.stream import ClipStream


def open_data(config: Config) -> tuple[Config, Split]:
    """The config with the audio statistics of the training clips, and the clips.

    Raises:
        ValueError: no clips, or none whose sound can be measured.
    """
    split = split_source(config.data)
    return resolve_audio_stats(config, split.train), split


def resolve_audio_stats(config: Config, clipset: ClipSet) -> Config:
    """`config` with `model.audio.mean` and `.std`: as given, as the prepared set knows them, or measured.

    What is measured is put into the cache, and found there the next time.

    Raises:
        ValueError: no clip's sound can be decoded, all of it is silent, or the cache cannot be written.
    """
    audio = config.model.audio
    if audio.mean is not None:
        return config
    if audio.mels in clipset.audio_stats:
        mean, std = clipset.audio_stats[audio.mels]
        return replace(config, model=replace(config.model, audio=replace(audio, mean=mean, std=std)))
    chosen = _choose(clipset, config.data.stats_clips)
    path = expand(config.data.cache) / "stats" / f"{_key(chosen, audio)}.json"
    if path.is_file():
        stored = json.loads(path.read_text())
        mean, std = stored["mean"], stored["std"]
    else:
        with writing("data.cache", config.data.cache):
            path.parent.mkdir(parents=True, exist_ok=True)
        mean, std = measure_audio_stats(chosen, audio, make_reader(config))
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        with writing("data.cache", config.data.cache):
            draft.write_text(json.dumps({"mean": mean, "std": std, "clips": len(chosen)}))
            draft.replace(path)
    return replace(config, model=replace(config.model, audio=replace(audio, mean=mean, std=std)))


def measure_audio_stats(
    clips: list[Clip], audio: AudioConfig, reader: Callable[[Clip], str | Sample] = lambda clip: clip.path
) -> tuple[float, float]:
    """(mean, std) of the log-mel over the real frames of the clips' centre crops, summed in float64."""
    count, total, squares = 0, 0.0, 0.0
    bad: list[BadClip] = []
    for clip in _tracked(clips):
        try:
            sound = decode_sound(reader(clip), audio, start=clip.start, duration=clip.duration)
        except BadClip as error:
            bad.append(error)
            continue
        except StoreError as error:
            raise ValueError(f"the audio statistics cannot be measured: {error}") from error
        frames = int(frames_in(torch.tensor(sound.wave_valid), audio.sample_rate))
        spec = log_mel(torch.from_numpy(sound.wave)[None], audio.mels, audio.sample_rate)[0, :frames].double()
        count += spec.numel()
        total += float(spec.sum())
        squares += float(spec.square().sum())
    if not count:
        raise ValueError(f"the audio statistics cannot be measured: none of {len(clips)} clips is usable: {bad[0]}")
    mean = total / count
    std = max(0.0, squares / count - mean**2) ** 0.5
    require(std > 1e-3, "audio.std", std, f"positive: the sound of all {len(clips)} clips measured is silent")
    return mean, std


def _tracked(clips: list[Clip]) -> Iterator[Clip]:
    console = Console(stderr=True)
    with tracking(console, "clips measured for the audio statistics", len(clips)) as tracker:
        for done, clip in enumerate(clips):
            tracker.update(done)
            yield clip


def _choose(clipset: ClipSet, most: int) -> list[Clip]:
    """Up to `most` clips: the first of the stream of seed 0."""
    stream = ClipStream(len(clipset.clips), seed=0)
    return [clipset.clips[stream.item(i)] for i in range(min(most, len(clipset.clips)))]


def _key(clips: list[Clip], audio: AudioConfig) -> str:
    """Changes with the files measured and with what is measured on them."""
    digest = hashlib.sha256(repr((audio.frames, audio.mels, audio.sample_rate)).encode())
    for clip in clips:
        try:
            info = os.stat(clip.path)
            stamp = (info.st_size, info.st_mtime_ns)
        except OSError:
            stamp = None
        name = clip.stored or os.path.abspath(clip.path)
        digest.update(repr((name, clip.start, clip.duration, stamp)).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]
