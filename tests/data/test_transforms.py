"""Spatial crops."""

from __future__ import annotations

import numpy as np
import pytest

from diffmavil.data.transforms import ASPECT, Framing, centre_framing, random_framing

SIZES = [(320, 180), (180, 320), (64, 64), (1920, 800), (30, 17), (1000, 50), (64.5, 48)]


def crop_of(framing: Framing, width: float, height: float) -> tuple[float, float]:
    """Width and height of the crop in pixels of the source."""
    return width * framing.size / framing.width, height * framing.size / framing.height


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_random_crops_stay_inside_and_in_range(size: tuple[float, float]) -> None:
    width, height = size
    for seed in range(200):
        framing = random_framing(96, (0.5, 1.0), True, np.random.default_rng(seed))(width, height)
        assert framing.size == 96
        assert 0 <= framing.left <= framing.width - 96
        assert 0 <= framing.top <= framing.height - 96
        w, h = crop_of(framing, width, height)
        assert 0.97 * ASPECT[0] <= w / h <= 1.03 * ASPECT[1]
        assert w <= width * 1.001
        assert h <= height * 1.001


def test_random_crops_cover_the_ranges() -> None:
    framings = [random_framing(96, (0.5, 1.0), True, np.random.default_rng(seed))(400, 400) for seed in range(500)]
    shares = np.array([np.prod(crop_of(f, 400, 400)) / 400**2 for f in framings])
    aspects = np.array([crop_of(f, 400, 400)[0] / crop_of(f, 400, 400)[1] for f in framings])
    assert 0.48 < shares.min() < 0.55
    assert shares.max() > 0.9
    assert aspects.min() < 0.8
    assert aspects.max() > 1.25
    assert 0.4 < np.mean([f.flip for f in framings]) < 0.6
    lefts = np.array([f.left / (f.width - 96) for f in framings if f.width > 120])
    assert lefts.min() < 0.05
    assert lefts.max() > 0.95


def test_flip_can_be_turned_off() -> None:
    assert not any(random_framing(96, (1.0, 1.0), False, np.random.default_rng(s))(96, 96).flip for s in range(20))


def test_rule_is_the_same_for_every_frame() -> None:
    rule = random_framing(96, (0.5, 1.0), True, np.random.default_rng(0))
    assert rule(320, 180) == rule(320, 180)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((320, 180), Framing(171, 96, 37, 0, 96)),
        ((180, 320), Framing(96, 171, 0, 37, 96)),
        ((96, 96), Framing(96, 96, 0, 0, 96)),
        ((10, 10), Framing(96, 96, 0, 0, 96)),
    ],
    ids=["wide", "tall", "same", "small"],
)
def test_centre_crop(size: tuple[int, int], expected: Framing) -> None:
    assert centre_framing(96)(*size) == expected


def test_cut() -> None:
    frame = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    assert np.array_equal(Framing(8, 6, 3, 1, 4).cut(frame), frame[1:5, 3:7])
    assert np.array_equal(Framing(8, 6, 3, 1, 4, flip=True).cut(frame), frame[1:5, 3:7][:, ::-1])
