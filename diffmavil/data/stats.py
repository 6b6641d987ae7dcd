"""Mean and standard deviation of the log-mel over the dataset, measured once and remembered.

The model's input is (x - mean) / (2 std) with these two numbers, so they belong to the resolved config and the
checkpoint. They are measured on up to `data.stats_clips` clips, chosen deterministically, over real sound only: neither
padding nor digital silence counts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import torch
from rich.console import Console

from diffmavil.config import AudioConfig, Config, Modalities, require
from diffmavil.config.folders import expand, writing
from diffmavil.config.progress import tracking
from diffmavil.data.audio import frames_in, log_mel, moments
from diffmavil.data.clips import Clip, ClipSet, Split
from diffmavil.data.dataset import make_reader
from diffmavil.data.decode import BadClip, Sample, decode_sound
from diffmavil.data.shards.store import StoreError
from diffmavil.data.sources import split_source
from diffmavil.data.stream import ClipStream

C = TypeVar("C", bound=Config)
_VERSION = 2
"""Of what is measured and remembered: files of another are measured anew. 1 counted silence, and did not tell of it."""


def open_data(config: C) -> tuple[C, Split]:
    """The config with the audio statistics of the training clips, and the clips, whose note tells of silent ones.

    With `model.modalities` video there are no such statistics.

    Raises:
        ValueError: no clips, or none whose sound can be measured.
    """
    split = split_source(config.data, config.model.modalities)
    config, told = _resolved(config, split.train)
    return config, split._replace(train=replace(split.train, note=f"{split.train.note}{told}"))


def resolve_audio_stats(config: C, clipset: ClipSet) -> C:
    """`config` with `model.audio.mean` and `.std`: as given, as the prepared set knows them, or measured.

    With `model.modalities` video it stays as it is.

    What is measured is put into the cache, and found there the next time.

    Raises:
        ValueError: no clip's sound can be decoded, all of it is silent, or the cache cannot be written.
    """
    return _resolved(config, clipset)[0]


def _resolved(config: C, clipset: ClipSet) -> tuple[C, str]:
    """The config, and what is to be told of the clips measured."""
    audio = config.model.audio
    if audio.mean is not None or not config.model.hears:
        return config, ""
    told = ""
    if audio.mels in clipset.audio_stats:
        mean, std = clipset.audio_stats[audio.mels]
    else:
        chosen = chosen_clips(clipset, config.data.stats_clips)
        path = expand(config.data.cache) / "stats" / f"{_key(chosen, audio, config.model.modalities)}.json"
        if path.is_file():
            stored = json.loads(path.read_text())
        else:
            with writing("data.cache", config.data.cache):
                path.parent.mkdir(parents=True, exist_ok=True)
            silent: list[str] = []
            mean, std = measure_audio_stats(chosen, audio, make_reader(config), silent, config.model.modalities)
            stored = {"mean": mean, "std": std, "clips": len(chosen), "silent": len(silent)}
            draft = path.with_suffix(f".{os.getpid()}.tmp")
            with writing("data.cache", config.data.cache):
                draft.write_text(json.dumps(stored))
                draft.replace(path)
        mean, std = stored["mean"], stored["std"]
        if stored["silent"]:
            told = f" ({stored['silent']} of the {stored['clips']} measured are silent)"
    audio = replace(audio, mean=mean, std=std)
    return replace(config, model=replace(config.model, audio=audio)), told


def measure_audio_stats(
    clips: list[Clip],
    audio: AudioConfig,
    reader: Callable[[Clip], str | Sample] = lambda clip: clip.path,
    silent: list[str] | None = None,
    modalities: Modalities = "av",
) -> tuple[float, float]:
    """(mean, std) of the log-mel over the real frames of the clips' centre crops, summed in float64.

    Args:
        silent: where the paths of clips that are nothing but silence are put; they do not count.
        modalities: audio: files need no picture, and their whole sound counts.

    Raises:
        ValueError: no clip's sound can be decoded, or all of it is silent.
    """
    count, total, squares = 0, 0.0, 0.0
    quiet: list[str] = []
    bad: list[BadClip] = []
    for clip in _tracked(clips):
        try:
            sound = decode_sound(reader(clip), audio, modalities=modalities, start=clip.start, duration=clip.duration)
        except BadClip as error:
            bad.append(error)
            continue
        except StoreError as error:
            raise ValueError(f"the audio statistics cannot be measured: {error}") from error
        frames = int(frames_in(torch.tensor(sound.wave_valid), audio.sample_rate))
        found = moments(log_mel(torch.from_numpy(sound.wave)[None], audio.mels, audio.sample_rate)[0, :frames])
        count, total, squares = count + found[0], total + found[1], squares + found[2]
        if not found[0]:
            quiet.append(clip.path)
    if len(bad) == len(clips):
        raise ValueError(f"the audio statistics cannot be measured: none of {len(clips)} clips is usable: {bad[0]}")
    mean = total / max(1, count)
    std = max(0.0, squares / max(1, count) - mean**2) ** 0.5
    everything = f"positive: the sound of all {len(clips) - len(bad)} clips measured is silent"
    require(std > 1e-3, "audio.std", std, everything)
    if silent is not None:
        silent += quiet
    return mean, std


def _tracked(clips: list[Clip]) -> Iterator[Clip]:
    console = Console(stderr=True)
    with tracking(console, "clips measured for the audio statistics", len(clips)) as tracker:
        for done, clip in enumerate(clips):
            tracker.update(done)
            yield clip


def chosen_clips(clipset: ClipSet, most: int) -> list[Clip]:
    """Up to `most` clips: the first of the stream of seed 0."""
    stream = ClipStream(len(clipset.clips), seed=0)
    return [clipset.clips[stream.item(i)] for i in range(min(most, len(clipset.clips)))]


def _key(clips: list[Clip], audio: AudioConfig, modalities: Modalities) -> str:
    """Changes with the files measured, with what is measured on them, and with how."""
    digest = hashlib.sha256(repr((_VERSION, audio.frames, audio.mels, audio.sample_rate)).encode())
    if modalities != "av":
        digest.update(modalities.encode())
    for clip in clips:
        try:
            info = os.stat(clip.path)
            stamp = (info.st_size, info.st_mtime_ns)
        except OSError:
            stamp = None
        name = clip.stored or os.path.abspath(clip.path)
        digest.update(repr((name, clip.start, clip.duration, stamp)).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]
