"""A GPU's memory: steps are cut to fit, what it does not have is refused, and a full one is told."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diffmavil.config.errors import RunError
from diffmavil.data.clips import ClipSet
from diffmavil.training.budget import plan_batches, resolve_batches
from diffmavil.training.distributed import World
from diffmavil.training.engine import fit
from diffmavil.training.memory import full_gpu_told
from tests.training.test_planner import adaptive


def test_on_a_gpu_a_step_that_does_not_fit_is_cut_and_one_that_fits_is_left(monkeypatch):
    need = 2**30
    monkeypatch.setattr(
        "diffmavil.training.budget.memory_bytes", lambda config, video, audio, device, teacher: (need, need)
    )

    def planned(gib: float, processes: int = 1, **batch):
        has = SimpleNamespace(total_memory=gib * 2**30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: has)
        config = adaptive(**batch)
        one = World(rank=0, size=processes, device=torch.device("cuda", 0))
        return resolve_batches(replace(config, train=replace(config.train, batch_size=8)), one).batch.at_once

    assert planned(11.25) == ()  # a fifth is left: 9 of 11.25, of which parameters take one
    assert planned(10.0) == (7, 7, 7, 7)
    assert planned(10.0, memory_gib=9.5) == (8, 8, 8, 8)
    assert planned(1.5) == (1, 1, 1, 1), "an estimate that nobody asked for refuses nothing"
    # A run that goes on has its sizes, and where they were whole the passes that the machine of now needs.
    sizes = (16, 8, 8, 8)
    assert planned(10.0, 2, rule="flops", sizes=sizes) == (7, 7, 7, 7)
    assert planned(22.0, 2, rule="flops", sizes=sizes) == ()
    assert planned(22.0, 2, rule="flops", sizes=sizes, at_once=(3, 3, 3, 3)) == (3, 3, 3, 3)
    assert planned(22.0, 2, rule="flops", sizes=sizes, at_once=(3, 3, 3, 3), memory_gib=20) == (3, 3, 3, 3)
    with pytest.raises(ValueError, match=r"batch\.memory_gib=12: must be at most 10\.0, which the GPU has"):
        planned(10.0, memory_gib=12)


@full_gpu_told()
def allocate(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("where", ["plan_batches", "fit"])
def test_planning_and_training_tell_it(monkeypatch, where):
    def full(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    alone = World(rank=0, size=1, device=torch.device("cpu"))
    monkeypatch.setattr("diffmavil.training.budget.resolve_batches", full)
    monkeypatch.setattr("diffmavil.training.engine.TrainStep", full)
    run: Any = None
    with pytest.raises(RunError, match="the memory of the GPU is full"):
        plan_batches(adaptive(), alone) if where == "plan_batches" else fit(
            run, run, adaptive(), ClipSet([], []), alone
        )


def test_a_full_gpu_is_told_with_what_to_change():
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nand much more")
    with pytest.raises(RunError, match=r"full.*--batch\.memory-gib.*--train\.recompute.*allocate 2\.00 GiB\.$"):
        allocate(full)
    with pytest.raises(RuntimeError, match="another"):
        allocate(RuntimeError("another"))
