"""Progress of long commands: a bar on a terminal, a line now and then in a file."""

import io

import pytest
from rich.console import Console

from diffmavil.config import progress
from diffmavil.config.progress import format_seconds, tracking


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress, "time", found)
    return found


def test_lines_come_less_and_less_often_down_to_one_a_minute(clock: Clock):
    out = io.StringIO()
    with tracking(Console(file=out), "clips", 1000) as tracker:
        for second in range(1, 301):
            clock.now = second
            tracker.update(2 * second)
    lines = out.getvalue().splitlines()
    assert lines[0] == "clips: 20 of 1,000, 2.0 a second, 8:10 to go"
    assert [int(line.split()[1].replace(",", "")) // 2 for line in lines] == [10, 20, 40, 80, 140, 200, 260]


def test_what_was_done_before_counts_for_no_speed(clock: Clock):
    out = io.StringIO()
    with tracking(Console(file=out), "clips", 1000) as tracker:
        tracker.found(900)
        clock.now = 10.0
        tracker.update(910)
    assert out.getvalue() == "clips: 910 of 1,000, 1.0 a second, 1:30 to go\n"


def test_a_short_command_says_nothing(clock: Clock):
    out = io.StringIO()
    with tracking(Console(file=out), "shards", None) as tracker:
        clock.now = 9.0
        tracker.update(3, 4)
    assert out.getvalue() == ""


def test_nowhere_and_on_a_terminal(clock: Clock):
    with tracking(None, "clips", 2) as tracker:
        tracker.update(1)
    out = io.StringIO()
    with tracking(Console(file=out, force_terminal=True), "clips", 2) as tracker:
        tracker.update(1)
    assert "clips" in out.getvalue()


@pytest.mark.parametrize(("seconds", "said"), [(3.4, "0:03"), (125, "2:05"), (3723, "1:02:03")])
def test_seconds_in_words(seconds: float, said: str):
    assert format_seconds(seconds) == said
