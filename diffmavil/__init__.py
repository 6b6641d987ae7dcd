"""DiffMAViL: pretraining audio-video masked autoencoders, and using pretrained ones.

model = diffmavil.load("runs/mine")            # diffmavil.evaluation.embed.load
features = model.embed("clip.mp4").fused       # diffmavil.evaluation.embed.Embedder
table = diffmavil.read_features("features/")   # diffmavil.evaluation.feature_files.read_features
"""

import os
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("diffmavil")
except PackageNotFoundError:  # run from source, not installed
    __version__ = "0.2.0"

# The threads of an operator wait for each other at its end. By default they spin for some milliseconds, and next to
# another busy process they spin on the core that the last of them needs: benchmarks/neighbour.py. OpenMP reads this
# when torch loads it, so it is set before that, for every command and its processes; the user's own choice is kept.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
    os.environ["OMP_WAIT_POLICY"] = "passive"

_API = {"load": "diffmavil.evaluation.embed", "read_features": "diffmavil.evaluation.feature_files"}


def __getattr__(name: str) -> Any:
    """Import the Python API on first use: `import diffmavil` alone needs no package and takes no time."""
    if name in _API:
        return getattr(import_module(_API[name]), name)
    raise AttributeError(f"module 'diffmavil' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_API]
