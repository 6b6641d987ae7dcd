"""Batches: the same for any ranks, workers and resumption; bad clips; processes that end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_files import Painter, numbered, write_clip

from diffmavil.config import AudioConfig, Config, DataConfig, ModelConfig, TrainConfig, VideoConfig
from diffmavil.config.errors import RunError, TooManyBadClips
from diffmavil.data import loader as loader_module
from diffmavil.data.clips import Clip, ClipSet
from diffmavil.data.dataset import Batch, EvalClips
from diffmavil.data.loader import Loader, eval_batches, make_loader
from diffmavil.data.samples import Sample
from diffmavil.data.shards.store import Reader
from diffmavil.data.sources import open_source

CLIPS = 12
MODEL = ModelConfig(
    video=VideoConfig(frames=4, size=32, seconds=0.5, patch=(2, 8, 8)), audio=AudioConfig(frames=48, mels=16)
)


def shifted(first: int) -> Painter:
    paint = numbered(48, 32)
    return lambda index: paint(index + first)


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> ClipSet:
    """Clips that differ in sound and picture, in two classes."""
    root = tmp_path_factory.mktemp("good")
    rng = np.random.default_rng(0)
    for index in range(CLIPS):
        path = root / f"class{index % 2}" / f"{index:02}.mkv"
        path.parent.mkdir(exist_ok=True)
        sound = 0.1 * rng.standard_normal(20_000)
        paint = numbered(48, 32)
        write_clip(
            path, paint=lambda i, k=index, p=paint: p(i + 20 * k), seconds=1.2, sound=sound, codecs=("libx264", "flac")
        )
    return open_source(DataConfig(root=str(root)))


@pytest.fixture(scope="session")
def mixed(good: ClipSet, tmp_path_factory: pytest.TempPathFactory) -> ClipSet:
    """The same with three bad ones in between."""
    root = tmp_path_factory.mktemp("bad")
    clips = list(good.clips)
    for index in range(3):
        path = root / f"bad{index}.mp4"
        path.write_bytes(b"nothing" * index)
        clips.insert(4 * index + 1, replace(clips[0], path=str(path)))
    return ClipSet(clips, good.classes)


def config(workers: int = 0, batch_size: int = 4, seed: int = 0, **data) -> Config:
    train = TrainConfig(batch_size=batch_size, seed=seed)
    return Config(model=MODEL, data=DataConfig(workers=workers, prefetch=1, **data), train=train)


def take(loader, steps: int) -> list[Batch]:
    with loader:
        return list(islice(loader, steps))


def join(batches: list[Batch]) -> dict[str, torch.Tensor | list]:
    names = ("video", "wave", "wave_valid", "position")
    joined: dict[str, torch.Tensor | list] = {name: torch.cat([getattr(b, name) for b in batches]) for name in names}
    joined["paths"] = [path for b in batches for path in b.paths]
    joined["labels"] = [label for b in batches for label in b.labels]
    return joined


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    one, two = join(left), join(right)
    for name, value in one.items():
        other = two[name]
        same = torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other  # type: ignore[arg-type]
        assert same, name


def test_a_batch(good: ClipSet) -> None:
    batch = take(make_loader(config(), good, steps=1), 1)[0]
    assert len(batch) == 4
    assert batch.video.shape == (4, 4, 32, 32, 3)
    assert batch.video.dtype == torch.uint8
    assert batch.wave.shape == (4, MODEL.audio.samples)
    assert batch.wave.dtype == torch.float32
    assert batch.wave_valid.tolist() == [MODEL.audio.samples] * 4
    assert batch.position.tolist() == [0, 1, 2, 3]
    for path, labels in zip(batch.paths, batch.labels, strict=True):
        assert labels == (int(Path(path).parent.name[-1]),)
    assert not batch.opened.bad


def test_an_epoch_holds_every_clip_and_the_next_crops_anew(good: ClipSet) -> None:
    batches = take(make_loader(config(), good), 6)
    paths, wave = [path for b in batches for path in b.paths], torch.cat([b.wave for b in batches])
    assert sorted(paths[:CLIPS]) == sorted(paths[CLIPS:]) == sorted(clip.path for clip in good.clips)
    again = [paths.index(path, CLIPS) for path in paths[:CLIPS]]
    assert not any(torch.equal(wave[i], wave[j]) for i, j in enumerate(again))


@pytest.mark.parametrize("world", [2, 4])
def test_any_number_of_ranks_sees_the_same_steps(mixed: ClipSet, world: int) -> None:
    wanted = config(max_bad_share=1.0)
    alone = take(make_loader(wanted, mixed), 5)
    ranks = [take(make_loader(wanted, mixed, rank=rank, world=world), 5) for rank in range(world)]
    for step in range(5):
        assert_same([alone[step]], [ranks[rank][step] for rank in range(world)])


def test_resuming_gives_the_same_batches(mixed: ClipSet) -> None:
    wanted = config(max_bad_share=1.0)
    whole = take(make_loader(wanted, mixed, steps=8), 8)
    rest = take(make_loader(wanted, mixed, start_position=5 * 4, steps=3), 9)
    assert_same(whole[5:], rest)


def test_one_process_then_two_then_four(mixed: ClipSet) -> None:
    """A run resumed twice, with more processes each time, goes on where the last one ended, epoch after epoch."""
    wanted = config(max_bad_share=1.0)
    whole = take(make_loader(wanted, mixed, steps=12), 12)
    position = 0
    for first, world in ((0, 1), (4, 2), (8, 4)):
        resumed = [
            take(make_loader(wanted, mixed, start_position=position, rank=rank, world=world, steps=4), 4)
            for rank in range(world)
        ]
        for step in range(4):
            assert_same(whole[first + step : first + step + 1], [rank[step] for rank in resumed])
        position = int(resumed[-1][-1].position[-1]) + 1
    assert position == 12 * wanted.train.batch_size > 2 * len(mixed)


def test_seeds_differ(good: ClipSet) -> None:
    first, second = (take(make_loader(config(seed=seed), good), 1)[0] for seed in (0, 1))
    assert first.paths != second.paths


def test_a_bad_clip_gives_its_place_to_another(mixed: ClipSet) -> None:
    loader = make_loader(config(max_bad_share=0.5), mixed)
    batches = take(loader, 8)
    bad = {clip.path for clip in mixed.clips if "bad" in Path(clip.path).name}
    assert set(loader.bad) == bad
    assert all("cannot be decoded" in reason for reason in loader.bad.values())
    assert loader.tally.tried == len(mixed)
    assert not bad & set(join(batches)["paths"])
    assert join(batches)["position"].tolist() == list(range(32))  # type: ignore[union-attr]


def test_too_many_bad_clips_stop_the_run(mixed: ClipSet) -> None:
    loader = make_loader(config(max_bad_share=0.1), mixed)
    with pytest.raises(TooManyBadClips, match=r"could not be used, more than data\.max_bad_share=0\.1") as caught:
        take(loader, 20)
    assert loader.tally.tried == len(mixed)  # all of 15 were tried before it was judged
    assert str(caught.value).count("cannot be decoded") == 3


def test_the_complaint_names_ten(good: ClipSet, tmp_path: Path) -> None:
    clips = [replace(good.clips[0], path=str(tmp_path / f"{i}.mp4")) for i in range(15)]
    with pytest.raises(TooManyBadClips, match="and 5 more") as caught:
        take(make_loader(config(), ClipSet([*clips, good.clips[0]], [])), 8)
    assert str(caught.value).count("No such file") == 10


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_usable_at_all(good: ClipSet, tmp_path: Path, workers: int) -> None:
    clips = [replace(good.clips[0], path=str(tmp_path / f"{i}.mp4")) for i in range(3)]
    for make in (make_loader, lambda c, s: eval_batches(c, s, 2)):
        with pytest.raises(TooManyBadClips, match="no clip could be used") as caught:
            take(make(config(workers, max_bad_share=1.0), ClipSet(clips, [])), 8)
        assert str(caught.value).count("No such file") == 3


def test_evaluation_gives_every_clip_once_in_order(mixed: ClipSet) -> None:
    loader = eval_batches(config(), mixed, batch_size=4)
    joined = join(list(loader))
    fine = [index for index, clip in enumerate(mixed.clips) if "bad" not in Path(clip.path).name]
    assert joined["position"].tolist() == fine  # type: ignore[union-attr]
    assert joined["paths"] == [mixed.clips[index].path for index in fine]
    assert len(loader.bad) == 3
    assert_same(list(loader), list(eval_batches(config(), mixed, batch_size=5)))


def test_evaluation_crops(good: ClipSet) -> None:
    batches = list(eval_batches(config(), good, batch_size=5, crops=3))
    joined = join(batches)
    assert [len(batch) for batch in batches] == [5] * 7 + [1]
    assert joined["position"].tolist() == list(range(3 * CLIPS))  # type: ignore[union-attr]
    assert torch.cat([batch.clip for batch in batches]).tolist() == [i // 3 for i in range(3 * CLIPS)]
    wave = joined["wave"]
    assert isinstance(wave, torch.Tensor)
    assert not torch.equal(wave[0], wave[1])
    centre = join(list(eval_batches(config(), good, batch_size=5)))["wave"]
    assert isinstance(centre, torch.Tensor)
    assert torch.equal(wave[1::3], centre)


def test_iterating_again_starts_anew(good: ClipSet) -> None:
    loader = make_loader(config(), good, steps=2)
    first = [next(iter(loader)) for _ in range(2)]
    assert_same(first[:1], first[1:])
    assert len(list(loader)) == 2
    assert loader.data_wait > 0


def test_batch_size_must_divide(good: ClipSet) -> None:
    with pytest.raises(ValueError, match=r"train\.batch_size=4: must be a multiple of the 3 processes"):
        make_loader(config(), good, world=3)


@pytest.mark.parametrize("shared", [True, False], ids=["shared-memory", "pipe"])
def test_workers_change_nothing(mixed: ClipSet, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "fits_shared_memory", lambda _: shared)
    alone = make_loader(config(0, max_bad_share=1.0), mixed, start_position=8)
    helped = make_loader(config(2, max_bad_share=1.0), mixed, start_position=8)
    assert_same(take(alone, 5), take(helped, 5))
    assert ("--shm-size" in helped.note) == (not shared)
    assert not alone.note
    assert helped.bad == alone.bad
    assert helped.tally.tried == alone.tally.tried
    assert not multiprocessing.active_children()


def test_a_dead_worker_is_an_error(good: ClipSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "_LOOK", 0.1)
    batches = iter(make_loader(config(1), good))
    next(batches)
    for child in multiprocessing.active_children():
        os.kill(child.pid or 0, signal.SIGKILL)
    with pytest.raises(RunError, match=r"decoding process ended unexpectedly.*data\.workers"):
        list(islice(batches, 20))
    assert not multiprocessing.active_children()


class Treacherous(Reader):
    """Crashes, hangs or takes its time at files of these names, as decoders and disks do."""

    def __call__(self, clip: Clip) -> str | Sample:
        name = Path(clip.path).stem
        if name == "dies":
            os.kill(os.getpid(), signal.SIGSEGV)
        if name == "hangs":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # as in a library, where Python hears none
            time.sleep(600)
        if name == "waits":
            time.sleep(1.0)
        return super().__call__(clip)


def treacherous(good: ClipSet, name: str, monkeypatch: pytest.MonkeyPatch) -> Loader:
    """Two good clips, then one of that name, each a batch."""
    monkeypatch.setattr(loader_module, "_LOOK", 0.1)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    clips = [*good.clips[:2], replace(good.clips[2], path=f"/somewhere/{name}.mkv")]
    settings = config(1)
    dataset = EvalClips(settings, ClipSet(clips, good.classes), 1, loader_module._stop_event(settings))
    dataset.reader = Treacherous(Path("/nowhere"), 0)
    return Loader(dataset, [range(i, i + 1) for i in range(3)], settings, 1, "cpu", 1.0)


ENDS = {
    "dies": r"a decoding process ended unexpectedly \(.*\) at /somewhere/dies\.mkv\. Most often memory ran out",
    "hangs": r"no decoding process has taken a new clip for 0\.5 s at /somewhere/hangs\.mkv: it hangs",
}


@pytest.mark.parametrize(("name", "message"), ENDS.items(), ids=ENDS)
def test_the_clip_is_named_at_which_a_process_dies_or_hangs(
    good: ClipSet, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    loader = treacherous(good, name, monkeypatch)
    batches = iter(loader)
    assert [len(next(batches)) for _ in range(2)] == [1, 1]
    loader._patience = 0.5
    with pytest.raises(RunError, match=message):
        next(batches)
    for child in multiprocessing.active_children():
        child.join(10)
    assert not multiprocessing.active_children()


def test_the_time_that_the_run_was_suspended_is_no_hang(good: ClipSet, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = treacherous(good, "waits", monkeypatch)
    loader._patience = 0.2
    monkeypatch.setattr(loader_module, "awake_seconds", lambda: 7.0)
    assert [len(batch) for batch in loader] == [1, 1]
    assert list(loader.bad) == ["/somewhere/waits.mkv"]


def test_workers_outlive_a_schedulers_sigterm(good: ClipSet) -> None:
    with make_loader(config(1), good) as loader:
        batches = iter(loader)
        next(batches)
        for child in multiprocessing.active_children():
            child.terminate()
        assert len([next(batches) for _ in range(6)]) == 6
    assert not multiprocessing.active_children()


SCRIPT = """
import multiprocessing, signal, sys, time
from diffmavil.config import *
from diffmavil.data.loader import make_loader
from diffmavil.data.sources import open_source

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    data = DataConfig(root=sys.argv[1], workers=1, prefetch=1)
    model = ModelConfig(video=VideoConfig(frames=2, size=16), audio=AudioConfig(frames=32, mels=16))
    loader = make_loader(Config(model=model, data=data, train=TrainConfig(batch_size=2)), open_source(data))
    batches = iter(loader)
    next(batches)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(60)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_no_process_is_left_behind(good: ClipSet, tmp_path: Path) -> None:
    """After Ctrl-C to the whole group, and after the main process alone is killed."""
    script = tmp_path / "main.py"
    script.write_text(SCRIPT)
    root = Path(good.clips[0].path).parents[1]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    running = []
    for kind in (signal.SIGINT, signal.SIGKILL):
        process = subprocess.Popen(
            [sys.executable, str(script), str(root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment, start_new_session=True,
        )  # fmt: skip
        running.append((kind, process))
    children: list[int] = []
    for kind, process in running:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 1, process.communicate()
        assert all(alive(pid) for pid in pids)
        children += pids
        if kind == signal.SIGINT:
            os.killpg(process.pid, kind)  # as a terminal does
        else:
            process.send_signal(kind)
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [pid for pid in children if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    for _, process in running:
        process.communicate(timeout=60)
    assert not left
