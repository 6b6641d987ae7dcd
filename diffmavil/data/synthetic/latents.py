"""What a synthetic clip is made of: its class, the latents drawn for it, and the style they are drawn from."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, get_args

import numpy as np

from diffmavil.config import require

Split = Literal["train", "eval"]
SPLITS: tuple[Split, ...] = get_args(Split)
Shape = Literal["disc", "square", "triangle", "bars", "ring", "cross"]
SHAPES: tuple[Shape, ...] = get_args(Shape)
Material = Literal["planks", "siding", "tiles", "bricks", "dots", "lattice"]
MATERIALS: tuple[Material, ...] = get_args(Material)
Timbre = Literal["bell", "string", "snare", "reed", "drop", "rattle"]
TIMBRES: tuple[Timbre, ...] = get_args(Timbre)


class Kind(NamedTuple):
    """What the class says: a material that sounds as it must, by day or by night, in a still or a humming room."""

    material: Material
    timbre: Timbre
    bright: bool
    humming: bool

    @property
    def name(self) -> str:
        place = "day" if self.bright else "night", "hum" if self.humming else "still"
        return "-".join((self.material, self.timbre, *place))


KINDS = tuple(
    Kind(material, timbre, bright, humming)
    for material, timbre in zip(MATERIALS, TIMBRES, strict=True)
    for bright in (True, False)
    for humming in (True, False)
)
CLASSES = tuple(kind.name for kind in KINDS)

SECONDS = 5.0

Range = tuple[float, float]


@dataclass(frozen=True)
class SceneStyle:
    """Ranges that the latents are drawn from, uniformly unless told otherwise; a range is (low, high).

    The defaults make a set whose class is plain to a person and hidden from a linear probe on the raw input. More
    texture, distractors, shake, noise or gain range, or less flash make it harder.
    """

    # Shared by sound and picture: what tells one clip from another across the modalities.
    period: Range = (0.55, 1.0)
    """Mean seconds between impacts, log-uniform: the tempo."""
    jitter: float = 0.12
    """Largest relative deviation of one interval from the clip's period."""
    weak: float = 0.4
    """Strength of an impact that carries no accent; half of them do, at strength 1."""
    radius: Range = (8.0, 18.0)
    """Object radius in pixels of the 112; log-uniform, and the pitch falls as it grows."""
    pitch: Range = (180.0, 720.0)
    """Fundamental in Hz; the largest object has the lowest."""

    # The picture's own.
    relief: Range = (0.3, 0.8)
    """Contrast of the wall's material, dark on light or light on dark."""
    cell: Range = (10.0, 22.0)
    """Period of the material in pixels: half by chance, half with the size of the object."""
    lean: float = 0.2
    """Largest turn of the material in radians."""
    day: Range = (0.58, 0.82)
    night: Range = (0.2, 0.4)
    """Brightness (HSV value) of the wall by day and by night."""
    flash: float = 0.9
    """Brightness that an accented impact adds at the point of contact."""
    flash_decay: float = 0.2
    """Seconds in which the flash falls to 1/e."""
    place: float = 9.0
    """Largest distance in pixels of the action from the centre, along x and along y."""
    texture: Range = (0.05, 0.25)
    """Relative contrast of the background's texture."""
    shake: Range = (0.0, 3.0)
    """Amplitude of the camera's motion in pixels."""
    grain: Range = (0.0, 3.0)
    """Standard deviation of the sensor noise in grey levels of 255."""
    distractors: tuple[int, int] = (0, 2)
    """Number of small shapes that drift, spin and make no sound, both ends included."""
    distractor_radius: Range = (4.0, 7.0)

    # The sound's own.
    hum_pitch: Range = (400.0, 2000.0)
    """Centre in Hz of the ambient hum, log-uniform."""
    hum_level: Range = (-30.0, -18.0)
    """Level of the hum in dBFS."""
    noise_level: Range = (-58.0, -34.0)
    """Level of the white noise in dBFS."""
    gain: Range = (-8.0, 4.0)
    """Gain of the struck notes in dB."""
    tilt: Range = (-3.0, 3.0)
    """Slope of the notes' spectrum in dB for each octave above 500 Hz."""
    ring: Range = (0.7, 1.4)
    """Factor on how long the notes ring, log-uniform."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, tuple):
                require(value[0] <= value[1], f"style.{entry.name}", value, "a range (low, high) with low <= high")
        for name in ("period", "radius", "pitch", "cell", "hum_pitch", "distractor_radius", "ring"):
            require(getattr(self, name)[0] > 0, f"style.{name}", getattr(self, name), "positive")
        for name in ("texture", "shake", "grain", "distractors", "day", "night"):
            require(getattr(self, name)[0] >= 0, f"style.{name}", getattr(self, name), "not negative")
        require(0 <= self.jitter < 1, "style.jitter", self.jitter, "in [0, 1)")
        require(0 < self.weak <= 1, "style.weak", self.weak, "in (0, 1]")
        require(self.flash_decay > 0, "style.flash_decay", self.flash_decay, "positive")


@dataclass(frozen=True)
class Latents:
    """Everything about a clip except its class and the noise. Shares are in [0, 1]."""

    impacts: np.ndarray
    """Seconds, ascending; some lie before the clip and after its end, so that motion is defined throughout."""
    strengths: np.ndarray
    """Strength of each impact, `SceneStyle.weak` or 1."""
    period: float
    size: float
    """Share of the way from the smallest to the largest object, and from the highest to the lowest pitch."""
    hue: float
    """Of the wall."""
    light: float
    """Brightness of the wall, a share of the range of its time of day."""
    shape: Shape
    """Of the object, with a motion of its own."""
    relief: float
    """Contrast of the material, negative when its dark and light parts are exchanged."""
    cell: float
    """Share of the way from the shortest to the longest period of the material; larger with larger objects."""
    lean: float
    phase: tuple[float, float]
    """Where in its period the material begins, along x and along y."""
    x: float
    y: float
    """Centre of the action relative to the frame's, in pixels."""
    side: int
    """1, or -1 for the mirrored scene."""
    colour: tuple[float, float, float]
    """Hue, saturation and value of the object."""
    texture: float
    shake: float
    grain: float
    distractors: int
    hum_pitch: float
    hum_level: float
    noise_level: float
    gain: float
    tilt: float
    ring: float


def draw_latents(rng: np.random.Generator, style: SceneStyle) -> Latents:
    """Draw a clip's latents. The class is not an argument: nothing drawn here can depend on it."""
    period = _log_uniform(rng, style.period)
    size = rng.random()
    start = -period * (2 + rng.random())
    count = math.ceil((SECONDS - start) / (period * (1 - style.jitter))) + 2
    intervals = period * (1 + style.jitter * rng.uniform(-1, 1, count))
    return Latents(
        impacts=start + np.cumsum(intervals),
        strengths=np.where(rng.random(count) < 0.5, style.weak, 1.0),
        period=period,
        size=size,
        hue=rng.random(),
        light=rng.random(),
        shape=SHAPES[rng.integers(len(SHAPES))],
        relief=float(rng.choice([-1, 1])) * rng.uniform(*style.relief),
        cell=(size + rng.random()) / 2,
        lean=rng.uniform(-style.lean, style.lean),
        phase=(rng.random(), rng.random()),
        x=rng.uniform(-style.place, style.place),
        y=rng.uniform(-style.place, style.place),
        side=1 if rng.random() < 0.5 else -1,
        colour=(rng.random(), rng.uniform(0.25, 0.9), rng.uniform(0.7, 1.0)),
        texture=rng.uniform(*style.texture),
        shake=rng.uniform(*style.shake),
        grain=rng.uniform(*style.grain),
        distractors=int(rng.integers(style.distractors[0], style.distractors[1] + 1)),
        hum_pitch=_log_uniform(rng, style.hum_pitch),
        hum_level=rng.uniform(*style.hum_level),
        noise_level=rng.uniform(*style.noise_level),
        gain=rng.uniform(*style.gain),
        tilt=rng.uniform(*style.tilt),
        ring=_log_uniform(rng, style.ring),
    )


def stream(seed: int, split: Split, index: int, purpose: int) -> np.random.Generator:
    """Random numbers of one clip (or block of clips) for one purpose; all four together are the key."""
    return np.random.default_rng([seed, SPLITS.index(split), index, purpose])


def clip_kind(seed: int, split: Split, index: int) -> Kind:
    """Class of a clip: each run of `len(CLASSES)` clips holds every class once, in an order of its own."""
    block, place = divmod(index, len(CLASSES))
    return KINDS[int(stream(seed, split, block, 0).permutation(len(KINDS))[place])]


def clip_latents(seed: int, split: Split, index: int, style: SceneStyle) -> Latents:
    return draw_latents(stream(seed, split, index, 1), style)


def _log_uniform(rng: np.random.Generator, bounds: Range) -> float:
    return math.exp(rng.uniform(math.log(bounds[0]), math.log(bounds[1])))


def between(share: float, bounds: Range) -> float:
    return bounds[0] + share * (bounds[1] - bounds[0])


def log_between(share: float, bounds: Range) -> float:
    return bounds[0] * (bounds[1] / bounds[0]) ** share
