"""DiffMAViL: pretraining of audio-video masked autoencoders."""

import os
from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("diffmavil")
except PackageNotFoundError:  # run from source, not installed
    __version__ = "0.1.0"

# The threads of an operator wait for each other at its end. By default they spin for some milliseconds, and beside
# another busy process they spin on the core that the last of them needs: benchmarks/neighbour.py. OpenMP reads this
# when torch loads it, so it is set before, for every command and its processes; a choice of the user's stays.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
    os.environ["OMP_WAIT_POLICY"] = "passive"
