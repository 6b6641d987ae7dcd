"""What the process asks of the C heap and of OpenMP before it trains on a CPU."""

import os
import subprocess
import sys

import pytest

# Page faults of allocating, touching and freeing 64 MiB ten times, once the heap has settled.
FAULTS = """
import resource, sys
import torch
from diffmavil.training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def fill():
    torch.empty(2**24).fill_(1.0)
for _ in range(20):  # the heap grows by a few blocks before it finds a free one each time
    fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    run = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_freed_memory_is_used_again_without_faulting_its_pages():
    assert faults("keep") < 0.1 * faults("leave")


POLICY = "import diffmavil, os, sys; print(os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules)"


@pytest.mark.parametrize(
    ("users", "policy"),
    [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active"), ({"GOMP_SPINCOUNT": "1000"}, "None")],
    ids=["ours", "the user's", "the user's in libgomp's words"],
)
def test_waiting_threads_sleep_unless_the_user_wants_otherwise(users: dict[str, str], policy: str):
    kept = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    said = subprocess.run(
        [sys.executable, "-c", POLICY], capture_output=True, text=True, check=True, env={**kept, **users}
    )
    assert said.stdout.split() == [policy, "False"]  # before torch, which reads it once


@pytest.mark.parametrize("launcher", [["-m"], ["-m", "torch.distributed.run", "--nproc-per-node", "1", "-m"]])
def test_openmp_has_read_it(launcher: list[str]):
    kept = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    command = [sys.executable, *launcher, "diffmavil.flops", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**kept, "OMP_DISPLAY_ENV": "true"})
    if "OPENMP DISPLAY ENVIRONMENT BEGIN" not in done.stderr:
        pytest.skip("this torch comes with another OpenMP than libgomp")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr
