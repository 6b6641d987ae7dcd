"""A few generated clips laid out and named as each recipe's set is published."""

from __future__ import annotations

import wave
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tests.data.clip_files import write_clip
from tests.data.sound_files import rising, write_sound

_MIDS = {"/m/09x0r": "Speech", "/m/0ytgt": "Child speech, kid speaking", "/m/0bt9lr": "Dog"}
_IDS = ("--PJHxphWEs", "_0-4dqXAlXo", "a1b2c3d4e5f")
"""Names as YouTube gives them: they begin with dashes, too."""


def wav(path: Path, pitch: int, seconds: float = 0.6, rate: int = 16_000) -> None:
    """A tone with a little noise, which no other pitch has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(pitch).normal(size=len(times))
    sound = (8000 * np.sin(2 * np.pi * (200 + 90 * pitch) * times) + 300 * noise).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(sound.tobytes())


def videos(paths: Iterable[Path]) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_clip(path, seconds=1.0, fps=10)


def audioset(data: Path) -> None:
    """Its three tables, the list of classes, and files of ten seconds cut out, which here last one."""
    root = data / "audioset"
    (root / "train").mkdir(parents=True)
    names = "".join(f'{i},{mid},"{name}"\n' for i, (mid, name) in enumerate(_MIDS.items()))
    (root / "class_labels_indices.csv").write_text(f"index,mid,display_name\n{names}")
    mids = list(_MIDS)
    for table, folder, start in (
        ("balanced_train", "train", 30),
        ("unbalanced_train", "train", 90),
        ("eval", "eval", 0),
    ):
        rows = "".join(
            f'{name}, {start}.000, {start + 10}.000, "{",".join(sorted({mids[i], mids[i - 1]}))}"\n'
            for i, name in enumerate(_IDS)
        )
        head = "# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=3, num_segs=3, num_unique_labels=3\n"
        columns = "# YTID, start_seconds, end_seconds, positive_labels\n"
        (root / f"{table}_segments.csv").write_text(head + columns + rows)
        videos(root / folder / f"{name}_{start}.mp4" for name in _IDS)


def vggsound(data: Path) -> None:
    root = data / "vggsound"
    rows = [
        (name, start, label, split)
        for split, start in (("train", 1), ("train", 30), ("test", 185))
        for name, label in zip(_IDS, ("people marching", "dog barking", "playing drum kit"), strict=True)
    ]
    videos(root / "video" / f"{name}_{start:06d}.mp4" for name, start, _, _ in rows)
    (root / "vggsound.csv").write_text("".join(f"{','.join(map(str, row))}\n" for row in rows))


def esc50(data: Path) -> None:
    root = data / "ESC-50-master"
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in range(1, 6):
        for target, category in enumerate(("dog", "rooster", "pig")):
            name = f"{fold}-{1000 * fold + target}-A-{target}.wav"
            wav(root / "audio" / name, target)
            lines.append(f"{name},{fold},{target},{category},{target == 0},{1000 * fold + target},A")
    (root / "meta").mkdir()
    (root / "meta" / "esc50.csv").write_text("\n".join(lines) + "\n")


def esc10(data: Path) -> None:
    root = data / "ESC-10-master"
    for number, name in enumerate(("Dog bark", "Rain"), start=1):
        folder = root / f"{number:03d} - {name}"
        folder.mkdir(parents=True)
        for fold in range(1, 6):
            write_sound(
                folder / f"{fold}-{100 * fold + number}-A.ogg", rising(0.6, 44_100), "libvorbis", 44_100, "mono"
            )
    (root / "README.md").write_text("ESC-10\n")


def speech_commands(data: Path) -> None:
    root = data / "speech_commands_v0.02"
    for pitch, word in enumerate(("yes", "no", "stop")):
        for speaker in range(6):
            wav(root / word / f"{speaker}a7f_nohash_0.wav", pitch)
    wav(root / "_background_noise_" / "running_tap.wav", 9)
    for name, speaker in (("validation", 0), ("testing", 1)):
        listed = "".join(f"{word}/{speaker}a7f_nohash_0.wav\n" for word in ("yes", "no", "stop"))
        (root / f"{name}_list.txt").write_text(listed)


def fsdd(data: Path) -> None:
    for digit in range(3):
        for speaker in ("george", "yweweler"):
            for number in (0, 4, 5, 10):
                wav(
                    data / "free-spoken-digit-dataset" / "recordings" / f"{digit}_{speaker}_{number}.wav",
                    digit,
                    rate=8000,
                )


def grid(data: Path) -> None:
    """Sentences of one speaker, of which bbal9a, bbaszn and bbal7s are for testing."""
    root = data / "grid"
    names = ("bbaf2n", "bbaf3s", "bbal9a", "bbaszn", "bbal7s", "bbaf4p")
    videos(root / "s1" / f"{name}.mp4" for name in names)
    (root / "alignments").mkdir()
    for name in names:
        lines = ["0 4000 sil", "4000 9000 bin", "9000 14000 blue", "14000 14500 sp", "14500 25000 sil"]
        (root / "alignments" / f"{name}.align").write_text("\n".join(lines) + "\n")


STAND_INS = {
    "audioset-2m": audioset,
    "audioset-20k": None,
    "vggsound": vggsound,
    "esc50": esc50,
    "esc10": esc10,
    "speech-commands-v2": speech_commands,
    "fsdd": fsdd,
    "grid": grid,
}
"""Recipe -> what makes its set; None: it has that of another."""
