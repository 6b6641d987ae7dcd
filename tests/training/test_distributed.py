"""How processes join, and how they part where one of them fails: without waiting for the others."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from diffmavil.config.errors import UsageError
from diffmavil.training.distributed import world
from diffmavil.training.planner import check_processes
from tests.training.test_planner import adaptive


def test_graphs_of_several_processes_are_refused_before_anything_is_read():
    config = adaptive()
    with pytest.raises(ValueError, match=r"train\.cuda_graph=True: must be False with 2 processes"):
        check_processes(replace(config, train=replace(config.train, cuda_graph=True)), 2)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(UsageError, match="LOCAL_RANK=4: must be below 4, the GPUs that this process sees"), world():
        pass


@pytest.mark.parametrize("fails", [False, True])
def test_the_group_is_taken_down_after_clean_work_alone(monkeypatch, fails):
    """nccl would wait for the peers, which wait for this rank."""
    calls = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(dist, "ProcessGroup", SimpleNamespace)
    monkeypatch.setattr(dist, "init_process_group", lambda *args, **named: calls.append("join"))
    monkeypatch.setattr(dist, "new_group", lambda **named: SimpleNamespace())
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append("leave"))
    try:
        with world() as peers:
            assert (peers.rank, peers.size) == (1, 2)
            if fails:
                raise OSError("a clip")
    except OSError:
        assert fails
    assert calls == ["join", *([] if fails else ["leave"])]


FAILING = """
import atexit, sys
from diffmavil.config.cli import run_main
from diffmavil.config.errors import RunError, UsageError
atexit.register(print, "taken down")
def main(argv):
    raise {error}
run_main(main)
"""


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        ("UsageError('--x=1')", 2, "error: --x=1"),
        ("RunError('too many bad clips')", 1, "error: too many bad clips"),
        ("OSError('a disk')", 1, "OSError: a disk"),
    ],
)
def test_one_of_several_processes_says_its_error_and_ends_at_once(error, code, says, processes):
    done = subprocess.run(
        [sys.executable, "-c", FAILING.format(error=error)],
        capture_output=True,
        text=True,
        env={**os.environ, "WORLD_SIZE": str(processes)},
    )
    assert done.returncode == code
    assert done.stderr.strip().endswith(says)
    assert ("taken down" in done.stdout) == (processes == 1)
