"""The synthetic set: what its clips hold, and that the cache is right whoever makes it, however often killed."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from diffmavil.config import DataConfig
from diffmavil.data.sources import open_source
from diffmavil.data.synthetic import CLASSES, Kind, SceneStyle, Split, cache, ensure_synthetic
from diffmavil.data.synthetic.__main__ import main
from diffmavil.data.synthetic.latents import MATERIALS, SHAPES, TIMBRES, Latents, clip_kind, clip_latents
from diffmavil.data.synthetic.scene import FPS, FRAMES, SIZE, _relief
from diffmavil.data.synthetic.sheet import contact_sheet
from diffmavil.data.synthetic.sound import RATE, pitch

STYLE = SceneStyle()
SET = 24


@dataclasses.dataclass(frozen=True)
class Decoded:
    kind: Kind
    latents: Latents
    frames: np.ndarray  # [T, H, W, 3] uint8
    times: list[float]
    wave: np.ndarray  # [S], its first sample at second 0


def decode(path: Path, index: int, split: Split) -> Decoded:
    frames, times, parts, first = [], [], [], None
    with av.open(str(path)) as container:
        assert [s.codec_context.name for s in container.streams] == ["h264", "aac"]
        for frame in container.decode(video=0, audio=0):
            if isinstance(frame, av.VideoFrame):
                frames.append(frame.to_ndarray(format="rgb24"))
                times.append(frame.time)
            elif isinstance(frame, av.AudioFrame):
                assert frame.sample_rate == RATE
                first = frame.time if first is None else first
                parts.append(frame.to_ndarray()[0])
    assert first == 0
    return Decoded(
        clip_kind(0, split, index),
        clip_latents(0, split, index, STYLE),
        np.stack(frames),
        times,
        np.concatenate(parts),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_synthetic(tmp_path_factory.mktemp("cache"), "eval", SET, workers=1, progress=False)


@pytest.fixture(scope="module")
def decoded(folder: Path) -> list[Decoded]:
    return [decode(folder / f"{index:05d}.mp4", index, "eval") for index in range(SET)]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.mp4"))}


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "clips.csv", newline="") as handle:
        return list(csv.DictReader(handle))


# What is in a clip


def test_clips_have_the_promised_format(folder: Path, decoded: list[Decoded]) -> None:
    for clip in decoded:
        assert clip.frames.shape == (FRAMES, SIZE, SIZE, 3)
        assert clip.times == [float(Fraction(k, FPS)) for k in range(FRAMES)]
        assert 5 * RATE <= len(clip.wave) < 5.1 * RATE
    assert max(path.stat().st_size for path in folder.glob("*.mp4")) < 50_000


def test_csv_is_read_by_the_source(folder: Path) -> None:
    path = str(folder / "clips.csv")
    clips = open_source(DataConfig(root=path, eval_root=path))
    assert clips.classes == sorted(CLASSES)
    assert [clips.classes[clip.labels[0]] for clip in clips.clips] == [row["labels"] for row in rows(folder)]
    assert all(Path(clip.path).exists() and clip.duration == 5 for clip in clips.clips)


def flashes(clip: Decoded) -> np.ndarray:
    """[T] rise of the mean brightness from one frame to the next."""
    luma = clip.frames.mean((1, 2, 3))
    return np.diff(luma, prepend=luma[0])


def onsets(clip: Decoded) -> np.ndarray:
    """[steps of 10 ms] rise of the loudness, summed over frequency, as onset detectors have it (spectral flux)."""
    window, hop = RATE // 50, RATE // 100
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(clip.wave, (window // 2, window)), window)[::hop]
    decibel = 20 * np.log10(np.abs(np.fft.rfft(windows * np.hanning(window))) + 1e-2)
    return np.diff(decibel, axis=0, prepend=decibel[:1]).clip(0).sum(1)


@pytest.mark.parametrize("timbre", TIMBRES)
def test_impacts_are_seen_and_heard_at_the_same_instants(decoded: list[Decoded], timbre: str) -> None:
    clips = [clip for clip in decoded if clip.kind.timbre == timbre]
    accents = [
        (clip, second)
        for clip in clips
        for second, strength in zip(clip.latents.impacts, clip.latents.strengths, strict=True)
        if strength == 1 and 0.3 < second < 4.7
    ]
    assert len(accents) >= 8
    together = []
    for clip, second in accents:
        begin = second - 0.25  # look 0.25 s about the impact: less than half the shortest interval
        frame, step = round(begin * FPS), round(begin * 100)
        seen = (frame + int(flashes(clip)[frame : frame + FPS // 2].argmax())) / FPS
        rise = onsets(clip)[step : step + 50]
        loudest = 0.4 if timbre == "rattle" else 1.0  # it has several clicks, and the first need not be the loudest
        heard = (step + int((rise >= loudest * rise.max()).argmax())) / 100
        together.append(abs(heard - seen) <= 1 / FPS + 0.02 and abs(heard - second) <= 0.03)
    assert np.mean(together) >= 0.8  # noise and hum hide some of the softest from so simple a detector


def brightness(clip: Decoded) -> float:
    """Mean level of the frames' border, where the wall is seen."""
    return float(np.concatenate([clip.frames[:, :6].reshape(-1, 3), clip.frames[:, -6:].reshape(-1, 3)]).mean())


def hum(clip: Decoded) -> float:
    """How far the strongest third of an octave stands out of the spectrum between notes, in dB.

    The median over each band passes over the narrow lines of a note that still rings.
    """
    window = RATE // 10
    ends = [round(second * RATE) - 200 for second in clip.latents.impacts if 0.2 < second < 5]
    power = [np.abs(np.fft.rfft(clip.wave[end - window : end] * np.hanning(window))) ** 2 for end in ends]
    quietest = np.min(power, axis=0)
    hertz = np.fft.rfftfreq(window, 1 / RATE)
    bands = [np.median(quietest[abs(hertz - f) < 0.12 * f]) for f in hertz[20:]]
    return float(10 * np.log10(max(bands) / np.median(bands)))


def test_day_is_brighter_and_hum_is_heard(decoded: list[Decoded]) -> None:
    day, night = ([brightness(clip) for clip in decoded if clip.kind.bright == way] for way in (True, False))
    assert np.median(day) > 1.4 * np.median(night)
    humming, still = ([hum(clip) for clip in decoded if clip.kind.humming == way] for way in (True, False))
    assert np.median(humming) > np.median(still) + 6


def test_each_material_repeats_with_its_period() -> None:
    """Each has its own picture; and in every one of them twice the period is the same picture twice as large."""
    latents = dataclasses.replace(clip_latents(0, "train", 0, STYLE), lean=0.0, phase=(0.0, 0.0))
    style = dataclasses.replace(STYLE, cell=(10.0, 20.0))
    pictures = {}
    for material in MATERIALS:
        small = _relief(material, dataclasses.replace(latents, cell=0.0), style, 80)
        large = _relief(material, dataclasses.replace(latents, cell=1.0), style, 160)
        assert np.allclose(small, large[::2, ::2])
        pictures[material] = small
    for one in MATERIALS:
        for other in MATERIALS:
            same = np.corrcoef(pictures[one].ravel(), pictures[other].ravel())[0, 1]
            assert (same > 0.99) == (one == other)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    return float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])


def test_larger_objects_sound_lower() -> None:
    clips = [clip_latents(0, "train", index, STYLE) for index in range(50)]
    sizes, pitches = [clip.size for clip in clips], [pitch(clip, STYLE) for clip in clips]
    assert rank_correlation(sizes, pitches) == pytest.approx(-1)
    assert min(pitches) >= STYLE.pitch[0]
    assert max(pitches) <= STYLE.pitch[1]


# Classes and latents


@pytest.mark.parametrize("split", ["train", "eval"])
def test_every_prefix_is_balanced(split: Split) -> None:
    kinds = [clip_kind(0, split, index) for index in range(100)]
    for end in range(1, len(kinds) + 1):
        for values, of in (
            (CLASSES, lambda k: k.name),
            (MATERIALS, lambda k: k.material),
            ((True, False), lambda k: k.bright),
        ):
            counts = Counter(dict.fromkeys(values, 0)) + Counter(map(of, kinds[:end]))
            numbers = [counts[value] for value in values]
            # Within a run of 24 each class comes once, so a material may lead by four.
            assert max(numbers) - min(numbers) <= len(CLASSES) // len(values)


def measures(latents: Latents) -> dict[str, float]:
    """A clip's latents as numbers."""
    inside = (latents.impacts >= 0) & (latents.impacts < 5)
    derived = {
        "impacts": float(inside.sum()),
        "phase": float(latents.impacts[inside][0] / latents.period),
        "accents": float(latents.strengths[inside].mean()),
        **{f"colour{k}": value for k, value in enumerate(latents.colour)},
    }
    derived["shape"] = float(SHAPES.index(latents.shape))
    plain = {f.name: getattr(latents, f.name) for f in dataclasses.fields(latents)}
    return derived | {name: float(value) for name, value in plain.items() if isinstance(value, int | float)}


@pytest.mark.parametrize("part", ["material", "bright", "humming"])
def test_latents_are_independent_of_the_class(part: str) -> None:
    count = 2400
    kinds = np.array([getattr(clip_kind(0, "train", index), part) for index in range(count)])
    table = [measures(clip_latents(0, "train", index, STYLE)) for index in range(count)]
    assert len(table[0]) >= 19

    def p_value(values: np.ndarray) -> float:
        return float(stats.kruskal(*(values[kinds == kind] for kind in sorted(set(kinds)))).pvalue)

    for name in table[0]:
        assert p_value(np.array([row[name] for row in table])) > 1e-4, name
    leaky = np.array([row["hue"] for row in table]) + 0.15 * (kinds == kinds[0])
    assert p_value(leaky) < 1e-4  # a leak of a seventh of the range would have shown


def test_splits_and_seeds_share_no_clip(folder: Path, tmp_path: Path) -> None:
    streams: list[tuple[int, Split]] = [(0, "train"), (0, "eval"), (1, "train"), (1, "eval")]
    impacts = {clip_latents(seed, split, i, STYLE).impacts[0] for seed, split in streams for i in range(300)}
    assert len(impacts) == 4 * 300
    train = ensure_synthetic(tmp_path, "train", 6, workers=1, progress=False)
    other = ensure_synthetic(tmp_path, "train", 6, seed=1, workers=1, progress=False)
    made = [*digests(folder).values(), *digests(train).values(), *digests(other).values()]
    assert len(set(made)) == SET + 12


# The cache


def test_bytes_do_not_depend_on_who_makes_them(folder: Path, tmp_path: Path) -> None:
    again = ensure_synthetic(tmp_path, "eval", 8, workers=2, progress=False)
    wanted = {f"{index:05d}.mp4" for index in range(8)}
    assert digests(again) == {name: digest for name, digest in digests(folder).items() if name in wanted}
    assert rows(again) == rows(folder)[:8]


def test_growing_keeps_what_is_made(tmp_path: Path) -> None:
    small = ensure_synthetic(tmp_path, "train", 3, workers=1, progress=False)
    before = {path.name: path.stat().st_ino for path in small.glob("*.mp4")}
    large = ensure_synthetic(tmp_path, "train", 5, workers=1, progress=False)
    after = {path.name: path.stat().st_ino for path in large.glob("*.mp4")}
    assert len(before) == len(rows(small)) == 3
    assert len(after) == len(rows(large)) == 5
    assert before.items() <= after.items()


def test_lost_clips_are_made_again(tmp_path: Path) -> None:
    folder = ensure_synthetic(tmp_path, "train", 3, workers=1, progress=False)
    before = digests(folder)
    for path in tmp_path.rglob("00001.mp4"):
        path.unlink()
    assert ensure_synthetic(tmp_path, "train", 3, workers=1, progress=False) == folder
    assert digests(folder) == before


def test_without_hard_links_the_clips_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(cache.os, "link", refuse)
    folder = ensure_synthetic(tmp_path, "train", 2, workers=1, progress=False)
    assert sorted(path.name for path in folder.iterdir()) == ["00000.mp4", "00001.mp4", "clips.csv"]
    assert digests(folder) == digests(tmp_path / folder.parent.name / "pool" / "train")


@pytest.mark.parametrize("change", ["version", "style", "seed"])
def test_another_generator_means_another_folder(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ensure_synthetic(tmp_path, "train", 1, workers=1, progress=False)
    if change == "version":
        monkeypatch.setattr(cache, "GENERATOR_VERSION", cache.GENERATOR_VERSION + 1)
    style = dataclasses.replace(STYLE, flash=0.5) if change == "style" else None
    second = ensure_synthetic(tmp_path, "train", 1, int(change == "seed"), workers=1, progress=False, style=style)
    assert first.parent != second.parent
    assert len(list(tmp_path.iterdir())) == 2
    assert (digests(first) == digests(second)) == (change == "version")  # the same generator under another number


def start_command(cache_dir: Path, clips: int, workers: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "diffmavil.data.synthetic", "--out", str(cache_dir), "--split", "eval"]
    command += ["--clips", str(clips), "--workers", str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_run_is_continued(folder: Path, tmp_path: Path) -> None:
    process = start_command(tmp_path, SET, workers=2)
    while len(list(tmp_path.rglob("*.mp4"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    time.sleep(0.5)  # its workers notice at their next clip
    made = {path.name: path.stat().st_ino for path in tmp_path.rglob("*.mp4")}
    assert 3 <= len(made) < SET
    assert not list(tmp_path.rglob("clips.csv"))
    view = ensure_synthetic(tmp_path, "eval", SET, workers=1, progress=False)
    assert digests(view) == digests(folder)
    assert made.items() <= {path.name: path.stat().st_ino for path in view.glob("*.mp4")}.items()
    assert not list(tmp_path.rglob("*.tmp"))


def test_processes_that_start_together_make_it_once(folder: Path, tmp_path: Path) -> None:
    processes = [start_command(tmp_path, SET, workers=1) for _ in range(3)]
    results = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], results
    (view,) = {Path(out.strip()) for out, _ in results}
    assert digests(view) == digests(folder)
    assert sum(f"making {SET}" in err for _, err in results) == 1


def test_a_failing_worker_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="2 of 2 rendering processes failed"):
        ensure_synthetic(tmp_path, "train", 4, workers=2, progress=False)
    assert not list(tmp_path.rglob("clips.csv"))


# Arguments, command line, contact sheet


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, r"split='test': must be one of \('train', 'eval'\)"),
        ({"clips": 0}, "clips=0: must be >= 1"),
        ({"seed": -1}, "seed=-1: must be >= 0"),
        ({"workers": 0}, "workers=0: must be >= 1"),
    ],
    ids=["split", "clips", "seed", "workers"],
)
def test_bad_arguments_are_refused(arguments: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        ensure_synthetic(**{"cache_dir": tmp_path, "split": "train", "clips": 1} | arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("field", "value"),
    [("radius", (3.0, 2.0)), ("period", (0.0, 1.0)), ("jitter", 1.0), ("weak", 0.0), ("distractors", (-1, 2))],
)
def test_bad_styles_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"style.{field}="):
        dataclasses.replace(STYLE, **{field: value})


@pytest.mark.parametrize("arguments", [[], ["--out", "x", "--clips", "0"], ["--out", "x", "--split", "test"]])
def test_bad_command_lines_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_contact_sheet(folder: Path, tmp_path: Path) -> None:
    contact_sheet(folder, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.width > 900
        assert np.asarray(image.convert("L")).std() > 40


def test_contact_sheet_needs_every_class(tmp_path: Path) -> None:
    folder = ensure_synthetic(tmp_path, "eval", 11, workers=1, progress=False)
    with pytest.raises(ValueError, match="must hold a clip of every class shown, lacks"):
        contact_sheet(folder, tmp_path / "sheet.png")
