"""One op on one case: check every provider, time the correct ones, and yield a row of results for each."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.cases import Case
from benchmarks.check import Expected, Provider, complaint, expected, leaves_of, outputs_of
from benchmarks.counts import Count, count
from benchmarks.measure import Call, Clock, Limits, Timing, equal_copy, interleave
from benchmarks.problems import PROBLEMS, Output, Problem
from benchmarks.row_ops import ROW_OPS, Package
from maekernels import _native

OPS: dict[str, type[Problem]] = {**PROBLEMS, **ROW_OPS}
MODES = ("fwd", "bwd", "both")
KEYS = (
    "op",
    "case",
    "mode",
    "provider",
    "median_ms",
    "gbps",
    "gflops",
    "share_of_limit",
    "share_of_copy",
    "share_of_equal_copy",
    "speedup",
    "peak_mib",
    "device",
    "commit",
    "versions",
    "date",
)
"""The keys of every row, in this order; those needed to interpret them follow."""

Row = dict[str, Any]
MOST_SETS = 16
COPY = "copy"
"""Timed in turns with the providers: a copy of as many bytes as the op moves."""


def providers(op: str, compiled: bool, native: bool, packages: Sequence[Package]) -> dict[str, Provider]:
    """The providers by name; eager code, the baseline of every speed-up, comes first. native: there is a C++ kernel."""
    found: dict[str, Provider] = {"eager": _eager}
    if compiled:
        found["compiled"] = _compiled(_eager if op in ROW_OPS else _reference)
    if op in ROW_OPS:
        return found | {package.provider: package.kernels[op] for package in packages if op in package.kernels}
    found["reference"] = _reference
    if native:
        found["native"] = lambda problem: problem.ours("native")
    return found | {"ours": lambda problem: problem.ours()}


def _eager(problem: Problem) -> Output:
    return problem.eager()


def _reference(problem: Problem) -> Output:
    return problem.ours("torch")


def _compiled(run: Provider) -> Provider:
    import torch._functorch.config

    torch.compiler.reset()  # one shape at a time: dynamo gives up after a few recompilations of a function
    torch._functorch.config.donated_buffer = False  # otherwise a backward could not be timed twice
    return torch.compile(run, fullgraph=True, dynamic=False)


@dataclass
class Bench:
    """The settings and state shared by all rows of a run.

    Args:
        identity: the keys of `benchmarks.identity.identity`.
        load: runnable processes of the machine before the run; more than its cores disturb times on a CPU.
        seconds: measuring time for one op, case and mode, all providers together.
        report: called with a message for each provider that is wrong.
        packages: third-party packages, whose row ops are compared with torch's.
    """

    device: torch.device
    dtype: torch.dtype
    clock: Clock
    limits: Limits
    identity: Row
    load: float
    seconds: float
    compiled: bool
    report: Callable[[str], None]
    packages: Sequence[Package] = ()
    wrong: int = 0

    def rows(self, op: str, case: Case, modes: Sequence[str], batch: int | None = None) -> Iterator[Row]:
        kind = OPS[op]
        modes = [mode for mode in modes if mode == "fwd" or kind.leaves]
        if not modes:
            return
        batch = batch or kind.default_batch(case, self.device.type)
        make = functools.partial(kind, case, batch, self.device, self.dtype)
        problem = make(seed=0)
        right = expected(problem)
        good = self.only_right(op, case, problem, right)
        counts = {mode: count(op, case, batch, self.dtype, mode) for mode in modes}
        sets = [problem, *(make(seed=seed) for seed in range(1, self.sets_needed(counts[modes[0]])))]
        for mode in modes:
            work, state = counts[mode], self.cache(counts[mode], len(sets))
            calls = {name: [bind(run, one, mode, right) for one in sets] for name, run in good.items()}
            copies = {COPY: [equal_copy(work.bytes, self.device) for _ in sets]}
            timings = interleave(self.clock, copies | calls, self.seconds)
            for name in calls:
                row = self.row(op, problem, mode, name, timings, work, self.clock.peak_mib(calls[name][0]))
                yield row | {"cache": state}

    def only_right(self, op: str, case: Case, problem: Problem, right: Expected) -> dict[str, Provider]:
        good = {}
        native = self.device.type == "cpu" and problem.native and not _native.ABSENT
        for name, run in providers(op, self.compiled, native, self.packages).items():
            try:
                said = complaint(problem, run, right, draws_its_own=name == "eager")
            except Exception as error:  # a provider that fails counts as wrong; the others are still measured
                said = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            if said is None:
                good[name] = run
            else:
                self.wrong += 1
                self.report(f"{op}, {case.name}: {name} is WRONG and not timed: {said}")
        return good

    def sets_needed(self, work: Count) -> int:
        """The number of input sets that together exceed a GPU's L2 cache twice over, as far as a few sets can."""
        if self.device.type != "cuda":
            return 1
        return min(MOST_SETS, math.ceil(2 * self.l2_bytes / max(work.bytes, 1)))

    def cache(self, work: Count, sets: int) -> str:
        """ "cold": a set is evicted from a GPU's L2 cache before it is used again. "warm": it may still be in a cache.

        Always warm on a CPU, where the same inputs are used every time.
        """
        outgrown = self.device.type == "cuda" and sets * work.bytes >= 2 * self.l2_bytes
        return "cold" if outgrown else "warm"

    @property
    def l2_bytes(self) -> int:
        return torch.cuda.get_device_properties(self.device).L2_cache_size

    def row(
        self,
        op: str,
        problem: Problem,
        mode: str,
        provider: str,
        timings: dict[str, Timing],
        work: Count,
        peak_mib: float | None,
    ) -> Row:
        timing, base, copy = timings[provider], timings.get("eager"), timings[COPY]
        seconds = timing.median_ms * 1e-3
        gbps = work.bytes / seconds * 1e-9
        found = {
            "op": op,
            "case": problem.case.name,
            "mode": mode,
            "provider": provider,
            "median_ms": timing.median_ms,
            "gbps": gbps,
            "gflops": work.flops / seconds * 1e-9,
            "share_of_limit": self.limits.seconds(work) / seconds,
            "share_of_copy": gbps / self.limits.copy_gbps,
            "share_of_equal_copy": copy.median_ms / timing.median_ms,
            "speedup": base.median_ms / timing.median_ms if base else None,
            "peak_mib": peak_mib,
            **self.identity,
        }
        assert tuple(found)[: len(KEYS)] == KEYS
        titles = {package.provider: package.title for package in self.packages}
        return found | {
            "package": titles.get(provider),
            "low_ms": timing.low_ms,
            "high_ms": timing.high_ms,
            "readings": timing.readings,
            "launches": timing.launches,
            "late": timing.late + copy.late > 0,
            "batch": problem.batch,
            "dtype": str(self.dtype).removeprefix("torch."),
            "bytes": work.bytes,
            "flops": work.flops,
            "philox_blocks": work.philox_blocks,
            "copy_gbps": self.limits.copy_gbps,
            "equal_copy_ms": copy.median_ms,
            "matmul_gflops": self.limits.matmul_gflops,
            "philox_gblocks": self.limits.philox_gblocks,
            "load": self.load,
        }


def bind(provider: Provider, problem: Problem, mode: str, right: Expected) -> Call:
    """The call that is timed: fwd without gradients, bwd alone on a retained graph, or both one after the other."""
    if mode == "fwd":
        return torch.no_grad()(functools.partial(provider, problem))
    leaves, grad_output = leaves_of(problem), right.grad_output
    assert grad_output is not None
    out = outputs_of(provider(problem))[0]
    grad_output = grad_output.to(out.dtype)
    if mode == "bwd":
        return lambda: torch.autograd.grad(out, leaves, grad_output, retain_graph=True)
    return lambda: torch.autograd.grad(outputs_of(provider(problem))[0], leaves, grad_output)
