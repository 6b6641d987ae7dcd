"""The picture of a synthetic clip: one object that strikes something, over a coloured, textured, shaking background."""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass

import numpy as np

from diffmavil.data.synthetic.latents import SECONDS, Kind, Latents, Material, SceneStyle, between, log_between
from diffmavil.data.synthetic.shapes import INK, OUTLINES, Pose, draw_glow, draw_line, draw_shape

SIZE = 112
FPS = 16
FRAMES = round(SECONDS * FPS)


@dataclass(frozen=True)
class _Action:
    """Motion of one shape kind, in pixels of the world (the frame plus the camera's offset)."""

    poses: list[Pose]
    contact: np.ndarray
    """`[2]` (x, y) where it strikes."""
    fixture: tuple[float, float] | None = None
    """Half width and half height of the plate, post or peg that it strikes, with the contact on its rim."""
    offset: tuple[float, float] = (0, 0)
    """From the contact to the fixture's centre."""
    pivot: np.ndarray | None = None
    """`[2]` where the string is tied that the shape hangs from."""


def render_video(kind: Kind, latents: Latents, style: SceneStyle, rng: np.random.Generator) -> np.ndarray:
    """Render a clip's frames: uint8 `[FRAMES, SIZE, SIZE, 3]`, frame k at k / FPS seconds."""
    seconds = np.arange(FRAMES) / FPS
    margin = math.ceil(style.shake[1])
    camera = _camera(latents, seconds, rng)
    action = _ACTIONS[latents.shape](latents, style, seconds)
    world = _wall(kind, latents, style, margin, rng)
    _draw_fixture(world, action, margin)
    frames = np.empty((FRAMES, SIZE, SIZE, 3), np.float32)
    for frame, (dx, dy) in zip(frames, camera + margin, strict=True):
        frame[:] = world[dy : dy + SIZE, dx : dx + SIZE]
    for _ in range(latents.distractors):
        pose = _drift(style, seconds, rng)
        draw_shape(frames, _seen(pose, camera), _rgb(rng.random(), rng.uniform(0.25, 0.9), rng.uniform(0.7, 1.0)))
    for pose in action.poses:
        pose = _seen(pose, camera)
        if action.pivot is not None:
            draw_line(frames, action.pivot - camera, np.stack([pose.x, pose.y], -1))
        draw_shape(frames, pose, _rgb(*latents.colour))
    since, strength, _ = beat(latents, seconds)
    level = style.flash * strength * np.exp(-since / style.flash_decay)
    draw_glow(frames, action.contact - camera, 8 + 12 * strength, level)
    _add_grain(frames, latents, rng)
    return np.clip(frames, 0, 255, out=frames).astype(np.uint8)


def beat(latents: Latents, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where in the rhythm each time lies.

    Returns `[T]` seconds since the last impact, its strength, and the share (0 to 1) of the way to the next one.
    """
    last = _last_impact(latents, seconds)
    since = seconds - latents.impacts[last]
    return since, latents.strengths[last], since / (latents.impacts[last + 1] - latents.impacts[last])


def _last_impact(latents: Latents, seconds: np.ndarray) -> np.ndarray:
    return np.searchsorted(latents.impacts, seconds, side="right") - 1


def _excursion(latents: Latents, seconds: np.ndarray) -> np.ndarray:
    """`[T]` 0 at impacts and a parabola between two, higher before an accent: thrown higher, a ball lands harder."""
    _, _, share = beat(latents, seconds)
    return 4 * share * (1 - share) * (0.5 + 0.5 * latents.strengths[_last_impact(latents, seconds) + 1])


def _recoil(latents: Latents, seconds: np.ndarray) -> np.ndarray:
    """`[T]` stretch, above 1 for an instant after each impact."""
    since, strength, _ = beat(latents, seconds)
    return 1 + 0.35 * strength * np.exp(-since / 0.08)


def _home(latents: Latents) -> np.ndarray:
    return np.array([SIZE / 2 + latents.x, SIZE / 2 + latents.y])


def _bounce(latents: Latents, style: SceneStyle, seconds: np.ndarray) -> _Action:
    """A disc bounces on a plate and is flattened as it lands."""
    radius, stretch = log_between(latents.size, style.radius), _recoil(latents, seconds)
    contact = _home(latents) + np.array([0, 12 + radius / 2])
    y = contact[1] - radius / stretch - 36 * _excursion(latents, seconds)
    pose = Pose("disc", radius, np.full_like(y, contact[0]), y, np.zeros_like(y), stretch)
    return _Action([pose], contact, fixture=(1.4 * radius, 1.5), offset=(0, 2))


def _swing(latents: Latents, style: SceneStyle, seconds: np.ndarray) -> _Action:
    """A square swings on a string against a post."""
    radius, length = log_between(latents.size, style.radius), 50
    pivot = _home(latents) + np.array([-latents.side * 12, -38])
    angle = latents.side * 1.1 * _excursion(latents, seconds)
    x, y = pivot[0] + length * np.sin(angle), pivot[1] + length * np.cos(angle)
    pose = Pose("square", radius, x, y, -angle, 1 / np.sqrt(_recoil(latents, seconds)))
    contact = pivot + np.array([-latents.side * 0.8 * radius, length])
    return _Action([pose], contact, fixture=(1.5, 1.2 * radius), offset=(-latents.side * 2, 0), pivot=pivot)


def _turn(latents: Latents, style: SceneStyle, seconds: np.ndarray) -> _Action:
    """A triangle turns on its centre, ever faster, until the next corner hits a peg."""
    radius = 1.2 * log_between(latents.size, style.radius)
    home = _home(latents)
    thirds = _last_impact(latents, seconds) + beat(latents, seconds)[2] ** 2.5
    angle = latents.side * thirds * 2 * math.pi / 3
    x, y = np.full_like(angle, home[0]), np.full_like(angle, home[1])
    pose = Pose("triangle", radius, x, y, angle, np.sqrt(_recoil(latents, seconds)))
    return _Action([pose], home + np.array([0, -radius - 1]), fixture=(1.5, 5), offset=(0, -5))


def _clap(latents: Latents, style: SceneStyle, seconds: np.ndarray) -> _Action:
    """Two upright bars clap."""
    radius, home = log_between(latents.size, style.radius), _home(latents)
    gap = 0.4 * radius + 20 * _excursion(latents, seconds)
    stretch, y, level = 1 / np.sqrt(_recoil(latents, seconds)), np.full_like(gap, home[1]), np.zeros_like(gap)
    poses = [Pose("bar", radius, home[0] + way * gap, y, level, stretch) for way in (-1, 1)]
    return _Action(poses, home)


def _roll(latents: Latents, style: SceneStyle, seconds: np.ndarray) -> _Action:
    """A ring rolls against a post and back."""
    radius, side = log_between(latents.size, style.radius), latents.side
    contact = _home(latents) + np.array([-side * 22, 0])
    way = side * 38 * _excursion(latents, seconds)
    x, y = contact[0] + side * radius + way, np.full_like(way, contact[1])
    pose = Pose("ring", radius, x, y, way / radius, 1 / np.sqrt(_recoil(latents, seconds)))
    return _Action([pose], contact, fixture=(1.5, 1.4 * radius), offset=(-side * 2, 0))


def _leap(latents: Latents, style: SceneStyle, seconds: np.ndarray) -> _Action:
    """A cross leaps up against a ceiling, tilting as it falls back."""
    radius = 1.1 * log_between(latents.size, style.radius)
    contact = _home(latents) - np.array([0, 14 + radius / 2])
    fall = _excursion(latents, seconds)
    y = contact[1] + radius + 34 * fall
    pose = Pose("cross", radius, np.full_like(y, contact[0]), y, latents.side * 0.6 * fall, np.ones_like(y))
    return _Action([pose], contact, fixture=(1.4 * radius, 1.5), offset=(0, -2))


_ACTIONS = {"disc": _bounce, "square": _swing, "triangle": _turn, "bars": _clap, "ring": _roll, "cross": _leap}


def _drift(style: SceneStyle, seconds: np.ndarray, rng: np.random.Generator) -> Pose:
    """A distractor: any of the outlines, small, spinning evenly on a slow Lissajous path."""
    outline = OUTLINES[rng.integers(len(OUTLINES))]
    centre, reach = rng.uniform(0.15, 0.85, 2) * SIZE, rng.uniform(8, 28, 2)
    rate, phase = rng.uniform(0.1, 0.45, 2), rng.random(2)
    x, y = (centre[i] + reach[i] * np.sin(2 * math.pi * (rate[i] * seconds + phase[i])) for i in range(2))
    turn = rng.uniform(0, 2 * math.pi) + rng.uniform(-2, 2) * seconds
    return Pose(outline, rng.uniform(*style.distractor_radius), x, y, turn, np.ones_like(seconds))


def _seen(pose: Pose, camera: np.ndarray) -> Pose:
    return Pose(pose.outline, pose.radius, pose.x - camera[:, 0], pose.y - camera[:, 1], pose.turn, pose.stretch)


def _camera(latents: Latents, seconds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`[T, 2]` whole pixels (x, y) that the camera is off: slow sines, which H.264 predicts cheaply."""
    rate, phase = rng.uniform(0.2, 1.2, (2, 2)), rng.random((2, 2))
    path = np.sin(2 * math.pi * (rate * seconds[:, None, None] + phase)).mean(-1)
    return np.rint(latents.shake * path).astype(int)


def _wall(kind: Kind, latents: Latents, style: SceneStyle, margin: int, rng: np.random.Generator) -> np.ndarray:
    """Float32 `[SIZE + 2 margin, SIZE + 2 margin, 3]`: a colour, times the material, times random blotches."""
    side = SIZE + 2 * margin
    blotches = np.zeros((side, side))
    for cells, weight in ((4, 0.6), (9, 0.5), (20, 0.35)):
        # [side, cells] weights that interpolate linearly.
        weights = np.maximum(0, 1 - abs(np.linspace(0, cells - 1, side)[:, None] - np.arange(cells)))
        blotches += weight * (weights @ rng.uniform(-1, 1, (cells, cells)) @ weights.T)
    colour = _rgb(latents.hue, 0.6, between(latents.light, style.day if kind.bright else style.night))
    shade = (1 + latents.relief * _relief(kind.material, latents, style, side)) * (1 + latents.texture * blotches)
    return (colour * shade[..., None]).astype(np.float32)


def _relief(material: Material, latents: Latents, style: SceneStyle, side: int) -> np.ndarray:
    """`[side, side]` from -1 to 1: the material with soft edges, of mean about 0."""
    y, x = np.mgrid[:side, :side] - side / 2
    cell = log_between(latents.cell, style.cell)
    cos, sin = math.cos(latents.lean) / cell, math.sin(latents.lean) / cell
    u, v = cos * x + sin * y + latents.phase[0], cos * y - sin * x + latents.phase[1]
    waves = {
        "planks": lambda: _wave(u),
        "siding": lambda: _wave(v),
        "tiles": lambda: 1.5 * _wave(u / 2) * _wave(v / 2),
        "bricks": lambda: 1 - 2.5 * np.maximum(_joint(v), _joint((u + np.floor(v) % 2) / 2)),
        "dots": lambda: 0.8 * (_wave(u) + _wave(v)) - 0.8,
        "lattice": lambda: 1 - 2.5 * np.maximum(_joint((u + v) / 1.5), _joint((u - v) / 1.5)),
    }
    return np.clip(2 * waves[material](), -1, 1)


def _wave(cycles: np.ndarray) -> np.ndarray:
    return np.sin(2 * math.pi * cycles)


def _joint(cycles: np.ndarray) -> np.ndarray:
    """1 in a narrow line once in each cycle, 0 elsewhere."""
    return np.exp(-(((cycles % 1 - 0.5) / 0.14) ** 2))


def _draw_fixture(world: np.ndarray, action: _Action, margin: int) -> None:
    if action.fixture is not None:
        centre, half = action.contact + action.offset + margin, np.array(action.fixture)
        (x0, y0), (x1, y1) = (np.clip(np.rint(p).astype(int), 0, len(world)) for p in (centre - half, centre + half))
        world[y0:y1, x0:x1] = INK


def _add_grain(frames: np.ndarray, latents: Latents, rng: np.random.Generator) -> None:
    """Sensor noise, and the half that makes truncation rounding: one sheet, shifted at random for each frame."""
    sheet = (0.5 + latents.grain * rng.standard_normal((2 * SIZE, 2 * SIZE))).astype(np.float32)
    for frame, (x, y) in zip(frames, rng.integers(0, SIZE, (FRAMES, 2)), strict=True):
        frame += sheet[y : y + SIZE, x : x + SIZE, None]


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    return 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32)
