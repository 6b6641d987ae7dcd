import itertools

import pytest

from diffmavil.config import RatioSchedule
from diffmavil.training.curriculum import keep_count, level_progress, mask_ratio


@pytest.mark.parametrize("kind", ["linear", "cosine", "step"])
@pytest.mark.parametrize(("start", "end"), [(0.9, 0.8), (0.6, 0.85)], ids=["falling", "rising"])
def test_begins_at_start_ends_at_end_and_moves_one_way(kind, start, end):
    schedule = RatioSchedule(kind, start, end)
    ratios = [mask_ratio(schedule, i / 200) for i in range(201)]
    assert ratios[0] == pytest.approx(start)
    assert ratios[-1] == pytest.approx(end)
    steps = [(b - a) * (end - start) for a, b in itertools.pairwise(ratios)]
    assert min(steps) >= 0


def test_linear_mean_over_the_run_is_the_middle():
    schedule = RatioSchedule("linear", 0.9, 0.8)
    ratios = [mask_ratio(schedule, p) for p in level_progress(schedule)]
    assert sum(ratios) / len(ratios) == pytest.approx(0.85)


@pytest.mark.parametrize("levels", [1, 3, 8])
def test_no_more_token_counts_than_levels(levels):
    schedule = RatioSchedule("linear", 0.9, 0.5, levels=levels)
    counts = {keep_count(schedule, i / 1000, 1568) for i in range(1001)}
    assert len(counts) == levels


@pytest.mark.parametrize("samples", [32_000, 38_400_000, 999_983])
def test_every_level_begins_with_the_first_sample_of_its_stretch(samples):
    """In floats, progress * levels comes out just below the whole number at some boundaries, from 22 levels on."""
    for levels in range(2, 65):
        schedule = RatioSchedule("linear", 0.9, 0.1, levels=levels)
        for level in range(1, levels):
            first = -(-samples * level // levels)
            below, at = (mask_ratio(schedule, position / samples) for position in (first - 1, first))
            assert at == pytest.approx(0.9 - 0.8 * level / (levels - 1)), (levels, level)
            assert below == pytest.approx(0.9 - 0.8 * (level - 1) / (levels - 1)), (levels, level)


def test_constant_keeps_its_start():
    assert {keep_count(RatioSchedule("constant", 0.8, 0.1), p, 784) for p in (0.0, 0.5, 1.0)} == {157}


def test_one_token_is_always_visible_and_one_masked():
    assert keep_count(RatioSchedule("constant", 0.99), 0.0, 4) == 1
    assert keep_count(RatioSchedule("constant", 0.01), 0.0, 4) == 3


@pytest.mark.parametrize("progress", [-0.1, 1.1])
def test_progress_outside_the_run_is_refused(progress):
    with pytest.raises(ValueError, match="progress"):
        mask_ratio(RatioSchedule(), progress)
