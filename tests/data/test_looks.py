"""Several windows of a clip: where they lie, and that what is seen and heard in each is of the seconds that it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clip_files import number_shown, numbered, write_clip
from prepared_sets import prepare_here, write_clips
from telling_clips import AUDIO, RATE, VIDEO, heard, rising, write_telling

from diffmavil.config import Config, Modalities
from diffmavil.data.arrays import ArrayPicture, ArraySound
from diffmavil.data.dataset import make_reader
from diffmavil.data.decode import BadClip, Decoded
from diffmavil.data.looks import Look, MediaClip, Pair, Readable
from diffmavil.data.shards.prepared import read_prepared
from diffmavil.data.window_stream import SourceClips, stream_windows
from diffmavil.data.windows import Span

CONFIG = replace(Config(), model=replace(Config().model, video=VIDEO, audio=AUDIO))


@pytest.fixture(scope="module")
def telling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten seconds that tell which they are; the file's clock begins late."""
    return write_telling(tmp_path_factory.mktemp("clips") / "telling.mkv", video_start=3.0, audio_start=3.0)


def windows_of(clip: Readable, look: Look) -> list[Decoded]:
    found = list(clip.read(look, CONFIG))
    assert all(isinstance(one, Decoded) for one in found), found
    return [one for one in found if isinstance(one, Decoded)]


def assert_true_to_its_times(found: Decoded) -> None:
    """What is seen and heard in the middle of the window is what the recording has there."""
    if len(found.video):
        window = found.windows.video.later(-found.origin)
        middle = window.start + window.length * (len(found.video) // 2 + 0.5) / len(found.video)
        assert number_shown(found.video[len(found.video) // 2]) / 25 == pytest.approx(middle - 0.02, abs=0.025)
    if len(found.wave):
        window = found.windows.audio.later(-found.origin)
        assert heard(found.wave, 0.5) == pytest.approx(window.start + 0.5, abs=0.02)


def test_windows_are_spread_as_the_crops_of_the_evaluation():
    assert Look(1).starts(6.0) == [3.0]
    assert Look(3).starts(6.0) == [1.0, 3.0, 5.0]
    assert Look(2).starts(0.0) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("free", "starts"),
    [
        (6.0, [0.0, 2.5, 5.0, 6.0]),
        (5.0, [0.0, 2.5, 5.0]),
        (5.0004, [0.0, 2.5, 5.0004]),
        (1.0, [0.0, 1.0]),
        (0.0, [0.0]),
    ],
)
def test_with_a_hop_the_whole_clip_is_covered(free, starts):
    assert Look(hop=2.5).starts(free) == pytest.approx(starts)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"windows": 0}, "windows=0: must be a whole number >= 1"),
        ({"windows": 1.5}, "windows=1.5: must be a whole number"),
        ({"hop": 0.0}, "hop=0.0: must be seconds, positive"),
        ({"windows": 3, "hop": 1.0}, "windows=3: must be left out beside hop=1.0"),
    ],
)
def test_impossible_looks(arguments, why):
    with pytest.raises(ValueError, match=why):
        Look(**arguments)


@pytest.mark.parametrize("modalities", ["av", "audio", "video"])
def test_windows_of_a_file(tmp_path: Path, telling: Path, modalities: Modalities):
    plain = write_telling(tmp_path / "plain.mp4")
    for path, look, starts in (
        (plain, Look(3), [1.5, 4.5, 7.5]),
        (telling, Look(hop=2.0), [0, 2, 4, 6, 8, 9]),  # by its packets: the header counts what lies before the start
    ):
        found = windows_of(MediaClip(str(path), modalities), look)
        for one in found:
            assert_true_to_its_times(one)
        spans = [one.windows.audio if modalities == "audio" else one.windows.video for one in found]
        began = [span.start - one.origin for span, one in zip(spans, found, strict=True)]
        assert began == pytest.approx(starts, abs=0.1)


def test_windows_of_a_part_of_a_file(telling: Path):
    found = windows_of(MediaClip(str(telling), "av", start=2.0, duration=3.0), Look(hop=1.0))
    assert [one.windows.video.start - one.origin for one in found] == pytest.approx([2, 3, 4], abs=0.01)
    for one in found:
        assert_true_to_its_times(one)


def test_picture_and_sound_of_two_files_begin_together(tmp_path: Path, telling: Path):
    sound = write_clip(tmp_path / "sound.wav", sound=rising(10.0), codecs=(None, "pcm_s16le"))
    found = windows_of(Pair(str(telling), str(sound), "both"), Look(hop=3.0))
    assert len(found) == 4
    for one in found:
        assert_true_to_its_times(one)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """Six seconds at 25 frames a second."""
    paint = numbered()
    return np.stack([paint(i) for i in range(150)])


@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_windows_of_arrays(frames: np.ndarray, rate: int):
    sound = rising(6.0, rate).astype(np.float32)
    pair = Pair(ArrayPicture.of(frames, 25), ArraySound.of(sound, rate, RATE), "arrays")
    found = windows_of(pair, Look(hop=1.5))
    assert len(found) == 5
    for one in found:
        assert_true_to_its_times(one)


def test_an_array_gives_what_its_lossless_file_gives(tmp_path: Path, frames: np.ndarray):
    sound = (0.3 * np.random.default_rng(0).standard_normal(6 * RATE)).clip(-0.99, 0.99)
    coded = np.round(sound * 2**15).astype(np.int16)
    path = write_clip(tmp_path / "a.wav", sound=coded / 2**15, codecs=(None, "pcm_s16le"))
    (file,) = windows_of(MediaClip(str(path), "audio"), Look())
    (array,) = windows_of(Pair(None, ArraySound.of(coded, RATE, RATE), "a"), Look())
    assert np.array_equal(file.wave, array.wave)
    assert file.wave_valid == array.wave_valid
    (seen,) = windows_of(Pair(ArrayPicture.of(frames, 25), None, "v"), Look())
    assert np.array_equal(seen.video[0], frames[round((2.5 + 0.5 / 16) * 25 - 0.5)])


def test_arrays_shorter_than_a_window_are_padded_or_slowed_down(frames: np.ndarray):
    pair = Pair(ArrayPicture.of(frames[:15], 25), ArraySound.of(rising(0.6).astype("f4"), RATE, RATE), "short")
    (found,) = windows_of(pair, Look())
    assert found.wave_valid == round(0.6 * RATE)
    assert not found.wave[found.wave_valid :].any()
    assert [number_shown(frame) for frame in found.video] == [int((i + 0.5) * 15 / 16) for i in range(16)]


def test_channels_are_averaged():
    left, right = np.full(8000, 0.5), np.full(8000, -0.1)
    wave, valid = ArraySound.of(np.stack([left, right]), RATE, RATE).take(Span(0.1, 0.2), 1600)
    assert valid == 1600
    assert wave == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (
            lambda: ArrayPicture.of(np.zeros((4, 8, 8, 3)), 25),
            r"video='float64\[4, 8, 8, 3\]': must be uint8 \[T, H, W, 3\]",
        ),
        (lambda: ArrayPicture.of(np.zeros((4, 3, 8, 8), np.uint8), 25), r"must be uint8 \[T, H, W, 3\]"),
        (lambda: ArrayPicture.of(np.zeros((0, 8, 8, 3), np.uint8), 25), "not empty"),
        (lambda: ArrayPicture.of(np.zeros((4, 8, 8, 3), np.uint8), None), "fps=None: must be the frames a second"),
        (lambda: ArraySound.of(np.zeros(8, np.int32), RATE, RATE), r"audio='int32\[8\]': must be floats or int16"),
        (lambda: ArraySound.of(np.zeros((800, 2)), RATE, RATE), r"\[C, S\] with at most 64 channels first"),
        (lambda: ArraySound.of(np.zeros(800), None, RATE), "sample_rate=None: must be the samples a second"),
        (lambda: ArraySound.of(np.zeros(800), 44_100.5, RATE), "sample_rate=44100.5: must be"),
    ],
)
def test_arrays_that_are_no_clip(make, why):
    with pytest.raises(ValueError, match=why):
        make()


def test_arrays_that_are_no_sound():
    with pytest.raises(BadClip, match="NaN or infinite"):
        ArraySound.of(np.array([0.0, np.nan]), RATE, RATE)
    with pytest.raises(BadClip, match="full scale is 1"):
        ArraySound.of(np.array([0.0, 3000.0]), RATE, RATE)


def test_a_clip_too_short_is_bad():
    pair = Pair(None, ArraySound.of(np.zeros(800), RATE, RATE), "blip")
    with pytest.raises(BadClip, match=r"blip: only 0\.05 s of sound"):
        list(pair.read(Look(), CONFIG))


@pytest.mark.parametrize("workers", [0, 2])
def test_every_window_of_every_clip_comes_once(tmp_path: Path, telling: Path, workers: int):
    short = write_telling(tmp_path / "short.mkv", seconds=2.0)
    (tmp_path / "broken.mkv").write_bytes(b"nothing")
    files = [str(telling), str(tmp_path / "broken.mkv"), str(short)]
    items = [MediaClip(file, "av") for file in files]
    rows: dict[int, list[float]] = {}
    ended: dict[int, str] = {}
    for batch in stream_windows(items, Look(hop=4.0), CONFIG, batch_size=2, workers=workers):
        assert len(batch) <= 2
        assert batch.video.shape[1:] == (16, 64, 64, 3) or not len(batch)
        for clip, span in zip(batch.clip.tolist(), batch.spans, strict=True):
            assert clip not in ended
            rows.setdefault(clip, []).append(float(span[0, 0]))
        ended |= batch.ended
    assert rows[0] == pytest.approx([0, 4, 8, 9], abs=0.06)
    assert len(rows[2]) == 2
    assert ended == {0: "", 1: ended[1], 2: ""}
    assert "cannot be decoded" in ended[1]


def test_clips_of_shards(tmp_path: Path):
    prepare_here(write_clips(tmp_path / "src", 4), tmp_path / "out", per_shard=2)
    clips = read_prepared(str(tmp_path / "out"), "data.root").clips
    config = replace(CONFIG, data=replace(CONFIG.data, cache=str(tmp_path / "cache")))
    batches = list(stream_windows(SourceClips(clips, "av", make_reader(config)), Look(2), config, batch_size=3))
    assert [len(batch) for batch in batches] == [3, 3, 2]
    shown = [number_shown(video[0]) // 20 for batch in batches for video in batch.video]
    assert sorted(shown) == [0, 0, 1, 1, 2, 2, 3, 3]
    (tmp_path / "out" / "shard-000001.tar").unlink()
    *_, last = stream_windows(SourceClips(clips, "av", make_reader(config)), Look(), config, batch_size=3)
    assert "shard-000001.tar" in last.failure
