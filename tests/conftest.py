"""Two directories need processes of their own, because they replace Triton's driver or interpreter."""

from __future__ import annotations

import os

_OWN_PROCESS = {
    "interpreter": ("TRITON_INTERPRET", "kernels in the interpreter, under the sanitizer"),
    "aot": ("MAEKERNELS_AOT", "kernels compiled ahead of time, within their budgets"),
}
_LEFT_OUT = {name: use for name, use in _OWN_PROCESS.items() if os.environ.get(use[0]) != "1"}

collect_ignore = list(_LEFT_OUT)
pytest_plugins = ["tests.runs"]


def pytest_report_header() -> list[str]:
    return [f"not collected: {what}: {switch}=1 pytest tests/{name}" for name, (switch, what) in _LEFT_OUT.items()]
