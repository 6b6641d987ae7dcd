"""Decoding by true timestamps, from clips made here whose frames show their number and whose sound has a click."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clip_files import MEDIA, cut_off, number_shown, numbered, rotate_clockwise, write_clip

from diffmavil.config import AudioConfig, VideoConfig
from diffmavil.data.decode import BadClip, Decoded, decode_clip, decode_sound
from diffmavil.data.transforms import Framing, random_framing

VIDEO = VideoConfig(frames=32, size=64, seconds=2.0)
AUDIO = AudioConfig(frames=224, mels=64)  # 2.255 s
RATE = AUDIO.sample_rate


def decode(path: Path, seed: int | None = 0, **arguments) -> Decoded:
    rng = None if seed is None else np.random.default_rng(seed)
    return decode_clip(str(path), VIDEO, AUDIO, rng=rng, **arguments)


def frame_times(decoded: Decoded, video: VideoConfig = VIDEO) -> np.ndarray:
    window = decoded.windows.video
    return window.start + (np.arange(video.frames) + 0.5) * window.length / video.frames


def numbers(decoded: Decoded) -> list[int]:
    return [number_shown(frame) for frame in decoded.video]


def on_screen(decoded: Decoded, appears: np.ndarray) -> list[int]:
    """The numbers that a clip whose frames appear at these times shows at the decoded times."""
    return list(np.maximum(np.searchsorted(appears, frame_times(decoded) + 1e-9, side="right") - 1, 0))


def assert_on_screen(decoded: Decoded, appears: np.ndarray) -> None:
    """That the frames are those on screen; webm and mkv round time stamps to a millisecond."""
    shown = numbers(decoded)
    early, late = on_screen(decoded, appears + 0.001), on_screen(decoded, appears - 0.001)
    assert all(low <= n <= high for n, low, high in zip(shown, early, late, strict=True)), (shown, early, late)


CONTAINERS = {
    "mp4-h264-aac": {"name": "a.mp4"},
    "mkv-h264-flac": {"name": "a.mkv", "codecs": ("libx264", "flac")},
    "webm-vp8-opus": {"name": "a.webm", "codecs": ("libvpx", "libopus"), "rate": 48_000},
    "mov-h264-pcm-stereo": {"name": "a.mov", "codecs": ("libx264", "pcm_s16le"), "rate": 44_100, "layout": "stereo"},
    "avi-h264-pcm": {"name": "a.avi", "codecs": ("libx264", "pcm_s16le")},
    "mp4-aac-5.1": {"name": "b.mp4", "rate": 48_000, "layout": "5.1"},
    "mp4-starts-at-10s": {"name": "c.mp4", "video_start": 10.0, "audio_start": 10.0},
    "mkv-starts-at-10s": {"name": "c.mkv", "video_start": 10.0, "audio_start": 10.0},
}


@pytest.fixture(params=CONTAINERS.values(), ids=list(CONTAINERS))
def container(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, float]:
    """A clip of 4 s in each container, and when its picture starts."""
    arguments = dict(request.param)
    path = tmp_path / arguments.pop("name")
    return write_clip(path, seconds=4.0, **arguments), arguments.get("video_start", 0.0)


def test_frames_are_those_on_screen(container: tuple[Path, float]) -> None:
    path, start = container
    for seed in range(3):
        decoded = decode(path, seed)
        assert_on_screen(decoded, start + np.arange(100) / 25)
        assert decoded.windows.video.length == pytest.approx(2.0)
        assert decoded.wave_valid == AUDIO.samples


def test_same_seed_same_bits(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", seconds=4.0)
    first, second, other = decode(path, 1), decode(path, 1), decode(path, 2)
    assert np.array_equal(first.video, second.video)
    assert np.array_equal(first.wave, second.wave)
    assert first.windows == second.windows
    assert first.windows != other.windows


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_variable_frame_rate(tmp_path: Path, suffix: str) -> None:
    gaps = np.random.default_rng(0).choice([0.02, 0.04, 0.1, 0.3], size=40)
    appears = np.round(np.cumsum(gaps), 3)
    sound = np.zeros(round((appears[-1] + 0.3) * RATE))
    path = write_clip(tmp_path / f"a{suffix}", times=list(appears), sound=sound, codecs=("libx264", "flac"))
    for seed in range(4):
        decoded = decode(path, seed)
        assert_on_screen(decoded, appears)


LATE = {
    "together": (0.0, 0.0),
    "sound-late": (0.0, 0.72),
    "picture-late": (0.6, 0.0),
    "both-late": (10.0, 10.4),
}
CODED = {
    "mp4-aac": (".mp4", ("libx264", "aac"), 16_000),
    "mp4-aac-44k": (".mp4", ("libx264", "aac"), 44_100),
    "mkv-flac-48k": (".mkv", ("libx264", "flac"), 48_000),
    "webm-opus": (".webm", ("libvpx", "libopus"), 48_000),
    "mpg-mp2": (".mpg", ("mpeg1video", "mp2"), 44_100),
}


@pytest.mark.parametrize("starts", LATE.values(), ids=LATE.keys())
@pytest.mark.parametrize("coded", CODED.values(), ids=CODED.keys())
def test_sound_and_picture_stay_aligned(
    tmp_path: Path, coded: tuple[str, tuple[str, str], int], starts: tuple[float, float]
) -> None:
    """A white frame and a click at the same instants, 0.4 s apart, found again in crops all over the clip."""
    suffix, codecs, rate = coded
    video_start, audio_start = starts
    events = max(starts) + 0.48 + np.arange(10) * 0.4  # on frames of 25 per second

    def flash(index: int) -> np.ndarray:
        when = video_start + index / 25
        return np.full((64, 64, 3), 255 if np.abs(events - when).min() < 1e-6 else 0, np.uint8)

    sound = np.zeros(round(5 * rate))
    for event in events:
        at = round((event - audio_start) * rate)
        sound[at : at + rate // 500] = 0.8  # 2 ms
    path = write_clip(
        tmp_path / f"a{suffix}", paint=flash, seconds=5.0, sound=sound, rate=rate, codecs=codecs,
        video_start=video_start, audio_start=audio_start,
    )  # fmt: skip
    video = VideoConfig(frames=128, size=64, seconds=2.0)
    for place in ((0, 3), (1, 3), (2, 3)):
        decoded = decode_clip(str(path), video, AUDIO, crop=place)
        bright = decoded.video.mean((1, 2, 3)) > 128
        rises = frame_times(decoded, video)[1:][bright[1:] & ~bright[:-1]]
        loud = np.abs(decoded.wave) > 0.3
        clicks = decoded.windows.audio.start + np.flatnonzero(loud) / RATE
        assert len(rises) >= 3
        for rise in rises:
            nearest = np.abs(clicks - rise).min()
            # A program stream times several pictures at once, and libav's count may be one picture off.
            assert nearest <= 2.0 / video.frames + (0.043 if suffix == ".mpg" else 0.003), (rise, nearest)


def test_click_is_exact_to_a_sample(tmp_path: Path) -> None:
    sound = np.zeros(4 * RATE)
    sound[32_000] = 1.0
    path = write_clip(tmp_path / "a.mkv", seconds=4.0, sound=sound, codecs=("libx264", "flac"))
    for seed in range(4):
        decoded = decode(path, seed)
        at = decoded.windows.audio.start * RATE + np.argmax(decoded.wave)
        assert at == pytest.approx(32_000, abs=17)  # matroska rounds to a millisecond


def test_resampling_keeps_a_tone_in_place(tmp_path: Path) -> None:
    """44.1 kHz stereo to 16 kHz mono: the same sine, with the same phase, wherever the crop lies."""
    tone = 0.5 * np.sin(2 * np.pi * 200 * np.arange(4 * 44_100) / 44_100)
    path = write_clip(
        tmp_path / "a.mov", seconds=4.0, sound=tone, rate=44_100, layout="stereo", codecs=("libx264", "pcm_s16le")
    )
    for seed in range(3):
        decoded = decode(path, seed)
        time = decoded.windows.audio.start + np.arange(AUDIO.samples) / RATE
        assert np.abs(decoded.wave - 0.5 * np.sin(2 * np.pi * 200 * time)).max() < 0.02  # one sample off: 0.04


def test_start_and_duration_limit_both_streams(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", seconds=5.0, video_start=3.0, audio_start=3.0)
    decoded = decode(path, start=2.0, duration=1.5)
    origin = 3.0 - 1024 / RATE  # the file starts with the encoder's priming samples
    assert decoded.windows.video.start == pytest.approx(origin + 2.0, abs=0.002)
    assert decoded.windows.video.length == pytest.approx(1.5, abs=0.002)
    assert decoded.wave_valid == pytest.approx(1.5 * RATE, abs=40)
    assert set(numbers(decoded)) <= set(range(48, 87))
    assert not decoded.wave[decoded.wave_valid :].any()


def test_short_clip_is_spread_and_padded(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", seconds=1.0, codecs=("libx264", "flac"))
    decoded = decode(path)
    assert decoded.windows.video.length == pytest.approx(1.0, abs=0.05)
    assert_on_screen(decoded, np.arange(25) / 25)
    assert numbers(decoded)[0] == 0
    assert numbers(decoded)[-1] == 24
    assert decoded.wave_valid == pytest.approx(RATE, abs=20)
    assert decoded.wave[: decoded.wave_valid].any()
    assert not decoded.wave[decoded.wave_valid :].any()


def test_sound_shorter_than_picture(tmp_path: Path) -> None:
    tone = np.sin(np.arange(RATE))
    path = write_clip(tmp_path / "a.mkv", seconds=4.0, sound=tone, codecs=("libx264", "flac"))
    decoded = decode(path)
    assert decoded.windows.video.length == pytest.approx(2.0)
    assert decoded.windows.audio.start == pytest.approx(0.0, abs=0.01)
    assert decoded.wave_valid == pytest.approx(RATE, abs=20)


def test_evaluation_crops_are_evenly_spaced(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", seconds=5.0)
    centre = decode(path, None).windows
    assert centre.video.start + centre.video.end == pytest.approx(5.0, abs=0.01)
    starts = [decode(path, None, crop=(i, 4)).windows.audio.start for i in range(4)]
    slack = 5.0 - AUDIO.samples / RATE
    assert starts == pytest.approx([(i + 0.5) / 4 * slack for i in range(4)], abs=0.01)
    assert decode(path, None, crop=(0, 1)).windows == centre


def quadrants(index: int) -> np.ndarray:
    """Red, green / blue, white."""
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:32, :48, 0] = picture[:32, 48:, 1] = picture[32:, :48, 2] = 255
    picture[32:, 48:] = 255
    return picture


def corners(picture: np.ndarray) -> list[str]:
    """Names of the colours near the four corners, row by row."""
    names = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 1): "white"}
    places = [(8, 8), (8, -9), (-9, 8), (-9, -9)]
    return [names[r > 128, g > 128, b > 128] for r, g, b in (picture[place].tolist() for place in places)]


def test_upright_and_colours(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", paint=quadrants)
    picture = decode(path).video[5]
    assert corners(picture) == ["red", "green", "blue", "white"]
    assert picture[8, 8].tolist() == pytest.approx([254, 0, 0], abs=6)
    assert picture[-9, -9].tolist() == pytest.approx([255, 255, 255], abs=4)


def test_rotation_is_applied(tmp_path: Path) -> None:
    path = rotate_clockwise(write_clip(tmp_path / "a.mp4", paint=quadrants))
    seen: list[tuple[float, float]] = []

    def whole(width: float, height: float) -> Framing:
        seen.append((width, height))
        return Framing(64, 96, 0, 16, 64)

    assert corners(decode(path, framing=whole).video[5]) == ["blue", "red", "white", "green"]
    assert set(seen) == {(64.0, 96.0)}


def test_pixel_aspect_ratio_is_applied(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", pixel_aspect=Fraction(3, 2))
    seen: list[tuple[float, float]] = []

    def whole(width: float, height: float) -> Framing:
        seen.append((width, height))
        return Framing(96, 64, 16, 0, 64)

    decode(path, framing=whole)
    assert set(seen) == {(96.0, 64.0)}


@pytest.mark.parametrize(
    ("width", "height", "codec", "pixels"),
    [(65, 47, "libvpx", "yuv420p"), (33, 71, "libx264", "yuv444p"), (16, 128, "libx264", "yuv420p")],
    ids=["odd-vp8", "odd-444", "narrow"],
)
def test_odd_sizes(tmp_path: Path, width: int, height: int, codec: str, pixels: str) -> None:
    paint = numbered(width, height)
    path = write_clip(
        tmp_path / "a.mkv", paint=lambda i: 255 - paint(0), codecs=(codec, "flac"), pixels=pixels, seconds=2.0
    )
    for framing in (None, random_framing(64, (0.3, 1.0), True, np.random.default_rng(0))):
        video = decode(path, framing=framing).video
        assert video.shape == (32, 64, 64, 3)
        assert video.min() > 225  # white to the last row and column


def test_sound_alone(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", seconds=5.0)
    sound = decode_sound(str(path), AUDIO)
    assert sound.wave_valid == AUDIO.samples
    assert sound.windows.audio.start + sound.windows.audio.end == pytest.approx(5.0, abs=0.01)
    assert sound.video.size == 0


def scrambled(path: Path) -> None:
    """An mp4 whose index is whole and whose packets are noise."""
    data = bytearray(write_clip(path).read_bytes())
    begin = data.index(b"mdat") + 4
    end = begin + int.from_bytes(data[begin - 8 : begin - 4], "big") - 8
    data[begin:end] = np.random.default_rng(0).bytes(end - begin)
    path.write_bytes(bytes(data))


def garbage(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(20_000))


BAD = {
    "no-sound": (lambda p: write_clip(p, codecs=("libx264", None)), "no audio stream"),
    "no-picture": (lambda p: write_clip(p, codecs=(None, "aac")), "no video stream"),
    "garbage": (garbage, "Invalid data"),
    "scrambled": (scrambled, "be decoded"),
    "zero-bytes": (lambda p: p.write_bytes(b""), "Invalid data"),
    "missing": (lambda p: None, "No such file"),
    "index-cut-off": (lambda p: cut_off(write_clip(p), 0.9), "cannot be decoded"),
    "one-frame": (lambda p: write_clip(p, times=[0.0]), "s with both picture"),
    "too-short": (lambda p: write_clip(p, seconds=0.3), "s with both picture"),
    "apart": (lambda p: write_clip(p, seconds=2.0, audio_start=5.0), "s with both picture"),
}


@pytest.mark.parametrize(("make", "reason"), BAD.values(), ids=BAD.keys())
def test_bad_clips_say_why(tmp_path: Path, make, reason: str) -> None:
    path = tmp_path / "a.mp4"
    make(path)
    with pytest.raises(BadClip, match=reason) as caught:
        decode(path)
    assert caught.value.path == str(path)
    assert str(path) in str(caught.value)


def test_start_past_the_end_is_bad(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4")
    with pytest.raises(BadClip, match=r"only 0\.00 s with both picture"):
        decode(path, start=30.0)


RECOVERED = {
    "mp4-index-first": ("a.mp4", ("libx264", "aac"), {"movflags": "faststart"}),
    "mkv": ("a.mkv", ("libx264", "flac"), {}),
    "webm": ("a.webm", ("libvpx", "libopus"), {}),
}


@pytest.mark.parametrize(("name", "codecs", "options"), RECOVERED.values(), ids=RECOVERED.keys())
def test_truncated_files_are_used_as_far_as_they_go(
    tmp_path: Path, name: str, codecs: tuple[str, str], options: dict[str, str]
) -> None:
    rate = 48_000 if "libopus" in codecs else RATE
    noise = 0.3 * np.random.default_rng(0).standard_normal(8 * rate)
    path = write_clip(tmp_path / name, seconds=8.0, sound=noise, rate=rate, codecs=codecs, options=options)
    cut_off(path, 0.5)
    for seed in range(6):
        decoded = decode(path, seed)
        assert_on_screen(decoded, np.arange(200) / 25)
        assert decoded.windows.video.end < 6.0
        assert decoded.wave[: decoded.wave_valid].std() > 0.1


def test_truncated_to_nearly_nothing_is_bad(tmp_path: Path) -> None:
    path = cut_off(write_clip(tmp_path / "a.mkv", seconds=8.0, codecs=("libx264", "flac")), 0.03)
    with pytest.raises(BadClip):
        decode(path)


def test_damage_in_the_middle_is_survived(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", seconds=5.0, codecs=("libx264", "flac"))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = b"\x55" * 200
    path.write_bytes(bytes(data))
    for seed in range(4):
        assert decode(path, seed).video.shape == (32, 64, 64, 3)


def spoil(path: Path, share: float) -> Path:
    """With that share of the packets of sound overwritten, all over the clip."""
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(audio=0) if packet.size]
    for i, packet in enumerate(packets):
        if int((i + 1) * share) > int(i * share):
            assert packet.pos is not None
            data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(bytes(data))
    return path


def test_a_clip_most_of_whose_sound_is_damaged_is_bad(tmp_path: Path) -> None:
    some = spoil(write_clip(tmp_path / "some.mp4", seconds=4.0), 0.2)
    assert decode(some).wave.std() > 0
    most = spoil(write_clip(tmp_path / "most.mp4", seconds=4.0), 0.8)
    with pytest.raises(BadClip, match="most of the sound cannot be decoded"):
        decode(most)
    with pytest.raises(BadClip, match="most of the sound cannot be decoded"):
        decode_sound(str(most), AUDIO)


@pytest.mark.skipif(not MEDIA.is_dir(), reason=f"no real clips at {MEDIA} (DIFFMAVIL_MEDIA)")
def test_every_real_clip_decodes() -> None:
    paths = sorted(p for p in MEDIA.iterdir() if p.suffix in {".mp4", ".webm", ".mpg"})
    assert len(paths) == 26
    video, audio = VideoConfig(frames=4, size=32, seconds=0.5), AudioConfig(frames=96, mels=64)
    for path in paths:
        decoded = decode_clip(str(path), video, audio, crop=(0, 4))
        assert decoded.wave_valid == audio.samples, path.name
        assert decoded.video.std() > 10, path.name
        assert np.isfinite(decoded.wave).all(), path.name
