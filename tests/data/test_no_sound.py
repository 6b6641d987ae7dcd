"""Silence, gaps and samples that are no sound: what counts in statistics and sums, and what is a bad clip."""

from __future__ import annotations

import io
import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from as_decoded import AUDIO, RATE, VIDEO, prepared, reason_of
from clip_files import write_clip
from odd_clips import (
    write_sound,
)
from prepared_sets import prepare_here
from rich.console import Console

from diffmavil.config import AudioConfig, Config, DataConfig, ModelConfig, TrainConfig
from diffmavil.data.audio import log_mel
from diffmavil.data.decode import decode_clip
from diffmavil.data.library import BadClip
from diffmavil.data.loader import eval_batches, make_loader
from diffmavil.data.stats import open_data
from diffmavil.prepare import report


def quiet_and_loud(root: Path) -> tuple[float, float]:
    """A long silent clip, one that is silent for its first half, and two of noise; mean and std of the noise alone."""
    root.mkdir()
    rng = np.random.default_rng(0)
    noise = [0.1 * rng.standard_normal(2 * RATE) for _ in range(3)]
    sounds = [np.zeros(6 * RATE), np.concatenate([np.zeros(RATE), noise[0][:RATE]]), noise[1], noise[2]]
    for index, sound in enumerate(sounds):
        write_clip(root / f"{index}.mov", seconds=len(sound) / RATE, sound=sound, codecs=("libx264", "pcm_s16le"))
    coded = [np.round(sound.astype(np.float32) * 32767) / 32768 for sound in (noise[0][:RATE], noise[1], noise[2])]
    specs = torch.cat([log_mel(torch.from_numpy(wave)[None].float(), 64)[0] for wave in coded]).double()
    return float(specs.mean()), float(specs.std())


def test_silence_does_not_move_the_statistics_and_is_told(tmp_path: Path) -> None:
    mean, std = quiet_and_loud(tmp_path / "clips")
    audio = AudioConfig(frames=192, mels=64)
    clips, cache = str(tmp_path / "clips"), str(tmp_path / "cache")
    config = Config(model=ModelConfig(audio=audio), data=DataConfig(root=clips, eval_root=clips, cache=cache))
    for _ in range(2):  # measured, and remembered
        resolved, split = open_data(config)
        assert resolved.model.audio.mean == pytest.approx(mean, abs=0.1)
        assert resolved.model.audio.std == pytest.approx(std, abs=0.1)
        assert re.search(r"\(1 of the 4 measured are silent\)$", split.train.note), split.train.note


def test_silence_does_not_move_the_statistics_of_a_prepared_set(tmp_path: Path) -> None:
    mean, std = quiet_and_loud(tmp_path / "clips")
    description = prepare_here(tmp_path / "clips", tmp_path / "out")
    assert description.audio[64] == (pytest.approx(mean, abs=0.1), pytest.approx(std, abs=0.1))
    assert description.facts["silent"] == 1
    console = Console(file=io.StringIO(), width=100)
    report(tmp_path / "out", description, console)
    assert re.search(r"silent, damaged .* 1, 0 \(kept\)", console.file.getvalue())  # type: ignore[attr-defined]


def test_media_kept_counts_no_filled_gaps(tmp_path: Path) -> None:
    """Ten seconds of picture, and sound in the first two and the last two of them."""
    (tmp_path / "clips").mkdir()
    first = write_clip(tmp_path / "first.mkv", seconds=2.0, codecs=("ffv1", "flac"))
    path = tmp_path / "clips" / "a.mkv"
    with av.open(str(first), "r") as source, av.open(str(path), "w") as container:
        tracks = {stream: container.add_stream_from_template(stream) for stream in source.streams}
        packets = [packet for packet in source.demux() if packet.size]
        for later in (0, 8000):
            for packet in packets:
                assert packet.pts is not None
                copy = av.Packet(bytes(packet))
                copy.pts = copy.dts = packet.pts + later
                copy.duration = packet.duration
                copy.time_base, copy.stream = packet.time_base, tracks[packet.stream]
                copy.is_keyframe = packet.is_keyframe
                container.mux(copy)
    facts = prepare_here(tmp_path / "clips", tmp_path / "out").facts
    assert facts["clips"] == 1
    assert facts["seconds"] == pytest.approx(4.0, abs=0.1)


NO_SOUND = {
    "nan": (np.nan, "its sound has 1 samples that are NaN or infinite"),
    "inf": (np.inf, "its sound has 1 samples that are NaN or infinite"),
    "minus-inf": (-np.inf, "its sound has 1 samples that are NaN or infinite"),
    "huge": (1e37, "its sound reaches 1e+37 where full scale is 1: at most 100 is allowed"),
    "16-bit-scale": (20_000, "its sound reaches 2e+04 where full scale is 1: at most 100 is allowed"),
}


@pytest.mark.parametrize(("sample", "reason"), NO_SOUND.values(), ids=list(NO_SOUND))
@pytest.mark.parametrize("channels", [1, 2])
def test_one_sample_that_is_no_sound_makes_a_bad_clip(
    tmp_path: Path, sample: float, reason: str, channels: int
) -> None:
    sound = np.full((channels, RATE), 0.1, np.float32)
    sound[:, RATE // 2] = sample
    path = write_sound(tmp_path / "a.mov", sound, "pcm_f32le", f"{channels} channels")
    assert reason_of(path) == reason


def test_loud_sound_is_sound(tmp_path: Path) -> None:
    """Float sound may pass full scale: 20 dB here. The 16 bits of what is prepared cannot hold it."""
    path = write_sound(tmp_path / "a.mkv", np.full((2, RATE), 10.0, np.float32), "pcm_f32le", "stereo")
    assert decode_clip(str(path), VIDEO, AUDIO).wave.max() == pytest.approx(10.0)
    (found,) = prepared(path)
    assert isinstance(found, BadClip)
    assert found.reason.startswith("its sound reaches 10 where full scale is 1")


def test_such_clips_are_named_in_training_and_left_out_of_the_statistics(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    rng = np.random.default_rng(0)
    for index in range(4):
        sound = (0.1 * rng.standard_normal((1, RATE))).astype(np.float32)
        sound[0, RATE // 2] = np.nan if index == 2 else 0.0
        write_sound(tmp_path / "clips" / f"{index}.mov", sound, "pcm_f32le", "mono")
    clips, cache = str(tmp_path / "clips"), str(tmp_path / "cache")
    config = Config(
        model=ModelConfig(video=VIDEO, audio=AUDIO),
        data=DataConfig(root=clips, eval_root=clips, cache=cache, workers=0, max_bad_share=0.5),
        train=TrainConfig(batch_size=4),
    )
    config, split = open_data(config)
    assert config.model.audio.std is not None
    assert 1 < config.model.audio.std < 5
    named = {f"{clips}/2.mov": "its sound has 1 samples that are NaN or infinite"}
    with make_loader(config, split.train, steps=2) as loader:
        assert all(batch.wave.isfinite().all() and batch.wave.any() for batch in loader)
        assert loader.bad == named
    with eval_batches(config, split.held_out, 4) as loader:
        assert [len(batch) for batch in loader] == [3]
        assert loader.bad == named
