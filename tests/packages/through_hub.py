"""A plugin of pytest: `import maekernels` in tests gives what Hugging Face's `kernels` loads from $MAEKERNELS_HUB."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

loaded = importlib.import_module("kernels").get_local_kernel(Path(os.environ["MAEKERNELS_HUB"]))
for file in Path(loaded.__file__).parent.glob("*.py"):
    own = file.stem == "__init__"
    name = "maekernels" if own else f"maekernels.{file.stem}"
    sys.modules[name] = loaded if own else importlib.import_module(f"{loaded.__name__}.{file.stem}")


def pytest_report_header() -> str:
    return f"maekernels is {loaded.__name__} of {loaded.__file__}"
