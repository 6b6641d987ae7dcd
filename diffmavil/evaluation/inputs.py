"""What a person gives as clips, video and audio: paths, arrays, tensors, one or many; brought into one list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffmavil.config import Modalities, ModelConfig, require
from diffmavil.data.arrays import ArrayPicture, ArraySound
from diffmavil.data.decode import BadClip
from diffmavil.data.looks import MediaClip, Pair, Readable
from diffmavil.data.modalities import HOLDS


@dataclass(frozen=True)
class Given:
    """The clips of one call.

    Attributes:
        modalities: what is heard and seen of each.
        names: of every clip: its path, or "clip 3".
        readable: the clips that can be tried.
        places: which of `names` each of them is.
        errors: place -> why an array can be no clip.
    """

    modalities: Modalities
    names: list[str]
    readable: list[Readable] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    errors: dict[int, BadClip] = field(default_factory=dict)

    def complaint(self, place: int, error: BadClip) -> ValueError:
        """Why a clip cannot be used, with its name."""
        hint = _HINTS.get(error.reason, "") if self.modalities == "av" else ""
        return ValueError(f"{self.names[place]}: {error.reason}{hint}")


_HINTS = {
    "no video stream": "; audio= takes its sound alone",
    "no audio stream": "; video= takes its picture alone",
}


def clips_from(clips: Any, video: Any, audio: Any, fps: Any, rate: Any, model: ModelConfig) -> tuple[Given, bool]:
    """The arguments of `Embedder.embed` as a list of clips, and whether it was one clip that was given, not a list.

    Raises:
        ValueError: nothing, or both ways at once; lists of other lengths; what the model cannot hear or see; arrays of
            another shape or type, or without their rate.
    """
    if (clips is None) == (video is None and audio is None):
        raise ValueError("clips, video, audio: must be clips alone, or video, or audio, or these two")
    if clips is not None:
        for name, value in (("fps", fps), ("sample_rate", rate)):
            require(value is None, name, value, "left out beside clips, which are files and tell it themselves")
        many, single = _listed(clips, "clips")
        modalities: Modalities = model.modalities
        paths = [_path(one, "clips", "; arrays are given as video= and audio=") for one in many]
        given = Given(modalities, [str(one) for one in many])
        given.readable.extend(MediaClip(path, modalities) for path in paths)
        given.places.extend(range(len(paths)))
        return given, single
    modalities = "av" if video is not None and audio is not None else "audio" if video is None else "video"
    fits = model.modalities in ("av", modalities)
    other = "video" if model.modalities == "audio" else "audio"
    require(fits, other, "given", f"left out: the model has {HOLDS[model.modalities]}")
    pictures, one_picture = _listed(video, "video") if video is not None else ([], True)
    sounds, one_sound = _listed(audio, "audio") if audio is not None else ([], True)
    if modalities == "av":
        same = len(pictures) == len(sounds) and one_picture == one_sound
        require(same, "video, audio", (len(pictures), len(sounds)), "as many of both")
    count = max(len(pictures), len(sounds))
    given = Given(modalities, [_name(i, pictures, sounds) for i in range(count)])
    rates, frame_rates = _each(rate, count, "sample_rate"), _each(fps, count, "fps")
    for i in range(count):
        try:
            picture = _picture(pictures[i], frame_rates[i]) if pictures else None
            sound = _sound(sounds[i], rates[i], model.audio.sample_rate) if sounds else None
        except BadClip as error:
            given.errors[i] = error
            continue
        given.readable.append(_one(picture, sound, given.names[i]))
        given.places.append(i)
    return given, one_picture and one_sound


def _one(picture: str | ArrayPicture | None, sound: str | ArraySound | None, name: str) -> Readable:
    """A file alone is read as the evaluation does, by its own clock."""
    if isinstance(picture, str) and sound is None:
        return MediaClip(picture, "video")
    if isinstance(sound, str) and picture is None:
        return MediaClip(sound, "audio")
    return Pair(picture, sound, name)


def _picture(value: Any, fps: float | None) -> str | ArrayPicture:
    return _path(value, "video") if isinstance(value, str | Path) else ArrayPicture.of(value, fps)


def _sound(value: Any, source_rate: int | None, rate: int) -> str | ArraySound:
    return _path(value, "audio") if isinstance(value, str | Path) else ArraySound.of(value, source_rate, rate)


def _listed(value: Any, name: str) -> tuple[list[Any], bool]:
    """What was given as a list, and whether it was a single one."""
    if isinstance(value, str | Path):
        return [value], True
    if isinstance(value, list | tuple):
        require(len(value) > 0, name, value, "at least one")
        number = next((one for one in value if isinstance(one, int | float)), None)
        allowed = "clips: a sound is an array or a tensor, and rates are given as sample_rate= and fps="
        require(number is None, name, f"a {type(value).__name__} with the number {number}", allowed)
        return list(value), False
    dims = getattr(value, "ndim", None)
    require(dims is not None, name, type(value).__name__, "a path, an array, a tensor, or a list of these")
    # A batch is one array with one axis more; a sound [C, S] is one clip with several channels.
    return (list(value), False) if dims == {"video": 5, "audio": 3}.get(name) else ([value], True)


def _each(value: Any, count: int, name: str) -> list[Any]:
    """One for each clip, of one number for all or a list."""
    if not isinstance(value, list | tuple):
        return [value] * count
    require(len(value) == count, name, value, f"one number, or {count}: one for each clip")
    return list(value)


def _path(value: Any, name: str, hint: str = "") -> str:
    require(isinstance(value, str | Path), name, type(value).__name__, f"a path{hint}")
    # Absolute, since libav takes what comes before the colon of a relative 10:30.mp4 for a protocol.
    return str(Path(value).expanduser().absolute())


def _name(index: int, *lists: Sequence[Any]) -> str:
    """The path of the picture, or else of the sound, or else its place."""
    paths = [str(many[index]) for many in lists if many and isinstance(many[index], str | Path)]
    return paths[0] if paths else f"clip {index}"
