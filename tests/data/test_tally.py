"""Too many bad clips: counted over the whole run, and judged by how sure one can be."""

import json

import numpy as np
import pytest

from diffmavil.data.tally import Tally


def tallied(bad: np.ndarray) -> Tally:
    tally = Tally(len(bad))
    tally.count(range(len(bad)), [(int(i), f"{i}.mp4", "broken") for i in np.flatnonzero(bad)])
    return tally


def stopped_at(bad: np.ndarray, most: float) -> int | None:
    """After how many clips a run of these would stop."""
    tally = Tally(len(bad))
    for i, broken in enumerate(bad):
        tally.count([i], [(i, f"{i}.mp4", "broken")] if broken else [])
        if tally.too_many(most):
            return i + 1
    return None


@pytest.mark.parametrize(("share", "lives"), [(0.05, True), (0.12, True), (0.17, True), (0.4, False), (0.9, False)])
def test_a_set_below_the_limit_lives_whatever_its_order(share: float, lives: bool):
    rng = np.random.default_rng(0)
    bad = np.arange(500) < share * 500
    stops = [stopped_at(rng.permutation(bad), 0.2) for _ in range(100)]
    if lives:
        assert stops == [None] * 100
    else:
        assert all(stop is not None and stop < 250 for stop in stops)


def test_when_all_were_tried_the_share_decides():
    assert not tallied(np.arange(10) < 2).too_many(0.2)
    assert tallied(np.arange(10) < 3).too_many(0.2)
    assert not tallied(np.arange(10) < 10).too_many(1.0)


def test_none_allowed_means_none():
    tally = Tally(1000)
    tally.count([3], [(3, "a", "b")])
    assert tally.too_many(0.0)


def test_a_clip_counts_once():
    tally = Tally(4)
    for _ in range(3):
        tally.count([1, 2], [(2, "c.mp4", "broken")])
    assert (tally.tried, tally.bad, tally.reasons) == (2, 1, {"c.mp4": "broken"})


def test_it_goes_on_after_a_resume_and_joins_those_of_other_processes():
    first, second = Tally(11), Tally(11)
    first.count([0, 1, 2], [(2, "c", "broken")])
    second.count([2, 10], [(10, "k", "silent")])
    joined = Tally(11)
    for one in (first, second):
        joined.add(json.loads(json.dumps(one.as_json())))
    assert (joined.tried, joined.bad, joined.reasons) == (4, 2, {"c": "broken", "k": "silent"})
    joined.count([2, 3], [(2, "c", "broken")])
    assert (joined.tried, joined.bad) == (5, 2)


def test_other_clips_are_another_count():
    tally = Tally(5)
    tally.add(tallied(np.ones(7)).as_json())
    tally.add({})
    assert (tally.tried, tally.bad, tally.reasons) == (0, 0, {})
