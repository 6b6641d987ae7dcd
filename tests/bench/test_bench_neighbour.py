"""The benchmark of a busy neighbour: it works in a session of its own and ends; the table divides rightly."""

from __future__ import annotations

import io
import os
import subprocess

import pytest
from rich.console import Console

from benchmarks import neighbour


def test_the_neighbour_is_in_a_session_of_its_own_at_nice_10_and_ends(monkeypatch: pytest.MonkeyPatch):
    started = []
    real = subprocess.Popen

    def popen(*args, **kwargs):
        started.append(real(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(neighbour.subprocess, "Popen", popen)
    with neighbour.busy_process():
        (process,) = started
        assert process.poll() is None
        assert os.getsid(process.pid) != os.getsid(0)
    assert process.returncode is not None


def test_places_and_policies_take_turns(monkeypatch: pytest.MonkeyPatch):
    rates = {"spinning": 10.0, "passive": 8.0}
    monkeypatch.setattr(neighbour, "clips_per_second", lambda policy, steps, cache: rates[policy])
    found = list(neighbour.measure(turns=2, steps=5, cache=None))
    assert [(r["turn"], r["place"], r["policy"]) for r in found] == [
        *((0, place, policy) for place in ("alone", "beside") for policy in ("passive", "spinning")),
        *((1, place, policy) for place in ("alone", "beside") for policy in ("spinning", "passive")),
    ]
    halved = [r | {"clips_per_s": r["clips_per_s"] / 2} if r["place"] == "beside" else r for r in found]
    text = io.StringIO()
    Console(width=100, file=text).print(neighbour.table(halved))
    assert all(word in text.getvalue() for word in ("10.0", "5.0", "8.0", "4.0", "0.50"))


@pytest.mark.parametrize("flag", ["--turns", "--steps"])
def test_impossible_numbers_are_refused(flag: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        neighbour.parse([flag, "0"])
    assert f"{flag} 0: must be at least" in capsys.readouterr().err
