"""The order of the training stream."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from diffmavil.data.stream import MAX_ATTEMPTS, ClipStream, batches


def test_each_epoch_holds_every_clip_once_in_its_own_order() -> None:
    stream = ClipStream(37, seed=3)
    epochs = [[stream.item(epoch * 37 + i) for i in range(37)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(37)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_order_depends_on_the_seed_alone() -> None:
    first, again, other = (ClipStream(50, seed) for seed in (1, 1, 2))
    order = [first.item(p) for p in range(120)]
    assert [again.item(p) for p in reversed(range(120))] == order[::-1]
    assert [other.item(p) for p in range(120)] != order


def test_order_never_changes() -> None:
    """A run resumed with another numpy or release goes on with the same clips and crops."""
    stream = ClipStream(10, seed=0)
    assert [stream.item(position) for position in range(10)] == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert list(stream.candidates(3))[:4] == [1, 0, 5, 7]
    assert stream.crop_rng(7).random() == 0.6082488753633517


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_ranks_share_each_step_in_contiguous_slices(world: int) -> None:
    start, size = 24, 8
    ranks = [list(itertools.islice(batches(start, size, rank, world), 5)) for rank in range(world)]
    for step in range(5):
        joined = [position for rank in range(world) for position in ranks[rank][step]]
        assert joined == list(range(start + step * size, start + (step + 1) * size))


@pytest.mark.parametrize(
    ("size", "rank", "world", "name"), [(10, 0, 4, "batch_size"), (8, 4, 4, "rank"), (8, -1, 4, "rank")]
)
def test_impossible_slices(size: int, rank: int, world: int, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        next(batches(0, size, rank, world))


def test_candidates_are_the_clip_and_then_every_other_once() -> None:
    stream = ClipStream(30, seed=0)
    for position in (0, 7, 100):
        candidates = list(stream.candidates(position))
        assert candidates[0] == stream.item(position)
        assert sorted(candidates) == list(range(30))
    assert list(stream.candidates(1)) != list(stream.candidates(2))
    assert list(stream.candidates(1)) == list(ClipStream(30, seed=0).candidates(1))


def test_candidates_end() -> None:
    assert len(list(ClipStream(100_000, seed=0).candidates(0))) <= MAX_ATTEMPTS + 1


def test_crops_differ_between_positions_attempts_and_seeds() -> None:
    draws = [
        ClipStream(5, seed).crop_rng(position, attempt).random()
        for seed, position, attempt in itertools.product((0, 1), (0, 5, 2**40), (0, 1))
    ]
    assert len(set(draws)) == len(draws)
    assert ClipStream(5, 0).crop_rng(5).random() == draws[2]


def test_streams_do_not_overlap() -> None:
    """The order's numbers, the crops' and the substitutes' never repeat one another."""
    stream = ClipStream(4, seed=0)
    words = [stream.crop_rng(0, attempt).integers(0, 2**63, 64) for attempt in range(8)]
    assert len(set(np.concatenate(words).tolist())) == 8 * 64


@pytest.mark.parametrize(("n", "seed", "name"), [(0, 0, "n="), (5, -1, "seed="), (5, 2**63, "seed=")])
def test_bad_arguments(n: int, seed: int, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        ClipStream(n, seed)


# Some clips more often than others

OFTEN = (1.0, 0.5, 3.0, 0.25, 0.25, 1.0)


def test_an_epoch_holds_each_clip_by_its_share_rounded_up_or_down() -> None:
    stream = ClipStream(6, seed=3, often=OFTEN)
    counts = np.array(
        [np.bincount([stream.item(6 * epoch + i) for i in range(6)], minlength=6) for epoch in range(400)]
    )
    share = np.array(OFTEN)  # they sum to 6, the positions of an epoch
    assert (np.abs(counts - share) < 1).all()
    assert counts.mean(0) == pytest.approx(share, abs=0.08)
    assert len({tuple(stream.item(6 * epoch + i) for i in range(6)) for epoch in range(400)}) > 100


def test_clips_that_come_more_often_do_so_on_any_number_of_processes_and_after_a_resume() -> None:
    """An item is a pure function of (seed, position), in whatever order it is asked for."""
    one = ClipStream(6, seed=3, often=OFTEN)
    order = [one.item(position) for position in range(48)]
    for world in (2, 4):
        ranks = [ClipStream(6, seed=3, often=OFTEN) for _ in range(world)]
        steps = [list(itertools.islice(batches(0, 8, rank, world), 6)) for rank in range(world)]
        found = [ranks[rank].item(p) for step in range(6) for rank in range(world) for p in steps[rank][step]]
        assert found == order
    resumed = ClipStream(6, seed=3, often=OFTEN)
    assert [resumed.item(position) for position in reversed(range(20, 48))] == order[20:][::-1]
    assert [ClipStream(6, seed=4, often=OFTEN).item(position) for position in range(48)] != order


def test_the_order_of_resampled_clips_never_changes() -> None:
    """As `test_order_never_changes`."""
    stream = ClipStream(6, seed=0, often=OFTEN)
    assert [stream.item(position) for position in range(12)] == [2, 3, 2, 5, 2, 0, 2, 2, 5, 2, 0, 1]


def test_scale_of_often_does_not_matter_and_equal_ones_are_once_an_epoch() -> None:
    many = ClipStream(6, seed=3, often=[1000 * x for x in OFTEN])
    stream = ClipStream(6, seed=3, often=OFTEN)
    assert [many.item(p) for p in range(60)] == [stream.item(p) for p in range(60)]
    equal = ClipStream(37, seed=3, often=[0.1] * 37)
    assert all(sorted(equal.item(37 * epoch + i) for i in range(37)) == list(range(37)) for epoch in range(4))


def test_substitutes_of_resampled_clips_are_every_other_once() -> None:
    stream = ClipStream(6, seed=3, often=OFTEN)
    for position in range(20):
        candidates = list(stream.candidates(position))
        assert candidates[0] == stream.item(position)
        assert sorted(candidates) == list(range(6))


@pytest.mark.parametrize("often", [(1.0, 2.0), (1.0,) * 5 + (0.0,), (1.0,) * 5 + (-1.0,)])
def test_impossible_shares(often: tuple[float, ...]) -> None:
    with pytest.raises(
        ValueError, match=rf"often='{len(often)} numbers': must be 6 positive ones, of one set, or none"
    ):
        ClipStream(6, 0, often=often)
    with pytest.raises(ValueError, match="often"):
        ClipStream(6, 0, parts=[(3, 1.0), (3, 1.0)], often=OFTEN)
