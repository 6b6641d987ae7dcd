import subprocess
import sys

import pytest

# Page faults of allocating, touching and freeing 64 MiB ten times, once the heap has settled.
FAULTS = """
import resource, sys
import torch
from diffmavil.training.heap import keep_freed_memory
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
