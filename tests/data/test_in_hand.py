"""Which clips decoding processes have in hand, as they write it and as it is read; and what ends a wait for them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from diffmavil.config.errors import RunError
from diffmavil.data import in_hand
from diffmavil.data.in_hand import InHand
from diffmavil.data.loader import Loader


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch):
    """Makes the code that follows that of a decoding process with an id and a process id."""

    def become(number: int, pid: int) -> None:
        monkeypatch.setattr(in_hand, "get_worker_info", lambda: SimpleNamespace(id=number))
        monkeypatch.setattr(in_hand, "os", SimpleNamespace(getpid=lambda: pid))

    return become


def test_each_process_has_its_own_clip_until_its_batch_is_made(worker):
    held = InHand(2)
    worker(0, 70)
    with held.batch():
        held.take(5)
        worker(1, 71)
        held.take(9)
        assert held.clips() == [5, 9]
        assert held.clips({71}) == [9]
        assert held.clips({72}) == []
        worker(0, 70)
    assert held.clips() == [9]
    before = held.state()
    worker(1, 71)
    held.take(9)
    assert held.state() != before, "the same clip taken again is progress"
    held.clear()
    assert held.clips() == []


def test_outside_of_decoding_processes_nothing_is_written():
    held = InHand(1)
    with held.batch():
        held.take(3)
    assert held.clips() == []
    assert InHand(0).clips() == []


class Waiting:
    """A DataLoader's iterator that has nothing yet, whose thread for pinned memory has ended."""

    _pin_memory_thread = SimpleNamespace(is_alive=lambda: False)

    def __next__(self) -> None:
        raise RuntimeError("DataLoader timed out after 5 seconds")


def test_a_thread_that_pins_no_more_ends_the_wait_at_once():
    loader: Any = SimpleNamespace(_in_hand=InHand(1), _patience=600.0)
    waiting: Any = Waiting()
    with pytest.raises(RunError, match="the thread that pins batches in memory has ended"):
        Loader._wait(loader, waiting)
