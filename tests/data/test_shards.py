"""Training and evaluation from prepared sets: the same clips, any layout of processes, several sets mixed, damage."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_files import number_shown
from prepared_sets import prepare_here, write_clips

from diffmavil.config import AudioConfig, Config, DataConfig, ModelConfig, TrainConfig, VideoConfig
from diffmavil.config.errors import TooManyBadClips
from diffmavil.data.clips import ClipSet
from diffmavil.data.loader import eval_batches, make_loader
from diffmavil.data.prepare.verify import verify
from diffmavil.data.shards.index import DATASET_FILE, INDEX_FILE, Index
from diffmavil.data.sources import open_source, split_source
from diffmavil.data.stats import measure_audio_stats, resolve_audio_stats
from diffmavil.data.stream import MIX_BLOCK, ClipStream
from diffmavil.data.table import ClipTable

COUNT = 22
MODEL = ModelConfig(
    video=VideoConfig(frames=4, size=32, seconds=0.5, patch=(2, 8, 8)), audio=AudioConfig(frames=48, mels=64)
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("plain"), COUNT)


@pytest.fixture(scope="module")
def shards(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "out"
    prepare_here(plain, out, per_shard=8)
    return out


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    """A set to be damaged."""
    return shutil.copytree(shards, tmp_path / "copy")


def config(root: Path, workers: int = 0, batch_size: int = 4, **data) -> Config:
    settings = DataConfig(root=str(root), workers=workers, prefetch=1, **data)
    return Config(model=MODEL, data=settings, train=TrainConfig(batch_size=batch_size))


def whole(root: Path) -> ClipSet:
    """All clips, without a held-out part."""
    split = split_source(DataConfig(root=str(root)))
    return replace(split.train, clips=[*split.train.clips, *split.held_out.clips])


def take(loader, steps: int) -> list:
    with loader:
        return list(islice(loader, steps))


@pytest.mark.parametrize("longer", [0, 800], ids=["ends-together", "sound-is-longer"])
def test_the_same_clips_are_seen_and_heard(longer: int, tmp_path: Path) -> None:
    """Evaluation, whose windows are fixed, frame by frame and sample by sample.

    Matroska says how long the file is, not each stream: where the sound is longer, a plain file's picture is taken to
    be as long, and its centre lies later by half of the difference. A prepared clip knows the true length.
    """
    root = write_clips(tmp_path / "plain", COUNT, longer=longer)
    prepare_here(root, tmp_path / "shards")
    ours, theirs = (whole(tmp_path / name) for name in ("shards", "plain"))
    assert ours.classes == theirs.classes
    ours = replace(ours, clips=sorted(ours.clips, key=lambda clip: clip.origin))
    theirs = replace(theirs, clips=sorted(theirs.clips, key=lambda clip: clip.path))
    assert [clip.labels for clip in ours.clips] == [clip.labels for clip in theirs.clips]
    late = longer // 2
    (a,), (b,) = (list(eval_batches(config(tmp_path), clips, COUNT)) for clips in (ours, theirs))
    for batch, delay in ((a, 0), (b, late)):
        centre = 0.6 + delay / 16_000
        times = [centre + 0.5 * ((k + 0.5) / 4 - 0.5) for k in range(4)]
        shown = [[number_shown(frame) for frame in clip] for clip in batch.video.numpy()]
        first = [20 * int(Path(clip.path).stem) for clip in theirs.clips]
        assert shown == [[(number + int(25 * time)) % 256 for time in times] for number in first]
    assert (a.wave[:, late:] - b.wave[:, : b.wave.shape[1] - late]).abs().max() < 1e-4  # 16 bits
    assert torch.equal(a.wave_valid, b.wave_valid)
    if not late:
        assert (a.video.float() - b.video.float()).abs().mean() < 3  # coded a second time


def test_the_same_files_are_held_out(plain: Path, shards: Path) -> None:
    files = {os.path.relpath(clip.path, plain) for clip in split_source(DataConfig(root=str(plain))).held_out.clips}
    split = split_source(DataConfig(root=str(shards)))
    assert {clip.origin for clip in split.held_out.clips} == files
    assert len(split.train) + len(files) == COUNT


def test_segments_of_a_file_are_held_out_together(plain: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    names = sorted(str(path.relative_to(plain)) for path in plain.rglob("*.mkv"))
    table.write_text("path,start,duration\n" + "".join(f"{n},{s},0.6\n" for n in names for s in (0, 0.6)))
    prepare_here(plain, tmp_path / "out", table=table)
    split = split_source(DataConfig(root=str(tmp_path / "out")))
    assert len(split.train) + len(split.held_out) == 2 * COUNT
    assert not {clip.origin for clip in split.train.clips} & {clip.origin for clip in split.held_out.clips}


def test_statistics_come_with_the_set(shards: Path) -> None:
    clips = whole(shards)
    audio = resolve_audio_stats(config(shards), clips).model.audio
    assert (audio.mean, audio.std) == clips.audio_stats[64]
    long = replace(MODEL.audio, frames=112)  # all of each clip
    reader = make_loader(config(shards), clips)._loader.dataset.reader  # type: ignore[attr-defined]
    measured = measure_audio_stats(clips.clips, long, reader)
    assert measured == pytest.approx(clips.audio_stats[64], abs=0.02)


def test_a_table_keeps_what_decoding_needs(shards: Path, plain: Path) -> None:
    clips = [*whole(plain).clips[:3], *whole(shards).clips, *whole(plain).clips[3:5]]
    table = ClipTable(clips)
    assert [table[i] for i in range(len(table))] == [replace(clip, origin="") for clip in clips]


def assert_same(left: list, right: list) -> None:
    for name in ("video", "wave", "wave_valid", "position"):
        a, b = (torch.cat([getattr(batch, name) for batch in some]) for some in (left, right))
        assert torch.equal(a, b), name
    assert [path for b in left for path in b.paths] == [path for b in right for path in b.paths]


@pytest.mark.parametrize(("world", "workers"), [(2, 0), (4, 0), (1, 2)])
def test_resumed_in_an_epoch_with_other_processes(shards: Path, world: int, workers: int) -> None:
    """Eight steps alone; then the last five again, with other ranks or workers, in a set of two mixed ones."""
    split = split_source(config(shards, more=(str(shards),), weights=(3.0, 1.0)).data)
    alone = take(make_loader(config(shards), split.train), 8)
    wanted = config(shards, workers)
    parts = [
        take(make_loader(wanted, split.train, start_position=12, rank=rank, world=world, steps=5), 5)
        for rank in range(world)
    ]
    for step in range(5):
        assert_same(alone[3 + step : 4 + step], [part[step] for part in parts])


def test_several_sets_by_weight(shards: Path, plain: Path) -> None:
    split = split_source(config(plain, more=(str(shards),), weights=(0.7, 0.3)).data)
    own = len(split_source(config(plain).data).train)
    assert split.train.parts == ((own, 0.7), (own, 0.3))
    assert split.train.note.startswith("70% ")
    stream = ClipStream(len(split.train), 0, split.train.parts)
    items = [stream.item(position) for position in range(2 * MIX_BLOCK)]
    for block in (items[:MIX_BLOCK], items[MIX_BLOCK:]):
        assert Counter(item < own for item in block) == {True: 700, False: 300}
    # Each set has its own epochs: no clip comes again before all of its set came.
    first = [item for item in items if item < own]
    for epoch in range(3):
        assert sorted(first[epoch * own : (epoch + 1) * own]) == list(range(own))
    assert first[:own] != first[own : 2 * own]
    # A substitute comes from the same set.
    for position in range(50):
        assert len({item < own for item in stream.candidates(position)}) == 1


def test_without_weights_clips_count(shards: Path, plain: Path) -> None:
    split = split_source(config(plain, more=(str(shards),)).data)
    assert [weight for _, weight in split.train.parts] == [size for size, _ in split.train.parts]


def test_wrong_weights() -> None:
    for weights in ((1.0,), (1.0, 0.0), (1.0, 1.0, 1.0)):
        with pytest.raises(ValueError, match=r"data\.weights=.*2 positive numbers"):
            DataConfig(more=("b",), weights=weights)


def test_a_missing_or_cut_off_shard_is_said_at_once(copy: Path) -> None:
    shard = copy / "shard-000001.tar"
    os.truncate(shard, shard.stat().st_size - 512)
    with pytest.raises(ValueError, match=r"shard-000001\.tar has \d+ bytes, written were \d+: cut off, or changed"):
        open_source(DataConfig(root=str(copy)))
    shard.unlink()
    with pytest.raises(ValueError, match=r"data\.root=.*shard-000001\.tar is missing"):
        open_source(DataConfig(root=str(copy)))
    (copy / "index.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"data\.root=.*index"):
        open_source(DataConfig(root=str(copy)))
    (copy / "dataset.json").write_text("{}")
    with pytest.raises(ValueError, match=r"data\.root=.*not a prepared set"):
        open_source(DataConfig(root=str(copy)))


def change_index(copy: Path, change) -> None:
    index = Index.from_bytes((copy / INDEX_FILE).read_bytes())
    (copy / INDEX_FILE).write_bytes(replace(index, entries=change(index.entries)).to_bytes())


def later(entries: np.ndarray) -> np.ndarray:
    changed = entries.copy()
    changed["start"] += 1
    return changed


def of_more_shards(entries: np.ndarray) -> np.ndarray:
    changed = entries.copy()
    changed["shard"] += 1
    return changed


STALE = {
    "other-times": (later, False),
    "fewer-clips": (lambda entries: entries[:10], False),
    "fewer-clips-older-version": (lambda entries: entries[:10], True),
    "more-shards-older-version": (of_more_shards, True),
}


@pytest.mark.parametrize(("change", "older"), STALE.values(), ids=list(STALE))
def test_an_index_of_another_set_is_said_at_once(copy: Path, change, older: bool) -> None:
    """As a copy leaves it that was cut off between the two files. An older version kept no checksum of the index."""
    description = json.loads((copy / DATASET_FILE).read_text())
    if older:
        del description["index_sha256"]
        (copy / DATASET_FILE).write_text(json.dumps(description))
        assert len(whole(copy)) == COUNT
    change_index(copy, change)
    with pytest.raises(ValueError, match=rf"data\.root='{copy}': not the index that .*: copy index\.npz and"):
        open_source(DataConfig(root=str(copy)))
    (problem,) = verify(copy)
    assert problem.startswith("index.npz: not the index that dataset.json was written with")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_goes_away_ends_the_run_with_its_name(copy: Path, workers: int) -> None:
    clips = whole(copy)
    os.truncate(copy / "shard-000001.tar", 5000)
    with pytest.raises(TooManyBadClips, match=r"shard-000001\.tar: cut off: .*copy the shard again"):
        take(make_loader(config(copy, workers), clips), 20)
    for path in copy.glob("*.tar"):
        path.unlink()
    with pytest.raises(TooManyBadClips, match=r"\.tar: No such file"):
        list(eval_batches(config(copy, workers), clips, 4))


def test_a_flipped_bit_is_a_bad_clip(copy: Path) -> None:
    clips = whole(copy)
    place = clips.clips[0].stored
    assert place is not None
    data = bytearray((copy / place.shard).read_bytes())
    data[place.video + place.video_size // 2] ^= 1
    (copy / place.shard).write_bytes(data)
    loader = make_loader(config(copy), clips)
    batches = take(loader, 8)
    assert list(loader.bad) == [clips.clips[0].path]
    assert "checksum is wrong" in loader.bad[clips.clips[0].path]
    assert clips.clips[0].path not in {path for batch in batches for path in batch.paths}
