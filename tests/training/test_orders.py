"""A decoded clip may serve several steps: which clips are decoded for which, and what differs when one comes again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import pytest
import torch

from diffmavil.config import BatchConfig, Config, MaskConfig, RatioSchedule
from diffmavil.config.presets import PRESETS
from diffmavil.data.loader import make_loader
from diffmavil.data.sources import split_source
from diffmavil.training.orders import Orders, batches_of_steps
from diffmavil.training.planner import plan, timetable
from tests.runs import very_small

TINY = PRESETS["diffmavil-tiny"]


def repeated(times: int, steps: int = 10, **batch: object) -> Config:
    falling = RatioSchedule("linear", 0.9, 0.6, levels=2)
    config = replace(TINY, train=replace(TINY.train, steps=steps, batch_size=8), batch=BatchConfig(**batch))  # type: ignore[arg-type]
    return replace(config, data=replace(config.data, repeat=times), mask=MaskConfig(video=falling, audio=falling))


def test_each_group_of_steps_has_an_order_and_clips_follow_one_another():
    config = repeated(3)
    assert list(Orders(config, 0, 0, 1)) == [range(8), range(8, 16), range(16, 24), range(24, 32)]


def test_a_clip_that_serves_one_step_is_decoded_in_the_order_of_samples():
    config = repeated(1)
    assert list(Orders(config, 0, 0, 1)) == [range(8 * step, 8 * step + 8) for step in range(10)]


def test_a_group_ends_where_the_batch_changes():
    config = repeated(4, rule="flops", sizes=(16, 8))
    assert [plan(config, step).batch_size for step in range(timetable(config).steps)] == [16, 16, 16, 8, 8, 8, 8]
    assert list(Orders(config, 0, 0, 1)) == [range(16), range(12, 20)]


@pytest.mark.parametrize("sizes", [(), (16, 8), (8, 24)], ids=str)
@pytest.mark.parametrize("processes", [1, 4])
def test_wherever_a_run_is_resumed_its_steps_have_the_same_clips_on_any_number_of_processes(sizes, processes):
    config = repeated(3, rule="flops", sizes=sizes) if sizes else repeated(3)
    steps = timetable(config).steps
    whole = _clips_of_steps(config, 0, 1)
    for first in range(steps):
        assert _clips_of_steps(config, first, processes) == whole[first:]


def _clips_of_steps(config: Config, first: int, processes: int) -> list[list[int]]:
    """What `batches_of_steps` gives to all processes together, by a loader that gives its order."""
    ranks = []
    for rank in range(processes):
        orders = Orders(config, first, rank, processes)
        loader = [_Order(list(order), torch.tensor(order)) for order in orders]
        batches = cast(list[_Order], list(batches_of_steps(loader, orders)))  # type: ignore[arg-type]
        for step, batch in enumerate(batches, start=first):
            now = plan(config, step)
            local = now.batch_size // processes
            assert batch.position.tolist() == list(
                range(now.position + rank * local, now.position + (rank + 1) * local)
            )
        ranks.append([batch.clips for batch in batches])
    return [[clip for part in step for clip in part] for step in zip(*ranks, strict=True)]


@dataclass(frozen=True)
class _Order:
    """Stands for the batch of an order."""

    clips: list[int]
    position: torch.Tensor

    def __len__(self) -> int:
        return len(self.clips)


def test_a_batch_that_comes_again_has_the_same_pictures_and_draws_anew(cache):
    config = very_small(cache)
    train = replace(config.train, steps=4, batch_size=8)
    config = replace(config, train=train, data=replace(config.data, repeat=2))
    orders = Orders(config, 0, 0, 1)
    with make_loader(config, split_source(config.data).train, orders=orders, batch_size=orders.largest) as loader:
        first, again, second, _ = batches_of_steps(loader, orders)
    assert torch.equal(first.video, again.video)
    assert not torch.equal(first.video, second.video)
    assert (first.position.tolist(), again.position.tolist()) == (list(range(8)), list(range(8, 16)))
    assert loader.tally.tried == 16
