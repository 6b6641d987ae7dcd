"""The old name of `python -m diffmavil.doctor --data`, kept for version 0.2."""

import runpy
import sys

if __name__ == "__main__":
    print("python -m diffmavil.data.doctor is called python -m diffmavil.doctor --data now", file=sys.stderr)
    runpy.run_module("diffmavil.doctor", run_name="__main__", alter_sys=True)
