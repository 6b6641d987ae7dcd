"""The study of quality without its trainings."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from benchmarks import frontier, recipes
from benchmarks.processes import Processes
from tests.bench.study_commands import SCORES, Commands


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    stand_in = Commands()
    monkeypatch.setattr(Processes, "python", lambda self, *arguments: stand_in.python(*arguments))
    monkeypatch.setattr(frontier, "open_data", lambda config: None)
    evaluation = SimpleNamespace(
        results={"trained": SCORES, "untrained": dict.fromkeys(SCORES, 0.5), "chance": dict.fromkeys(SCORES, 0.1)},
        intervals={"trained": {name: (value - 0.04, value + 0.06) for name, value in SCORES.items()}},
        clips={"heldout": SimpleNamespace(used=80)},
    )
    tuned = SimpleNamespace(
        results={"last": {"1": {"top1": 0.7}}},
        intervals={"last": {"1": {"top1": (0.6, 0.8)}}},
        headline={"weights": "last", "crops": "1", "metric": "top1"},
        clips={"test": {"listed": 80, "used": 80}},
    )
    monkeypatch.setattr(recipes, "read_evaluation", lambda folder: evaluation)
    monkeypatch.setattr(recipes, "read_classification", lambda folder: tuned)
    return stand_in


@pytest.fixture(autouse=True)
def handlers_stay() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) is before
