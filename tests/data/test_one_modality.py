"""Sound alone and video alone: the other track is neither needed nor decoded, from the file to the batch."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from av.codec import codecs_available
from clip_files import cut_off, number_shown, numbered, write_clip
from prepared_sets import prepare_here
from sound_files import rising, sound_of_file, write_sound

from diffmavil.config import AudioConfig, Config, DataConfig, Modalities, ModelConfig, TrainConfig, VideoConfig
from diffmavil.config.errors import TooManyBadClips, UsageError
from diffmavil.data.bottleneck import diagnose, judge
from diffmavil.data.clips import ClipSet
from diffmavil.data.dataset import Batch
from diffmavil.data.decode import BadClip, Decoded, decode_clip, decode_sound
from diffmavil.data.decoders import choose_decoder
from diffmavil.data.loader import eval_batches, make_loader
from diffmavil.data.prepare.items import Item
from diffmavil.data.prepare.settings import Settings
from diffmavil.data.prepare.transcode import Piece, transcode
from diffmavil.data.prepare.verify import verify
from diffmavil.data.sources import open_source, split_source
from diffmavil.data.stats import open_data
from diffmavil.doctor import main as doctor_command
from diffmavil.prepare import main as prepare_command

VIDEO = VideoConfig(frames=4, seconds=1.0, size=32, patch=(2, 16, 16))
AUDIO = AudioConfig(frames=96, mels=64)  # 0.975 s
RATE = 16_000
LENGTH = {"d.mp3": 12.0, "h.m4a": 12.0}
FORMATS = {
    # name -> codec, samples a second, layout, format of the container (None: as the suffix says)
    "a.wav": ("pcm_s16le", 8000, "mono", None),
    "b.wav": ("pcm_s16le", 48_000, "5.1", None),
    "c.flac": ("flac", 44_100, "stereo", None),
    "d.mp3": ("libmp3lame", 44_100, "stereo", None),
    "e.ogg": ("libopus", 48_000, "mono", None),
    "f.oga": ("flac", 44_100, "mono", "ogg"),
    "g.opus": ("libopus", 48_000, "stereo", None),
    "h.m4a": ("aac", 44_100, "stereo", "mp4"),
    "i.aac": ("aac", 44_100, "mono", "adts"),
    "j.aiff": ("pcm_s16be", 44_100, "stereo", None),
    "k.amr": ("libopencore_amrnb", 8000, "mono", None),
}


def config(root: Path, modalities: Modalities, **data) -> Config:
    model = ModelConfig(modalities=modalities, video=VIDEO, audio=AUDIO)
    settings = DataConfig(root=str(root), cache=str(root.parent / "cache"), workers=0, **data)
    return Config(model=model, data=settings, train=TrainConfig(batch_size=3))


def decode(path: Path, modalities: Modalities, **arguments) -> Decoded:
    return decode_clip(str(path), VIDEO, AUDIO, modalities=modalities, **arguments)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in every format, 30 s long, or 12 s where that takes long to encode."""
    root = tmp_path_factory.mktemp("sounds")
    for name, (codec, rate, layout, form) in FORMATS.items():
        if codec in codecs_available:  # PyAV 19 writes no AMR
            write_sound(root / name, rising(LENGTH.get(name, 30.0), rate), codec, rate, layout, form)
    return root


@pytest.mark.parametrize("name", FORMATS)
def test_a_window_of_a_sound_file_is_what_lies_there(sounds: Path, name: str) -> None:
    """Also behind a seek, and also where the header only guesses how long the file is."""
    if not (sounds / name).exists():
        pytest.skip(f"this PyAV has no encoder {FORMATS[name][0]} to make the file with")
    begin, whole = sound_of_file(sounds / name, RATE)
    assert len(whole) == pytest.approx(LENGTH.get(name, 30.0) * RATE, abs=0.1 * RATE)
    for crop in ((0, 5), (3, 5)):
        decoded = decode(sounds / name, "audio", crop=crop)
        first = round((decoded.windows.audio.start - begin) * RATE)
        expected = whole[first : first + AUDIO.samples]
        assert decoded.video.shape == (0, 0, 0, 3)
        assert decoded.wave.shape == (AUDIO.samples,)
        assert decoded.wave_valid == AUDIO.samples
        inner = slice(RATE // 20, -RATE // 20)  # a resampler begins with what it was given
        assert np.corrcoef(decoded.wave[inner], expected[inner])[0, 1] > 0.98


def test_a_window_of_an_mp3_of_few_bits_is_exact(tmp_path: Path) -> None:
    """Its frames lie in the bytes of several before them."""
    path = write_sound(tmp_path / "a.mp3", rising(6.0, RATE), "libmp3lame", RATE, "mono", bit_rate=16_000)
    begin, whole = sound_of_file(path, RATE)
    decoded = decode(path, "audio", crop=(3, 4))
    first = round((decoded.windows.audio.start - begin) * RATE)
    assert first > 3 * RATE
    np.testing.assert_array_equal(decoded.wave, whole[first : first + AUDIO.samples])


@pytest.mark.parametrize("name", ["a.wav", "c.flac", "d.mp3", "e.ogg", "i.aac"])
def test_a_sound_file_that_is_cut_off_is_used_as_far_as_it_goes(sounds: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes((sounds / name).read_bytes())
    cut_off(tmp_path / name, 0.5)
    decoded = decode(tmp_path / name, "audio", crop=(4, 5))
    half = LENGTH.get(name, 30.0) / 2
    assert 0.7 * half < decoded.windows.audio.start < half
    assert decoded.wave_valid == AUDIO.samples
    (tmp_path / name).write_bytes(b"no sound " * 1000)
    with pytest.raises(BadClip, match=r"cannot be decoded|only 0\.00 s of sound"):
        decode(tmp_path / name, "audio")


@pytest.mark.parametrize("size", [b"\xff" * 4, b"\0" * 4], ids=["endless", "none"])
def test_a_wav_whose_header_was_written_before_its_sound(sounds: Path, tmp_path: Path, size: bytes) -> None:
    data = bytearray((sounds / "a.wav").read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = size
    (tmp_path / "a.wav").write_bytes(data)
    decoded = decode(tmp_path / "a.wav", "audio", crop=(4, 5))
    assert decoded.windows.audio.start == pytest.approx(0.9 * (30 - AUDIO.samples / RATE), abs=0.01)
    assert decoded.wave_valid == AUDIO.samples


def test_crops_are_spread_evenly_and_the_single_one_is_at_the_centre(sounds: Path) -> None:
    room = 30.0 - AUDIO.samples / RATE
    starts = [decode(sounds / "c.flac", "audio", crop=(i, 3)).windows.audio.start for i in range(3)]
    assert starts == pytest.approx([room / 6, room / 2, room * 5 / 6], abs=1e-3)
    assert decode(sounds / "c.flac", "audio").windows.audio.start == pytest.approx(room / 2, abs=1e-3)
    drawn = {decode(sounds / "c.flac", "audio", rng=np.random.default_rng(i)).windows.audio.start for i in range(8)}
    assert len(drawn) == 8
    assert 0 <= min(drawn) < 15 < max(drawn) <= room


@pytest.mark.parametrize("name", ["a.wav", "d.mp3", "e.ogg"])
def test_a_short_sound_is_padded_and_a_shorter_one_refused(tmp_path: Path, name: str) -> None:
    codec, rate, layout, form = FORMATS[name]
    decoded = decode(write_sound(tmp_path / name, rising(0.2, rate), codec, rate, layout, form), "audio")
    assert decoded.wave_valid == pytest.approx(0.2 * RATE, abs=0.03 * RATE)
    assert decoded.wave[: decoded.wave_valid].any()
    assert not decoded.wave[decoded.wave_valid :].any()
    path = write_sound(tmp_path / "b.wav", rising(0.05, 8000), "pcm_s16le", 8000, "mono")
    with pytest.raises(BadClip, match=r"only 0\.05 s of sound, at least 0\.1 s are needed"):
        decode(path, "audio")


def test_the_part_of_a_sound_file(sounds: Path) -> None:
    _, whole = sound_of_file(sounds / "a.wav", RATE)
    decoded = decode(sounds / "a.wav", "audio", start=12.0, duration=0.5)
    assert decoded.wave_valid == RATE // 2
    assert np.corrcoef(decoded.wave[: RATE // 2], whole[12 * RATE :][: RATE // 2])[0, 1] > 0.9999
    with pytest.raises(BadClip, match=r"only 0\.00 s of sound"):
        decode(sounds / "a.wav", "audio", start=40.0)


def test_a_muted_video_is_enough_for_video_alone(tmp_path: Path) -> None:
    muted = write_clip(tmp_path / "a.mp4", paint=numbered(32, 32), seconds=3.0, codecs=("libx264", None))
    decoded = decode(muted, "video")
    assert decoded.video.shape == (4, 32, 32, 3)
    assert [number_shown(frame) for frame in decoded.video] == [28, 34, 40, 46]  # the middle second, 25 frames a second
    assert decoded.wave.shape == (0,)
    assert decoded.wave.dtype == np.float32
    assert decoded.wave_valid == 0
    for modalities in ("av", "audio"):
        with pytest.raises(BadClip, match="no audio stream"):
            decode(muted, modalities)
    short = write_clip(tmp_path / "b.mp4", seconds=0.2, codecs=("libx264", None))
    with pytest.raises(BadClip, match=r"only 0\.20 s of picture, at least 0\.5 s are needed"):
        decode(short, "video")


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts"])
def test_one_track_of_a_video_is_as_in_both(tmp_path: Path, suffix: str) -> None:
    """Each alone gives what both together give at the same time of the file."""
    path = write_clip(tmp_path / f"a.{suffix}", seconds=6.0, sound=rising(6.0, RATE), codecs=("mpeg4", "mp2"))
    # Of as long a window as the picture's, so that all three lie alike.
    video = replace(VIDEO, seconds=AUDIO.samples / RATE)
    both, heard, seen = (
        decode_clip(str(path), video, AUDIO, modalities=m, crop=(3, 4)) for m in ("av", "audio", "video")
    )
    shown = np.array([[number_shown(frame) for frame in decoded.video] for decoded in (both, seen)])
    assert np.abs(shown[0] - shown[1]).max() <= 1
    begin = 0.1 + max(decoded.windows.audio.start for decoded in (both, heard))
    firsts = [round((begin - decoded.windows.audio.start) * RATE) for decoded in (both, heard)]
    assert max(firsts) < 0.2 * RATE
    there, here = (one.wave[first:][: RATE // 2] for one, first in zip((both, heard), firsts, strict=True))
    assert np.corrcoef(there, here)[0, 1] > 0.98
    assert seen.wave.shape == (0,)


@pytest.mark.parametrize("name", ["c.flac", "d.mp3", "h.m4a"])
def test_cover_art_is_no_video(tmp_path: Path, name: str) -> None:
    codec, rate, layout, form = FORMATS[name]
    path = write_sound(tmp_path / name, rising(2.0, rate), codec, rate, layout, form, cover=True)
    assert decode(path, "audio").wave_valid == AUDIO.samples
    for modalities in ("av", "video"):
        with pytest.raises(BadClip, match="no video stream"):
            decode(path, modalities)


def test_sound_of_the_statistics(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", rising(2.0, RATE), "pcm_s16le", RATE, "mono")
    assert decode_sound(str(path), AUDIO, modalities="audio").wave_valid == AUDIO.samples
    with pytest.raises(BadClip, match="no video stream"):
        decode_sound(str(path), AUDIO)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes: sound files, a video with sound and a muted one."""
    root = tmp_path_factory.mktemp("mixed") / "clips"
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True)
    write_sound(root / "cat/a.wav", rising(1.5, 8000), "pcm_s16le", 8000, "mono")
    write_sound(root / "dog/b.FLAC", rising(1.5, 44_100), "flac", 44_100, "stereo", "flac")
    write_clip(root / "dog/c.mp4", seconds=1.5)
    write_clip(root / "cat/d.mp4", seconds=1.5, codecs=("libx264", None))
    (root / "notes.txt").touch()
    return root


@pytest.mark.parametrize(
    ("modalities", "files", "aside"),
    [
        ("av", ["cat/d.mp4", "dog/c.mp4"], "not looked at: 1 .flac, 1 .txt, 1 .wav"),
        ("video", ["cat/d.mp4", "dog/c.mp4"], "not looked at: 1 .flac, 1 .txt, 1 .wav"),
        ("audio", ["cat/a.wav", "cat/d.mp4", "dog/b.FLAC", "dog/c.mp4"],
         "2 videos, 2 sound files; not looked at: 1 .txt"),
    ],
)  # fmt: skip
def test_a_folder_says_what_it_takes_and_what_it_leaves(mixed: Path, modalities, files: list[str], aside: str) -> None:
    clipset = open_source(DataConfig(root=str(mixed)), "train", modalities)
    assert [str(Path(clip.path).relative_to(mixed)) for clip in clipset.clips] == files
    assert [clipset.classes[clip.labels[0]] for clip in clipset.clips] == [file[:3] for file in files]
    assert clipset.note == f"{len(files)} clips of {mixed} ({aside})"


def test_a_folder_without_what_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match=r"no sound file or video found .*\.wav.*\.mp4.*; not looked at: 1 \.txt$"):
        open_source(DataConfig(root=str(tmp_path)), "train", "audio")
    for name in ("a.wav", "b.wav", "c.mp3"):
        (tmp_path / name).touch()
    wanted = r"data\.root=.*no video found.*2 \.wav, 1 \.mp3: sound alone needs --model\.modalities audio"
    for modalities in ("av", "video"):
        with pytest.raises(ValueError, match=wanted):
            open_source(DataConfig(root=str(tmp_path)), "train", modalities)


def test_a_table_of_sound_files_with_two_labels(mixed: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(f"path,labels\n{mixed}/cat/a.wav,cat;loud\n{mixed}/dog/c.mp4,dog;loud\n")
    settings = config(table, "audio")
    clips = split_source(settings.data, "audio").train
    assert clips.classes == ["cat", "dog", "loud"]
    with eval_batches(settings, clips, 2) as loader:
        (batch,) = list(loader)
    assert batch.labels == [(0, 2), (1, 2)]
    with eval_batches(config(table, "av"), clips, 2) as loader:
        (batch,) = list(loader)
        assert loader.bad == {f"{mixed}/cat/a.wav": "no video stream"}
    assert len(batch) == 1


@pytest.mark.parametrize(
    ("modalities", "picture", "samples"),
    [("audio", (3, 0, 0, 0, 3), AUDIO.samples), ("video", (3, 4, 32, 32, 3), 0)],
)
def test_batches_keep_their_rows(mixed: Path, modalities, picture: tuple[int, ...], samples: int) -> None:
    settings = config(mixed, modalities, max_bad_share=1.0)
    clips = open_source(settings.data, "train", modalities)
    usable = ("cat/a.wav", "dog/b.FLAC", "dog/c.mp4") if modalities == "audio" else ("cat/d.mp4", "dog/c.mp4")
    with make_loader(settings, clips, steps=2) as loader:
        found = list(loader)
    assert len(found) == 2
    for batch in found:
        assert len(batch) == 3
        assert tuple(batch.video.shape) == picture
        assert batch.video.dtype == torch.uint8
        assert tuple(batch.wave.shape) == (3, samples)
        assert batch.wave.dtype == torch.float32
        assert batch.wave_valid.tolist() == [samples] * 3
        assert all(path.endswith(usable) for path in batch.paths)


@pytest.mark.parametrize("wanted", ["torchcodec", "dali", "auto"])
def test_sound_alone_is_always_decoded_by_pyav(wanted) -> None:
    assert choose_decoder(wanted, ClipSet([], []).clips, torch.device("cuda"), "audio") == "pyav"


def test_statistics(mixed: Path) -> None:
    seen, split = open_data(config(mixed, "video"))
    assert (seen.model.audio.mean, seen.model.audio.std) == (None, None)
    assert len(split.train) == 2
    heard, _ = open_data(config(mixed, "audio"))
    both, _ = open_data(config(mixed, "av"))
    assert heard.model.audio.std
    assert both.model.audio.std
    assert heard.model.audio.mean != both.model.audio.mean


def read(root: Path, modalities: Modalities) -> Batch:
    """All clips of a set as one batch, in order."""
    settings = config(root, modalities, eval_root=str(root))
    clips = split_source(settings.data, modalities).held_out
    with eval_batches(settings, clips, len(clips)) as loader:
        (batch,) = list(loader)
        assert not loader.bad
    return batch


def test_prepared_sound_is_the_sound_of_the_files(tmp_path: Path) -> None:
    """16 kHz wav: nothing is resampled, and FLAC keeps what was quantised."""
    root = tmp_path / "clips"
    for index, seconds in enumerate((0.2, 0.9, 2.5)):
        path = root / f"class{index % 2}" / f"{index}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sound(path, rising(seconds, RATE), "pcm_s16le", RATE, "mono")
    found = prepare_here(root, tmp_path / "out", modalities="audio", per_shard=2)
    assert (found.facts["clips"], found.facts["seconds"]) == (3, 3.6)
    assert found.facts["bytes_out"] < 1.2 * found.facts["bytes_in"]
    assert set(found.audio) == {64, 128}
    assert verify(tmp_path / "out") == []
    with tarfile.open(tmp_path / "out" / found.shards[0][0]) as tar:
        assert {Path(name).suffix for name in tar.getnames()} == {".flac", ".json"}
    plain, prepared = read(root, "audio"), read(tmp_path / "out", "audio")
    assert plain.wave_valid.tolist() == prepared.wave_valid.tolist()
    assert plain.labels == prepared.labels
    torch.testing.assert_close(plain.wave, prepared.wave, rtol=0, atol=1.01 / 32768)
    stats, _ = open_data(config(tmp_path / "out", "audio"))
    assert (stats.model.audio.mean, stats.model.audio.std) == found.audio[64]


def test_a_long_sound_is_cut_into_pieces(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    write_sound(tmp_path / "clips/a.flac", rising(10.0, 44_100), "flac", 44_100, "stereo")
    found = prepare_here(tmp_path / "clips", tmp_path / "out", modalities="audio", cut=4.0)
    assert found.facts["clips"] == 3
    assert found.facts["seconds"] == pytest.approx(10.0, abs=0.01)


def test_years_without_a_picture_are_no_pieces(tmp_path: Path) -> None:
    """One damaged time stamp makes them."""
    times = [*np.arange(50) / 25, *(1e6 + np.arange(10) / 25)]
    path = write_clip(tmp_path / "a.mkv", times=times, codecs=("libx264", None))
    found = list(islice(transcode(Item(0, str(path), "a"), Settings(modalities="video"), 60.0), 200))
    bad, *pieces = found
    assert isinstance(bad, BadClip)
    assert bad.reason == "33212 pieces without any picture, where its time stamps jump"
    # What is seen before the jump stays for an hour at most.
    starts = [round(piece.start, -1) for piece in pieces if isinstance(piece, Piece)]
    assert starts == [*range(0, 3601, 30), 999_970]


def test_pictures_that_stay_are_pieces(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", times=[0.0, 0.04, 40.0, 80.0, 80.5], codecs=("libx264", None))
    found = list(transcode(Item(0, str(path), "a"), Settings(modalities="video", cut=10.0), 60.0))
    assert [round(piece.start) for piece in found if isinstance(piece, Piece)] == [0, 10, 20, 30, 40, 50, 60, 70]


def test_prepared_muted_videos(mixed: Path, tmp_path: Path) -> None:
    found = prepare_here(mixed, tmp_path / "out", modalities="video")
    assert (found.facts["clips"], found.audio) == (2, {})
    assert found.facts["seconds"] == pytest.approx(3.0, abs=0.05)
    assert verify(tmp_path / "out") == []
    with tarfile.open(tmp_path / "out" / found.shards[0][0]) as tar:
        assert {Path(name).suffix for name in tar.getnames()} == {".mp4", ".json"}
    plain, prepared = read(mixed, "video"), read(tmp_path / "out", "video")
    shown = [[number_shown(frame.numpy()) for clip in batch.video for frame in clip] for batch in (plain, prepared)]
    assert shown[0] == shown[1]


def test_one_part_of_a_prepared_set_of_both(mixed: Path, tmp_path: Path) -> None:
    """Only that part is read: what is wrong with the other is not seen."""
    out = tmp_path / "out"
    found = prepare_here(mixed, out)
    assert found.facts["reasons"] == {"no audio stream": 1}
    both, heard, seen = (read(out, modalities) for modalities in ("av", "audio", "video"))
    assert heard.wave.any()
    assert tuple(heard.video.shape) == (1, 0, 0, 0, 3)
    shown = np.array([[number_shown(frame.numpy()) for frame in batch.video[0]] for batch in (both, seen)])
    assert np.abs(shown[0] - shown[1]).max() <= 1
    shard = out / found.shards[0][0]
    data = bytearray(shard.read_bytes())
    data[data.index(b"mdat") + 100] ^= 1
    shard.write_bytes(data)
    assert torch.equal(read(out, "audio").wave, heard.wave)
    settings = config(out, "video")
    clips = split_source(settings.data, "video").train
    with eval_batches(settings, clips, 2) as loader, pytest.raises(TooManyBadClips, match="checksum is wrong"):
        list(loader)


def test_a_prepared_set_without_what_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    write_sound(tmp_path / "clips/a.wav", rising(1.0, RATE), "pcm_s16le", RATE, "mono")
    prepare_here(tmp_path / "clips", tmp_path / "out", modalities="audio")
    data = DataConfig(root=str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"data\.root=.*out': prepared with sound alone: .* picture and sound "):
        split_source(data)
    with pytest.raises(ValueError, match=r"data\.root=.*out': prepared with sound alone: .* picture alone "):
        split_source(data, "video")


def test_the_doctor_looks_at_video_alone(mixed: Path) -> None:
    found = diagnose(config(mixed, "video"), 0.01)
    assert min(found.decode, found.transform, found.together) > 0


def test_the_doctor_gives_sound_no_advice_on_pictures() -> None:
    for read in (None, 5000.0):
        _, said = judge(2, 2, read, 10.0, 900.0, None, 19.0, "audio")
        assert ("--modalities audio" in said) == (read is None)
        assert not any(word in said for word in ("picture", "--short-side", "data.decoder"))


def test_the_commands(mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    write_sound(sounds / "a.wav", rising(1.0, 8000), "pcm_s16le", 8000, "mono")
    with pytest.raises(UsageError, match=r"SRC=.*1 \.wav: sound alone needs --modalities audio"):
        prepare_command([str(sounds), out])
    with pytest.raises(SystemExit, match="2"):
        prepare_command([str(mixed), out, "--modalities", "video", "--drop-silent"])
    assert "--drop-silent=True: must be off" in capsys.readouterr().err
    prepare_command([str(mixed), out, "--modalities", "audio", "--workers", "1"])
    said = capsys.readouterr().out
    assert "2 videos, 2 sound files; not looked at: 1 .txt" in said
    assert "skipped 1: no audio stream" in said
    wanted = ["--preset", "diffmavil-tiny", "--seconds", "0.05", "--workers", "1", "--no-step", "--json"]
    doctor_command(["--data", out, "--modalities", "audio", *wanted])
    assert json.loads(capsys.readouterr().out)["together"] > 0
    with pytest.raises(UsageError, match="prepared with sound alone"):
        doctor_command(["--data", out, *wanted])
