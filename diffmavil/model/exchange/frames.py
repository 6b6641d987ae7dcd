"""From a kernel, a number of positions and what was asked for: the input that a branch of ours needs."""

from __future__ import annotations

import math

from diffmavil.config import AudioConfig, VideoConfig
from diffmavil.config.model import IMAGENET_MEAN, IMAGENET_STD
from diffmavil.model.exchange.names import Names
from diffmavil.model.exchange.reader import Grids, Reader
from diffmavil.model.exchange.tables import square
from diffmavil.model.exchange.told import check_area, check_told, told_side

_SIZE = 224  # of all the sources
_RESCALED, _CLOSE = 1 / 255, 1e-3  # pixels in 0..1, and how far a written factor may be off
Colours = tuple[tuple[float, float, float], tuple[float, float, float]]


def kernel_size(reader: Reader, names: Names, channels: int, axes: int) -> tuple[int, ...]:
    """Sizes of a patch. Raises `ValueError` for a kernel of other channels or axes."""
    key = f"{names.patch}.weight"
    shape = tuple(reader.state.take(key).shape)
    if len(shape) != axes + 2 or shape[1] != channels:
        raise reader.state.refusal(f"{key} is {list(shape)}; must be [width, {channels}, {axes} sizes of a patch]")
    return shape[2:]


def picture_input(reader: Reader, names: Names, spacing: float, rows: int) -> tuple[VideoConfig, Grids]:
    """Of an encoder of pictures: one frame. spacing: seconds it stands for. rows: in its table, CLS not counted."""
    height, width = kernel_size(reader, names, 3, 2)
    side = square(rows)
    if side is None:
        raise reader.state.refusal(f"{names.positions} has {rows} positions, which do not fill a square of patches")
    if height != width:
        raise reader.state.refusal(
            f"patches of {height} x {width} in a square table of positions; must be as high as wide"
        )
    check_area(reader, "image_size", side * height, side * width)
    config = _video(reader, size=side * height, frames=1, patch=(1, height, width), spacing=spacing)
    return config, Grids((1, side, side), config.grid)


def video_input(
    reader: Reader, names: Names, spacing: float, frames: int, rows: int | None
) -> tuple[VideoConfig, Grids]:
    """Of an encoder of tubelets.

    spacing: seconds between frames. rows: in its table, if the file has one; it then tells how many frames there are.
    """
    t, height, width = kernel_size(reader, names, 3, 3)
    size, frames = _trained(reader, frames, known=rows is not None)
    if size % height or size % width:
        raise reader.state.refusal(f"frames of {size} do not consist of patches of {height} x {width}: --trained-size")
    space = (size // height, size // width)
    if rows is not None:
        times, rest = divmod(rows, space[0] * space[1])
        if rest or not times:
            said = f"has {rows} positions, which do not fill frames of {space[0]} x {space[1]} patches"
            raise reader.state.refusal(f"{names.positions} {said}: --trained-size")
        frames = times * t
        check_told(reader, "num_frames", frames)
    elif frames % t:
        raise reader.state.refusal(f"{frames} frames are no multiple of its tubelet's {t}: --trained-frames")
    config = _video(reader, size=size, frames=frames, patch=(t, height, width), spacing=spacing)
    return config, Grids((frames // t, *space), config.grid)


def _trained(reader: Reader, frames: int, known: bool) -> tuple[int, int]:
    """Size and frames that the source saw: as config.json tells, as asked, or as published."""
    found = []
    for flag, told, asked, usual in (
        ("trained-size", told_side(reader, "image_size"), reader.ask("trained_size"), _SIZE),
        ("trained-frames", reader.told.get("num_frames"), reader.ask("trained_frames"), frames),
    ):
        value = told if isinstance(told, int) else asked or usual
        if asked not in (None, value):
            raise reader.state.refusal(f"--{flag}={asked}: config.json beside it tells {told}")
        if not isinstance(told, int) and asked is None and not (known and flag == "trained-frames"):
            reader.report.assumed.append(f"{flag} {usual}")
        found.append(value)
    return found[0], found[1]


def _video(reader: Reader, size: int, frames: int, patch: tuple[int, int, int], spacing: float) -> VideoConfig:
    ask = reader.ask
    wanted = ask("frames") or frames
    mean, std = _colours(reader)
    reader.report.assumed.append(f"a clip of {spacing * wanted:.3g} s")
    return VideoConfig(
        frames=wanted, size=ask("size") or size, seconds=spacing * wanted, patch=patch, mean=mean, std=std
    )


def _colours(reader: Reader) -> Colours:
    """preprocessor_config.json's, which the caller put beside config.json's; else ImageNet's.

    Raises:
        ValueError: its pixels are not in 0..1 before they are normalised, as ours are.
    """
    told = reader.told
    scaled, factor = told.get("do_rescale", True), told.get("rescale_factor", _RESCALED)
    if scaled is False:
        raise reader.state.refusal("preprocessor_config.json beside it tells do_rescale=False: must be True, as ours")
    if not isinstance(factor, int | float) or not math.isclose(factor, _RESCALED, rel_tol=_CLOSE):
        raise reader.state.refusal(
            f"preprocessor_config.json beside it tells rescale_factor={factor!r}: must be 1/255, as ours"
        )
    if told.get("do_normalize") is False:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    found = [told.get("image_mean"), told.get("image_std")]
    if all(isinstance(one, list) and len(one) == 3 for one in found):
        mean, std = (tuple(float(x) for x in one) for one in found)  # type: ignore[union-attr]  # lists, as just seen
        return mean, std  # type: ignore[return-value]  # of three
    reader.report.assumed.append("pixels normalised by ImageNet's mean and deviation")
    return IMAGENET_MEAN, IMAGENET_STD


def audio_input(
    reader: Reader, names: Names, rows: int, statistics: tuple[float, float], *, halved: bool, mel_first: bool
) -> tuple[AudioConfig, Grids]:
    """Of an encoder of spectrograms.

    statistics: of its set, as published. halved: the source divides by one deviation where we divide by two.
    """
    sizes = kernel_size(reader, names, 1, 2)
    frame, mel = sizes[::-1] if mel_first else sizes
    ask = reader.ask
    mels, given = ask("mels"), (ask("mean"), ask("std"))
    if mels % mel:
        raise reader.state.refusal(f"{mels} mel bins are no multiple of its patch's {mel}: --mels")
    bands = mels // mel
    times, rest = divmod(rows, bands)
    if rest or not times:
        said = (
            f"has {rows} positions, which do not fill {bands} bands of patches; overlapping patches are not supported"
        )
        raise reader.state.refusal(f"{names.positions} {said}")
    mean, std = statistics if None in given else given
    if None in given:
        reader.report.assumed.append(f"statistics of the sound: mean {mean}, std {std}")
    frames = ask("audio_frames") or times * frame
    config = AudioConfig(
        frames=frames, mels=mels, patch=(frame, mel), mean=mean, std=std / 2 if halved else std, padding="zero"
    )
    return config, Grids((times, bands), config.grid)
