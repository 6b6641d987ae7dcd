"""Crops that are decoded once and kept: the same for any processes and resumption, and for however much is kept."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_files import numbered, write_clip

from diffmavil.config import AudioConfig, Config, DataConfig, ModelConfig, TrainConfig, VideoConfig
from diffmavil.data import dataset, kept
from diffmavil.data.clips import ClipSet
from diffmavil.data.dataset import Batch, TrainClips
from diffmavil.data.kept import KeptCrops, crop_bytes, kept_crops
from diffmavil.data.loader import make_loader
from diffmavil.data.sources import open_source

CLIPS, KEPT = 4, 3
MODEL = ModelConfig(
    video=VideoConfig(frames=4, size=32, seconds=0.5, patch=(2, 8, 8)), audio=AudioConfig(frames=48, mels=16)
)


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ClipSet:
    root = tmp_path_factory.mktemp("kept")
    rng = np.random.default_rng(0)
    paint = numbered(48, 32)
    for index in range(CLIPS):
        sound = 0.1 * rng.standard_normal(20_000)
        path = root / f"{index}.mkv"
        write_clip(
            path, paint=lambda i, k=index: paint(i + 20 * k), seconds=1.2, sound=sound, codecs=("libx264", "flac")
        )
    return open_source(DataConfig(root=str(root)))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files decoded in this process, in order."""
    calls: list[str] = []
    real = dataset.decode_clip
    monkeypatch.setattr(
        dataset, "decode_clip", lambda source, *a, **k: (calls.append(source), real(source, *a, **k))[1]
    )
    return calls


def config(crops: int = KEPT, workers: int = 0, modalities="av") -> Config:
    data = DataConfig(workers=workers, prefetch=1, crops_kept=crops)
    return Config(model=replace(MODEL, modalities=modalities), data=data, train=TrainConfig(batch_size=2))


def epochs(wanted: Config, clips: ClipSet, count: int, **how) -> list[dict[int, Batch]]:
    """Each epoch's clips by their numbers; whole epochs, in batches of two."""
    found: list[dict[int, Batch]] = []
    steps = count * len(clips) // 2
    with make_loader(wanted, clips, steps=steps, **how) as loader:
        for step, batch in enumerate(loader):
            if step * 2 % len(clips) == 0:
                found.append({})
            for row, number in enumerate(batch.clip.tolist()):
                found[-1][number] = batch.map(lambda tensor, row=row: tensor[row].clone())
    return found


def same(one: Batch, two: Batch) -> bool:
    pairs = ((one.video, two.video), (one.wave, two.wave), (one.wave_valid, two.wave_valid))
    return all(torch.equal(left, right) for left, right in pairs)


def test_epochs_take_the_crops_in_turn_and_each_is_decoded_once(clips: ClipSet, decoded: list[str]) -> None:
    found = epochs(config(), clips, 2 * KEPT + 1)
    assert len(decoded) == CLIPS * KEPT
    for epoch, seen in enumerate(found):
        for number, batch in seen.items():
            assert same(batch, found[epoch % KEPT][number])
    for number in range(CLIPS):
        assert not same(found[0][number], found[1][number])
        assert not same(found[1][number], found[2][number])


@pytest.mark.parametrize("modalities", ["audio", "video"])
def test_of_one_modality_alone(clips: ClipSet, decoded: list[str], modalities: str) -> None:
    found = epochs(config(crops=1, modalities=modalities), clips, 3)
    assert len(decoded) == CLIPS
    for number in range(CLIPS):
        one, again = found[0][number], found[2][number]
        assert same(one, again)
        assert (one.wave.abs().sum() > 0, one.video.numel() > 0) == (modalities == "audio", modalities == "video")


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_the_same(clips: ClipSet, workers: int) -> None:
    alone, helped = epochs(config(), clips, 5), epochs(config(workers=workers), clips, 5)
    for one, two in zip(alone, helped, strict=True):
        assert all(same(one[number], two[number]) for number in range(CLIPS))


def test_a_resumed_run_decodes_anew_what_it_had_kept(clips: ClipSet) -> None:
    whole = epochs(config(), clips, 6)
    rest = epochs(config(), clips, 2, start_position=4 * CLIPS)
    for one, two in zip(whole[4:], rest, strict=True):
        assert all(same(one[number], two[number]) for number in range(CLIPS))


def test_memory_changes_nothing(clips: ClipSet, monkeypatch: pytest.MonkeyPatch, decoded: list[str]) -> None:
    remembering = epochs(config(), clips, 4)
    once = len(decoded)
    monkeypatch.setattr(KeptCrops, "get", lambda *a: None)
    forgetting = epochs(config(), clips, 4)
    assert len(decoded) - once == 4 * CLIPS > once
    for one, two in zip(remembering, forgetting, strict=True):
        assert all(same(one[number], two[number]) for number in range(CLIPS))


def test_a_bad_clip_is_tried_each_time_and_its_substitute_is_kept(
    clips: ClipSet, decoded: list[str], tmp_path: Path
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    bad = str(tmp_path / "bad.mp4")
    mixed = ClipSet([*clips.clips[:3], replace(clips.clips[0], path=bad)], clips.classes)
    wanted = config(crops=1)
    wanted = replace(wanted, data=replace(wanted.data, max_bad_share=1.0))
    with make_loader(wanted, mixed, steps=12) as loader:
        batches = list(loader)
    assert all(len(batch) == 2 for batch in batches)
    assert decoded.count(bad) == 6  # tried anew in each epoch
    assert len(decoded) == 6 + 3
    assert (loader.tally.tried, loader.tally.bad) == (4, 1)


def test_more_than_memory_holds_is_refused(clips: ClipSet, monkeypatch: pytest.MonkeyPatch) -> None:
    each = CLIPS * (crop_bytes(config()) + 8)
    monkeypatch.setattr(kept, "_free_memory", lambda: 10 * each)
    assert kept_crops(CLIPS, config(crops=8)) is not None
    with pytest.raises(ValueError, match=r"data\.crops_kept=9: 9 crops of 4 clips take .* must be at most 8; 0"):
        make_loader(config(crops=9), clips)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"on each of 2 ranks .* must be at most 4"):
        make_loader(config(crops=5), clips)
    assert kept_crops(CLIPS, config(crops=0)) is None


def test_free_memory_is_what_the_control_group_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_GROUP", tmp_path)
    machine = kept._free_memory()
    assert machine is None or 2**20 < machine < 2**50
    for name, text in (("max", "9000\n"), ("current", "5000\n"), ("stat", "anon 3000\ninactive_file 1500\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert kept._free_memory() == 5500
    (tmp_path / "memory.max").write_text("max\n")
    assert (kept._free_memory() or 0) > 9000 or machine is None


def test_a_crop_that_was_not_written_whole_is_not_kept(clips: ClipSet, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = epochs(config(), clips, 4)
    real = os.pwritev
    monkeypatch.setattr(kept.os, "pwritev", lambda file, buffers, place: real(file, buffers[:1], place))  # a full disk
    short = epochs(config(), clips, 4)
    for one, two in zip(whole, short, strict=True):
        assert all(same(one[number], two[number]) for number in range(CLIPS))


def test_what_is_decoded_on_the_device_is_not_kept(clips: ClipSet) -> None:
    with pytest.raises(ValueError, match=r"data\.crops_kept=3: must be 0 with data\.decoder='dali'"):
        TrainClips(config(), clips, decoder="dali")
    with pytest.raises(ValueError, match=r"data\.crops_kept=-1"):
        DataConfig(crops_kept=-1)
