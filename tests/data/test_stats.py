"""Dataset statistics of the log-mel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from clip_files import write_clip

from diffmavil.config import AudioConfig, Config, DataConfig, ModelConfig
from diffmavil.data import stats
from diffmavil.data.audio import log_mel
from diffmavil.data.clips import ClipSet
from diffmavil.data.sources import open_source
from diffmavil.data.stats import measure_audio_stats, resolve_audio_stats

AUDIO = AudioConfig(frames=96, mels=64)
SAMPLES = AUDIO.samples


def config(root: Path, **arguments) -> Config:
    return Config(
        model=ModelConfig(audio=AUDIO), data=DataConfig(root=str(root), cache=str(root / "cache"), **arguments)
    )


def write_noise(root: Path, levels: list[float], seconds: float = 0.97) -> ClipSet:
    rng = np.random.default_rng(0)
    root.mkdir(exist_ok=True)
    for index, level in enumerate(levels):
        sound = level * rng.standard_normal(round(seconds * 16_000)).clip(-3, 3)
        write_clip(root / f"{index}.mov", seconds=1.0, sound=sound, codecs=("libx264", "pcm_s16le"))
    return open_source(DataConfig(root=str(root)))


def test_measures_mean_and_deviation_over_real_frames(tmp_path: Path) -> None:
    """Half a second of sound in a window of almost one: the padding does not count."""
    clipset = write_noise(tmp_path, [0.01, 0.1, 0.3], seconds=0.6)
    mean, std = measure_audio_stats(clipset.clips, AUDIO)
    rng = np.random.default_rng(0)
    sounds = [level * rng.standard_normal(9600).clip(-3, 3) for level in (0.01, 0.1, 0.3)]
    coded = np.stack([np.round(sound * 32767) / 32768 for sound in sounds])
    values = log_mel(torch.from_numpy(coded).float(), AUDIO.mels).double()
    assert mean == pytest.approx(float(values.mean()), abs=0.02)
    assert std == pytest.approx(float(values.std()), abs=0.02)


def test_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clipset = write_noise(tmp_path / "clips", [0.1, 0.2])
    wanted = config(tmp_path)
    first = resolve_audio_stats(wanted, clipset)
    assert first.model.audio.mean is not None
    monkeypatch.setattr(stats, "measure_audio_stats", lambda *_: pytest.fail("measured again"))
    assert resolve_audio_stats(wanted, clipset) == first


def test_is_measured_again_when_a_file_or_the_config_changes(tmp_path: Path) -> None:
    clipset = write_noise(tmp_path / "clips", [0.1, 0.2])
    first = resolve_audio_stats(config(tmp_path), clipset)
    write_noise(tmp_path / "clips", [0.001, 0.002])
    second = resolve_audio_stats(config(tmp_path), clipset)
    assert first.model.audio.mean is not None
    assert second.model.audio.mean is not None
    assert second.model.audio.mean < first.model.audio.mean - 1
    fewer = resolve_audio_stats(config(tmp_path, stats_clips=1), clipset)
    assert fewer.model.audio.mean != second.model.audio.mean


def test_is_measured_again_by_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one counted silence, and did not say how many clips were silent."""
    clipset = write_noise(tmp_path / "clips", [0.1, 0.2])
    with monkeypatch.context() as earlier:
        earlier.setattr(stats, "_VERSION", 1)
        first = resolve_audio_stats(config(tmp_path), clipset)
    (remembered,) = (tmp_path / "cache" / "stats").iterdir()
    remembered.write_text('{"mean": -9.0, "std": 9.0}')
    assert resolve_audio_stats(config(tmp_path), clipset) == first


def test_given_statistics_stay(tmp_path: Path) -> None:
    given = Config(model=ModelConfig(audio=AudioConfig(frames=96, mels=64, mean=-4.0, std=4.5)))
    assert resolve_audio_stats(given, ClipSet([], [])) is given


def test_bad_clips_are_left_out(tmp_path: Path) -> None:
    clipset = write_noise(tmp_path, [0.1, 0.2])
    expected = measure_audio_stats(clipset.clips, AUDIO)
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    clips = open_source(DataConfig(root=str(tmp_path))).clips
    assert len(clips) == 3
    assert measure_audio_stats(clips, AUDIO) == pytest.approx(expected)


def test_nothing_to_measure_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"none of 1 clips is usable: .*bad\.mp4"):
        resolve_audio_stats(config(tmp_path), open_source(DataConfig(root=str(tmp_path))))


def test_silence_is_an_error(tmp_path: Path) -> None:
    clipset = write_noise(tmp_path, [0.0, 0.0])
    with pytest.raises(ValueError, match="silent"):
        resolve_audio_stats(config(tmp_path), clipset)
