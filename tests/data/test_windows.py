"""Where the windows of picture and sound lie."""

from __future__ import annotations

import itertools
from typing import Literal

import pytest

from diffmavil.data.modalities import least_seconds, too_short
from diffmavil.data.windows import Span, choose_windows

PLACES = [(a, b) for a in (0.0, 0.3, 0.999) for b in (0.0, 0.5, 0.999)]


@pytest.mark.parametrize("place", PLACES)
def test_picture_lies_inside_the_longer_sound(place: tuple[float, float]) -> None:
    video, audio = choose_windows(Span(0, 30), Span(0, 30), 4.0, 10.24, place)
    assert video.length == pytest.approx(4.0)
    assert audio.length == pytest.approx(10.24)
    assert audio.start >= 0
    assert audio.end <= 30
    assert video.start >= audio.start
    assert video.end <= audio.end + 1e-9
    assert audio.start == pytest.approx(place[0] * (30 - 10.24))
    assert video.start - audio.start == pytest.approx(place[1] * (10.24 - 4))


def test_shorter_sound_lies_at_the_centre_of_the_picture() -> None:
    video, audio = choose_windows(Span(0, 30), Span(0, 30), 4.0, 1.0, (0.5, 0.9))
    assert video.start == pytest.approx(13.0)
    assert audio.start == pytest.approx(14.5)


SPANS = {
    "same": (Span(0, 12), Span(0, 12)),
    "sound-late": (Span(0, 12), Span(3, 15)),
    "picture-late": (Span(3, 15), Span(0, 12)),
    "sound-short": (Span(0, 12), Span(5, 6)),
    "picture-short": (Span(5, 6), Span(0, 12)),
    "both-short": (Span(100.0, 101.5), Span(100.2, 101.4)),
    "barely": (Span(0, 5), Span(4.5, 9)),
}


@pytest.mark.parametrize(("picture", "sound"), SPANS.values(), ids=list(SPANS))
@pytest.mark.parametrize("lengths", [(4.0, 10.24), (4.0, 4.175), (4.0, 1.0), (0.0, 4.0)])
def test_picture_never_leaves_its_span_and_sound_is_heard(
    picture: Span, sound: Span, lengths: tuple[float, float]
) -> None:
    for place in PLACES:
        video, audio = choose_windows(picture, sound, *lengths, place)
        assert video.start >= picture.start
        assert video.end <= picture.end + 1e-9
        assert video.length == pytest.approx(min(lengths[0], picture.length))
        assert audio.length == pytest.approx(lengths[1])
        assert audio.start >= sound.start - 1e-9
        assert audio.intersect(sound).length >= min(0.4, lengths[1], sound.length)
        if lengths[0]:
            heard = audio.intersect(sound).intersect(video)
            assert heard.length >= min(*lengths, picture.intersect(sound).length) - 1e-9, "what is seen is not heard"


@pytest.mark.parametrize("sounds", [1.0, 3.0, 5.0])
def test_the_picture_is_of_the_time_that_has_sound(sounds: float) -> None:
    for place in PLACES:
        video, audio = choose_windows(Span(0, 10), Span(0, sounds), 4.0, 10.24, place)
        assert audio == Span(0, 10.24)
        assert video.intersect(Span(0, sounds)).length == pytest.approx(min(4.0, sounds))


def test_windows_move_with_the_place() -> None:
    starts = [choose_windows(Span(0, 30), Span(0, 30), 4.0, 10.24, (a, 0.5)).audio.start for a in (0.0, 0.25, 0.5, 0.9)]
    assert all(low < high for low, high in itertools.pairwise(starts))


@pytest.mark.parametrize("modalities", ["av", "audio"])
def test_a_segment_of_exactly_the_least_length_is_long_enough(modalities: Literal["av", "audio"]) -> None:
    least = least_seconds(modalities)
    spans = [Span(i / 10, i / 10 + least) for i in range(200)]
    assert any(span.length < least for span in spans)  # by rounding
    assert not any(too_short(modalities, span, span) for span in spans)
    assert too_short(modalities, Span(0, least - 0.01), Span(0, 9)).startswith("only ")
