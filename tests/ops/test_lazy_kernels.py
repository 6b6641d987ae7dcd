"""Triton kernels that become kernels at their first launch, whichever thread that is in."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from maekernels._triton import LazyKernel

triton = pytest.importorskip("triton")


def test_another_thread_waits_until_all_parts_of_a_kernel_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autograd has a thread for each GPU: two may meet a kernel for the first time at once."""
    namespace: dict[str, Any] = {}
    exec("def kernel(): part()\ndef part(): pass", namespace)
    kernel, part = (LazyKernel(namespace[name], ()) for name in ("kernel", "part"))
    namespace.update(kernel=kernel, part=part)
    half_way, go_on, seen = threading.Event(), threading.Event(), []

    def slow(**how: Any) -> Any:
        def of(fn: Any) -> Any:
            if fn is part.fn:
                half_way.set()
                assert go_on.wait(30)
            return SimpleNamespace(run=print)

        return of

    def launch() -> None:
        kernel.load()
        seen.append(isinstance(namespace["part"], LazyKernel))

    monkeypatch.setattr(triton, "jit", slow)
    first, second = threading.Thread(target=launch), threading.Thread(target=launch)
    first.start()
    assert half_way.wait(30)
    second.start()
    second.join(0.3)
    go_on.set()
    first.join(30)
    second.join(30)
    assert seen == [False, False]
