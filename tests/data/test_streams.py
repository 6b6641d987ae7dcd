"""Clips whose streams are not as usual: channels, tracks, decoders, mirrors, covers, samples that are no sound."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from clip_files import number_shown, write_clip
from odd_clips import (
    corners,
    ffmpeg,
    needs_ffmpeg,
    process_apart,
    quarters,
    set_matrix,
    write_changing,
    write_covered,
    write_sound,
    write_ticking,
)
from prepared_sets import prepare_here
from rich.console import Console

from diffmavil.config import AudioConfig, Config, DataConfig, ModelConfig, TrainConfig, VideoConfig
from diffmavil.data.audio import log_mel
from diffmavil.data.decode import BadClip, decode_clip
from diffmavil.data.loader import eval_batches, make_loader
from diffmavil.data.prepare.items import Item
from diffmavil.data.prepare.settings import Settings
from diffmavil.data.prepare.transcode import Piece, transcode
from diffmavil.data.stats import open_data
from diffmavil.data.transforms import Framing
from diffmavil.prepare import report

VIDEO, AUDIO = VideoConfig(frames=4, size=32, seconds=0.5, patch=(2, 8, 8)), AudioConfig(frames=48, mels=64)
RATE = AUDIO.sample_rate


@pytest.fixture(scope="module")
def apart() -> Iterator[Callable[..., Any]]:
    with process_apart() as call:
        yield call


def prepared(path: Path, **settings) -> list[Piece | BadClip]:
    return list(transcode(Item(0, str(path), path.name), Settings(**settings), 60.0))


def reason_of(path: Path) -> str:
    """Why a clip is refused, in training and in preparation alike."""
    with pytest.raises(BadClip) as caught:
        decode_clip(str(path), VIDEO, AUDIO)
    assert caught.value.path == str(path)
    for found in prepared(path):
        assert isinstance(found, BadClip)
        assert (found.path, found.reason) == (path.name, caught.value.reason)
    return caught.value.reason


def loudness(path: Path) -> tuple[float, float]:
    """Peak of the sound as it is decoded for training, and as it is prepared."""
    direct = decode_clip(str(path), VIDEO, AUDIO).wave
    (piece,) = prepared(path)
    assert isinstance(piece, Piece)
    return float(np.abs(direct).max()), float(np.abs(flac(piece)).max())


def flac(piece: Piece) -> np.ndarray:
    """The sound of a prepared clip: float32, full scale 1."""
    with av.open(io.BytesIO(piece.flac), "r") as container:
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)]) / np.float32(32768)


CODED = {
    "pcm-packed": ("pcm_s16le", ".mkv", "", range(1, 17)),
    "pcm-planar": ("pcm_s16le_planar", ".nut", "", range(1, 17)),
    "wavpack-planar-float": ("wavpack", ".mkv", "fltp", range(6, 17)),
    "wavpack-planar-8-bit": ("wavpack", ".mkv", "u8p", (7, 8, 9, 16)),
    "pcm-packed-float": ("pcm_f32le", ".mov", "", (7, 8, 9, 16, 24)),
    "flac": ("flac", ".mkv", "", (1, 6, 7, 8)),
}


def heard(folder: Path, codec: str, suffix: str, form: str, counts: list[int]) -> list[tuple[int, float, float]]:
    """(channels, loudness as decoded, loudness as prepared): channel k of n has a tone of level (k + 1) / 2n."""
    tone = np.sin(2 * np.pi * 400 * np.arange(RATE) / RATE)
    found = []
    for count in counts:
        path = folder / f"{count}{suffix}"
        levels = (np.arange(count) + 1) / (2 * count)
        write_sound(path, levels[:, None] * tone, codec, f"{count} channels", form=form)
        found.append((count, *loudness(path)))
    return found


@pytest.mark.parametrize(("codec", "suffix", "form", "counts"), CODED.values(), ids=list(CODED))
def test_any_number_of_channels(tmp_path: Path, apart, codec: str, suffix: str, form: str, counts: range) -> None:
    """Mono is the mean of all channels; decoded apart, since reading channels that are not there ends a process."""
    found = apart(heard, tmp_path, codec, suffix, form, list(counts))
    assert [count for count, *_ in found] == list(counts)
    for count, direct, again in found:
        level = (count + 1) / (4 * count)
        assert direct == pytest.approx(level, abs=0.01), count
        assert again == pytest.approx(level, abs=0.01), count


SURROUND = {
    "aac-7.1": ("aac", ".mp4", 48_000, "7.1", 8),
    "opus-7.1": ("libopus", ".mkv", 48_000, "7.1", 8),
    "pcm-7.1.4": ("pcm_s16le", ".mov", 48_000, "7.1.4", 12),
    "wavpack-22.2": ("wavpack", ".mkv", 48_000, "22.2", 24),
}


def surround(path: Path, codec: str, rate: int, layout: str, count: int) -> tuple[float, float]:
    tone = 0.5 * np.sin(2 * np.pi * 60 * np.arange(rate) / rate)  # deep enough for the LFE channel
    return loudness(write_sound(path, np.tile(tone, (count, 1)), codec, layout, rate))


@pytest.mark.parametrize(("codec", "suffix", "rate", "layout", "count"), SURROUND.values(), ids=list(SURROUND))
def test_surround_layouts(tmp_path: Path, apart, codec: str, suffix: str, rate: int, layout: str, count: int) -> None:
    direct, again = apart(surround, tmp_path / f"a{suffix}", codec, rate, layout, count)
    assert direct == pytest.approx(0.5, abs=0.03)
    assert again == pytest.approx(0.5, abs=0.03)


def renamed(path: Path, codec: bytes, *, every: bool = False) -> Path:
    """Give the tracks of a codec a fourcc that nobody knows: the first that the file names, or all."""
    data = path.read_bytes()
    begin = max(data.find(b"moov"), data.find(b"hdrl"))  # what comes before names brands, not tracks
    assert begin > 0
    assert codec in data[begin:]
    path.write_bytes(data[:begin] + data[begin:].replace(codec, b"zzzz", -1 if every else 1))
    return path


def test_tracks_without_a_decoder_are_bad_clips(tmp_path: Path) -> None:
    for name, codec, what in (("a.mp4", b"avc1", "video"), ("b.mp4", b"mp4a", "audio"), ("c.avi", b"FMP4", "video")):
        codecs = ("mpeg4", "pcm_s16le") if name == "c.avi" else ("libx264", "aac")
        path = renamed(write_clip(tmp_path / name, seconds=1.0, codecs=codecs), codec, every=True)
        if codec == b"mp4a":
            renamed(path, b"esds")  # names the codec too
        assert reason_of(path) == f"no decoder for its {what} stream"


def two_tracks(path: Path, greys: tuple[int, int], levels: tuple[float, float], how: Callable | None = None) -> Path:
    """Two picture tracks of one grey each and two sound tracks of one level each; `how` is given the streams."""
    with av.open(str(path), "w") as container:
        pictures = [container.add_stream("libx264", rate=25, options={"preset": "ultrafast"}) for _ in greys]
        sounds = [container.add_stream("aac", rate=RATE, layout="mono") for _ in levels]
        for stream in pictures:
            stream.width = stream.height = 32
            stream.pix_fmt = "yuv420p"
        if how:
            how(pictures, sounds)
        packets = []
        for stream, grey in zip(pictures, greys, strict=True):
            for index in range(40):
                frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), grey, np.uint8), format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 25)
                packets += stream.encode(frame)
            packets += stream.encode(None)
        for stream, level in zip(sounds, levels, strict=True):
            tone = level * np.sin(2 * np.pi * 400 * np.arange(25_600, dtype=np.float32) / RATE)
            samples = av.AudioFrame.from_ndarray(tone[None].astype(np.float32), format="fltp", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = RATE, 0, Fraction(1, RATE)
            packets += [*stream.encode(samples), *stream.encode(None)]
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            container.mux(packet)
    return path


def seen_and_heard(path: Path) -> list[tuple[float, float]]:
    """(grey, level) of a clip, decoded and prepared."""
    decoded = decode_clip(str(path), VIDEO, AUDIO)
    (piece,) = prepared(path)
    assert isinstance(piece, Piece)
    with av.open(io.BytesIO(piece.mp4), "r") as container:
        grey = next(container.decode(video=0)).to_ndarray(format="rgb24").mean()
    return [(decoded.video.mean(), np.abs(decoded.wave[1000:6000]).max()), (grey, np.abs(flac(piece)[1000:6000]).max())]


def assert_shown(path: Path, grey: int, level: float) -> None:
    for found in seen_and_heard(path):
        assert found == (pytest.approx(grey, abs=6), pytest.approx(level, rel=0.1))


def test_the_track_with_a_decoder_is_taken(tmp_path: Path) -> None:
    path = two_tracks(tmp_path / "a.mp4", (60, 180), (0.2, 0.6))
    assert_shown(path, 60, 0.2)
    for code in (b"avc1", b"mp4a", b"esds"):
        renamed(path, code)
    assert_shown(path, 180, 0.6)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_tag_that_is_no_text_costs_nothing(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"

    def tag(pictures: list, sounds: list) -> None:
        pictures[0].container.metadata["title"] = "QQQQQQQQ"
        for stream in (*pictures, *sounds):
            stream.metadata["handler_name" if suffix == ".mp4" else "title"] = "RRRRRRRR"

    data = two_tracks(path, (60, 180), (0.2, 0.6), tag).read_bytes()
    assert data.count(b"QQQQQQQQ") >= 1
    assert data.count(b"RRRRRRRR") >= 4
    path.write_bytes(
        data.replace(b"QQQQQQQQ", b"\xff\xfe\x80QQ\xc3\x28\xa0").replace(b"RRRRRRRR", b"\xf0\x28\x8c\xbcRR\xe9\xff")
    )
    with pytest.raises(UnicodeDecodeError):
        av.open(str(path))
    assert_shown(path, 60, 0.2)


def test_our_own_faults_are_not_taken_for_bad_clips(tmp_path: Path) -> None:
    def faulty(width: float, height: float) -> None:
        raise TypeError("a fault of ours")

    path = write_clip(tmp_path / "a.mp4", seconds=1.0)
    with pytest.raises(TypeError, match="a fault of ours"):
        decode_clip(str(path), VIDEO, AUDIO, framing=faulty)  # type: ignore[arg-type]


def test_a_stream_that_comes_up_late_ends_no_run(tmp_path: Path) -> None:
    """PyAV knows the streams of a file's beginning; one that is announced later ends its reading in an IndexError."""
    noise = np.random.default_rng(0).integers(0, 256, (25, 64, 64, 3)).astype(np.uint8)
    path = write_clip(tmp_path / "a.ts", seconds=7.0, paint=lambda index: noise[index % 25])  # more than is probed
    other = two_tracks(tmp_path / "b.ts", (60, 180), (0.2, 0.6))
    path.write_bytes(path.read_bytes() + other.read_bytes() + path.read_bytes())
    with av.open(str(path), "r") as container, pytest.raises(IndexError):
        list(container.demux(video=0, audio=0))
    assert decode_clip(str(path), VIDEO, AUDIO).wave.any()
    assert all(isinstance(piece, Piece) for piece in prepared(path))


ORIENTATIONS = {
    "as-coded": ((1, 0, 0, 1), "rgbw"),
    "mirrored": ((-1, 0, 0, 1), "grwb"),
    "upside-down": ((1, 0, 0, -1), "bwrg"),
    "half-a-turn": ((-1, 0, 0, -1), "wbgr"),
    "clockwise": ((0, 1, -1, 0), "brwg"),
    "against-the-clock": ((0, -1, 1, 0), "gwrb"),
    "transposed": ((0, 1, 1, 0), "rbgw"),
    "transposed-and-half-a-turn": ((0, -1, -1, 0), "wgbr"),
}


def whole(width: float, height: float) -> Framing:
    """All of the picture, squeezed into the square."""
    return Framing(32, 32, 0, 0, 32)


def pictures(piece: Piece | BadClip) -> list[np.ndarray]:
    """The frames of a prepared clip, RGB."""
    assert isinstance(piece, Piece), piece
    with av.open(io.BytesIO(piece.mp4), "r") as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize(("matrix", "shown"), ORIENTATIONS.values(), ids=list(ORIENTATIONS))
def test_all_eight_orientations(tmp_path: Path, matrix: tuple[int, int, int, int], shown: str) -> None:
    path = set_matrix(write_clip(tmp_path / "a.mp4", paint=quarters, seconds=1.0), *matrix)
    direct = decode_clip(str(path), VIDEO, AUDIO, framing=whole)
    assert [corners(frame) for frame in direct.video] == [shown] * 4
    (piece,) = prepared(path)
    assert {corners(frame) for frame in pictures(piece)} == {shown}
    assert pictures(piece)[0].shape == ((96, 64, 3) if matrix[0] == 0 else (64, 96, 3))


@needs_ffmpeg
@pytest.mark.parametrize(("matrix", "shown"), ORIENTATIONS.values(), ids=list(ORIENTATIONS))
def test_orientations_are_those_of_ffmpeg(tmp_path: Path, matrix: tuple[int, int, int, int], shown: str) -> None:
    path = set_matrix(write_clip(tmp_path / "a.mp4", paint=quarters, seconds=1.0), *matrix)
    ffmpeg("-i", path, "-frames:v", 1, tmp_path / "a.png")
    with av.open(str(tmp_path / "a.png"), "r") as container:
        assert corners(next(container.decode(video=0)).to_ndarray(format="rgb24")) == shown


@needs_ffmpeg
@pytest.mark.parametrize(
    ("how", "shown"),
    [("flip=horizontal", "grwb"), ("flip=vertical", "bwrg"), ("rotate=90", "gwrb")],
)
def test_orientation_inside_the_stream(tmp_path: Path, how: str, shown: str) -> None:
    """H.264 can say it, once for each keyframe, where the container says nothing."""
    path = write_clip(tmp_path / "a.mkv", paint=quarters, seconds=1.0, codecs=("libx264", "flac"))
    turned = tmp_path / "b.mkv"
    ffmpeg("-i", path, "-c", "copy", "-bsf:v", f"h264_metadata=display_orientation=insert:{how}", turned)
    # ffmpeg writes it at the first keyframe alone, so it holds until the next, at 0.48 s.
    assert corners(decode_clip(str(turned), VIDEO, AUDIO, framing=whole).video[0]) == shown
    (piece,) = prepared(turned)
    assert {corners(frame) for frame in pictures(piece)[:12]} == {shown}


def test_a_time_stamp_of_years_is_one_line_in_the_quarantine(tmp_path: Path) -> None:
    """The last packets of both streams of an flv claim to come 24 days later: 70,000 pieces, two with sound."""
    path = write_clip(tmp_path / "a.flv", seconds=3.0)
    data = bytearray(path.read_bytes())
    at, last = 13, {}
    while at < len(data):
        size = int.from_bytes(data[at + 1 : at + 4], "big")
        if size > 5:
            last[data[at]] = at
        at += size + 15
    for tag in (8, 9):  # sound and picture
        data[last[tag] + 7] = 0x7F  # the highest byte of its milliseconds
    path.write_bytes(bytes(data))
    found = prepared(path)
    assert isinstance(found[0], BadClip)
    assert re.fullmatch(r"7\d{4} pieces without any sound, where its time stamps jump", found[0].reason)
    assert len(found) < 5
    assert [piece.start for piece in found if isinstance(piece, Piece)] == [pytest.approx(0.0, abs=0.1)]


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
    """Float sound may pass full scale: 20 dB here."""
    path = write_sound(tmp_path / "a.mkv", np.full((2, RATE), 10.0, np.float32), "pcm_f32le", "stereo")
    assert decode_clip(str(path), VIDEO, AUDIO).wave.max() == pytest.approx(10.0)
    assert isinstance(prepared(path)[0], Piece)


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


AVI = {
    "h264": ("libx264", 0, {"preset": "veryfast"}),
    "h264-3-b-frames": ("libx264", 3, {"preset": "veryfast"}),
    "mpeg4": ("mpeg4", 0, {}),
    "mpeg4-2-b-frames": ("mpeg4", 2, {}),
    "mpeg2": ("mpeg2video", 0, {}),
    "mpeg2-2-b-frames": ("mpeg2video", 2, {}),
}


@pytest.mark.parametrize(("codec", "b_frames", "options"), AVI.values(), ids=list(AVI))
@pytest.mark.parametrize("suffix", [".avi", ".mkv"])
def test_avi_knows_no_times_and_stays_with_its_sound(
    tmp_path: Path, suffix: str, codec: str, b_frames: int, options: dict[str, str]
) -> None:
    """The frame seen in the middle of each instant, and a click with every twelfth, wherever the window lies."""
    path = tmp_path / f"a{suffix}"
    write_ticking(path, codec, b_frames, options)
    video, audio = VideoConfig(frames=16, size=64, seconds=0.64), AudioConfig(frames=96, mels=64)
    for place in range(8):
        decoded = decode_clip(str(path), video, audio, crop=(place, 8))
        window = decoded.windows.video
        times = window.start + (np.arange(16) + 0.5) * 0.04
        seen = np.array([number_shown(frame) for frame in decoded.video])
        assert np.abs(seen + 0.5 - times * 25).max() <= 0.52, (seen, times * 25)
        clicks = decoded.windows.audio.start + np.flatnonzero(decoded.wave > 0.3) / RATE
        assert len(clicks)
        assert np.abs(clicks * 25 / 12 - np.round(clicks * 25 / 12)).max() < 0.1
    (piece,) = prepared(path)
    assert [number_shown(frame) for frame in pictures(piece)] == list(range(100))


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_avi_with_a_damaged_packet_stays_in_time(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "a.avi"
    write_ticking(path, codec, 2, {"preset": "veryfast"} if codec == "libx264" else {})
    data = bytearray(path.read_bytes())
    chunks = [found.start() for found in re.finditer(rb"00dc", bytes(data[: data.index(b"idx1")]))]
    for chunk in chunks[28:30]:
        size = int.from_bytes(data[chunk + 4 : chunk + 8], "little")
        data[chunk + 8 : chunk + 8 + size] = bytes(size)
    path.write_bytes(bytes(data))
    (piece,) = prepared(path)
    assert [number_shown(frame) for frame in pictures(piece)][-40:] == list(range(60, 100))
    assert isinstance(piece, Piece)
    assert piece.seconds == pytest.approx(4.0)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_the_default_tracks_are_taken(tmp_path: Path, suffix: str) -> None:
    def second(pictures: list, sounds: list) -> None:
        for streams in (pictures, sounds):
            streams[0].disposition, streams[1].disposition = 0, Disposition.default

    assert_shown(two_tracks(tmp_path / f"a{suffix}", (60, 180), (0.2, 0.6), second), 180, 0.6)
    assert_shown(two_tracks(tmp_path / f"b{suffix}", (60, 180), (0.2, 0.6)), 60, 0.2)


def test_comments_are_taken_when_there_is_nothing_else(tmp_path: Path) -> None:
    def comment(pictures: list, sounds: list) -> None:
        pictures[0].disposition = pictures[1].disposition = 0
        sounds[0].disposition, sounds[1].disposition = Disposition.comment, 0

    assert_shown(two_tracks(tmp_path / "a.mkv", (60, 180), (0.2, 0.6), comment), 60, 0.6)


COVERS = {
    "mp4-cover": (".mp4", "mjpeg", Disposition.attached_pic),
    "mp4-jpeg": (".mp4", "mjpeg", Disposition.default),
    "mp4-png": (".mp4", "png", Disposition.default),
    "mp4-one-h264": (".mp4", "libx264", Disposition.default),
    "mov-jpeg": (".mov", "mjpeg", Disposition.default),
    "mkv-jpeg": (".mkv", "mjpeg", Disposition.default),
    "nut-png": (".nut", "png", Disposition.default),
    "mkv-thumbnails": (".mkv", "mjpeg", Disposition.timed_thumbnails),
}


@pytest.mark.parametrize(("suffix", "codec", "disposition"), COVERS.values(), ids=list(COVERS))
@pytest.mark.parametrize("alone", [False, True], ids=["beside-a-film", "alone"])
def test_a_cover_is_no_picture(tmp_path: Path, suffix: str, codec: str, disposition: Disposition, alone: bool) -> None:
    """One white frame comes first in the file; the film is grey."""
    path = tmp_path / f"a{suffix}"
    write_covered(path, codec, disposition, 0 if alone else 40)
    if alone:
        assert re.match("no video stream|only 0.0. s with both picture", reason_of(path))
    else:
        assert_shown(path, 100, 0.3)


def boxed(width: int, height: int) -> np.ndarray:
    """Grey with a white square of half the height in the middle, if `width` x `height` pixels are square."""
    picture = np.full((height, width, 3), 60, np.uint8)
    picture[height // 4 : -height // 4, width // 2 - height // 4 : width // 2 + height // 4] = 255
    return picture


def white_box(picture: np.ndarray) -> tuple[int, int]:
    """Width and height of what is white."""
    rows, columns = np.nonzero(picture.mean(2) > 160)
    return int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1


SHAPES = {
    "smaller": ((64, 48), (48, 36), Fraction(1)),
    "larger": ((64, 48), (128, 96), Fraction(1)),
    "wider": ((64, 48), (96, 48), Fraction(1)),
    "upright": ((64, 48), (48, 64), Fraction(1)),
    "wide-pixels": ((64, 48), (64, 48), Fraction(2)),
    "narrow-pixels": ((64, 64), (128, 64), Fraction(1, 2)),
}


@pytest.mark.parametrize("suffix", [".ts", ".mkv"])
@pytest.mark.parametrize(("first", "then", "aspect"), SHAPES.values(), ids=list(SHAPES))
def test_each_frame_is_drawn_by_its_own_size(
    tmp_path: Path, suffix: str, first: tuple[int, int], then: tuple[int, int], aspect: Fraction
) -> None:
    """A square stays a square, before and after the change."""
    second = boxed(round(then[0] * aspect), then[1])
    across = np.linspace(0, second.shape[1] - 1, then[0]).round().astype(int)
    parts = [(boxed(*first), Fraction(1)), (second[:, across], aspect)]
    path = write_changing(tmp_path / f"a{suffix}", parts)
    video = VideoConfig(frames=8, size=64, seconds=1.6)
    decoded = decode_clip(str(path), video, AUDIO)
    for frame in (decoded.video[1], decoded.video[-2]):
        wide, high = white_box(frame)
        assert wide == pytest.approx(high, abs=3)
        assert high >= 29
    (piece,) = prepared(path)
    drawn = pictures(piece)
    assert {picture.shape[:2] for picture in drawn} == {first[::-1]}
    for picture in (drawn[5], drawn[-5]):
        wide, high = white_box(picture)
        assert wide == pytest.approx(high, abs=3)
        assert high >= first[1] // 2 - 3
