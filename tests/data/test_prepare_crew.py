"""The processes that prepare: what a kill for want of memory costs, and how many there are by default."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from prepared_sets import layout_of

from diffmavil.data import cores as cores_module
from diffmavil.data.cores import usable_cores
from diffmavil.data.prepare.again import forget_failed
from diffmavil.data.prepare.crew import Crew
from diffmavil.data.prepare.items import Item
from diffmavil.data.prepare.pack import pack_shard
from diffmavil.data.prepare.settings import Settings
from diffmavil.data.prepare.work import Worker


class Hungry(Worker):
    """Killed as the kernel does it: `once` at the first try alone, `always` at each."""

    def __call__(self, item: Item, begun: Callable[[], None] = lambda: None) -> None:
        name = Path(item.source).stem
        tried = self.state / f"{name}.tried"
        if name == "always" or (name == "once" and not tried.exists()):
            tried.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        self.leave(item, [], [])


@pytest.mark.filterwarnings("ignore")
def test_what_is_killed_is_tried_again_alone_after_all_others(tmp_path: Path) -> None:
    src = tmp_path / "src"
    src.mkdir()
    for name in ("always", "b", "c", "once"):
        (src / f"{name}.mp4").touch()
    layout = layout_of(src, tmp_path / "out")
    worker = Hungry(Settings(), layout.state, 30.0)
    with Crew(worker, 2) as crew:
        done = [(Path(item.source).stem, len(crew.members)) for item in crew.run(layout.catalog.items)]
    assert sorted(done[:2]) == [("b", 2), ("c", 2)]
    assert sorted(done[2:]) == [("always", 1), ("once", 1)]
    reasons = {Path(item.source).stem: worker.done(item).read_text() for item in layout.catalog.items}
    assert '"bad":[]' in reasons["once"]
    assert "the second time with no other of this command beside it: memory ran out" in reasons["always"]
    assert "--retry-bad with fewer --workers" in reasons["always"]
    pack_shard(layout, 0)
    assert forget_failed(layout, 0, 1) == 1
    assert [item.source for item in layout.catalog.items if not worker.done(item).exists()] == ["always.mp4"]


QUOTAS = {"none": ("max 100000", 8), "whole": ("300000 100000", 3), "part": ("150000 100000", 2),
          "less-than-one": ("50000 100000", 1), "more-than-cores": ("6400000 100000", 8),
          "another-format": ("max", 8)}  # fmt: skip


@pytest.mark.parametrize(("quota", "cores"), QUOTAS.values(), ids=list(QUOTAS))
def test_a_containers_quota_bounds_the_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(cores_module, "_QUOTA", tmp_path / "cpu.max")
    assert usable_cores() == 8, "no container"
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert usable_cores() == cores
