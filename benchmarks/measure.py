"""Clocks, and the limits that a measured time is compared with."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from benchmarks.counts import Count

Call = Callable[[], object]


class Clock(Protocol):
    """Times warmed-up calls. `region`: the number of consecutive calls in a reading, enough to exceed its error."""

    late: int
    """Readings in which the device may have waited for the host to launch: longer than the device time."""

    def region(self, call: Call) -> int: ...

    def read(self, calls: Sequence[Call]) -> float:
        """Seconds per call of `calls`, which run one after another."""
        ...

    def peak_mib(self, call: Call, *, recorded: bool = False) -> float | None:
        """Device memory that the call takes beyond what was already allocated, in MiB; None if unknown."""
        ...


class CpuClock:
    """Wall-clock time with a fixed number of threads."""

    shortest = 2e-3
    """Minimum seconds of one reading."""
    late = 0

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)

    def region(self, call: Call) -> int:
        call()
        return math.ceil(self.shortest / max(self.read([call]), 1e-7))

    def read(self, calls: Sequence[Call]) -> float:
        start = time.perf_counter()
        for call in calls:
            call()
        return (time.perf_counter() - start) / len(calls)

    def peak_mib(self, call: Call, *, recorded: bool = False) -> float | None:
        return None


class CudaClock:
    """Device time between two events, on a device that is kept busy until the host has queued every launch.

    Launches are back to back: at least `shortest` seconds of them between two events, so five or more if one takes less
    than 100 us, divided by their number. Before each reading, the L2 cache is overwritten and a spin kernel is launched
    that outlasts the host's queueing, so that Python's launch overhead is not measured. Whether it did is checked; a
    reading for which the host was late is repeated once, and counted in `late` if it still was.

    Cache contents: the flush makes the first launch cold. Later ones find their inputs in the cache if all input sets
    of a reading fit in it; the caller knows (`Bench.cache`). Outputs go where the allocator puts them, usually where
    those of the last launch were, so writes smaller than the cache may hit in it.
    """

    shortest = 5e-4
    """Minimum seconds of one reading: a thousand times the half microsecond that CUDA's manual states as the resolution
    of events. Not longer: the launch queue is finite, and a host that waits for a free slot cannot stay ahead."""
    spin_rate = 2e9
    """Clock cycles per second, at least those of the device: if it is higher, the spin is longer, which is harmless."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.late = device, 0
        self.l2_bytes: int = torch.cuda.get_device_properties(device).L2_cache_size
        self.flush = torch.empty(max(4 * self.l2_bytes, 2**26), dtype=torch.uint8, device=device)

    def region(self, call: Call) -> int:
        call()
        late = self.late
        calls = math.ceil(self.shortest / max(self.read([call] * 4), 1e-7))
        self.late = late  # counts only readings that go into a row
        return calls

    def read(self, calls: Sequence[Call]) -> float:
        torch.cuda.synchronize(self.device)
        started = time.perf_counter()
        calls[0]()  # returns when all of it is queued
        queueing = (time.perf_counter() - started) * len(calls)
        seconds, in_time = self._between_events(calls, 1.5 * queueing + 1e-4)
        if not in_time:
            seconds, in_time = self._between_events(calls, 4 * queueing + 1e-3)
            self.late += not in_time
        return seconds / len(calls)

    def _between_events(self, calls: Sequence[Call], spin: float) -> tuple[float, bool]:
        """Seconds of all calls, and whether all were queued before the first one started."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        self.flush.zero_()
        torch.cuda._sleep(int(spin * self.spin_rate))
        start.record()
        for call in calls:
            call()
        end.record()
        in_time = not start.query()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3, in_time

    def peak_mib(self, call: Call, *, recorded: bool = False) -> float | None:
        """Memory of a warm call beyond what was already allocated. If the first call records a graph, the memory of
        that call: a replay allocates nothing.
        """
        peaks = []
        for _ in range(2):
            torch.cuda.reset_peak_memory_stats(self.device)
            call()
            torch.cuda.synchronize(self.device)
            peaks.append(torch.cuda.max_memory_allocated(self.device) - torch.cuda.memory_allocated(self.device))
        return (max(peaks) if recorded else peaks[1]) / 2**20


class StepClock(CudaClock):
    """Wall-clock time of consecutive calls, with the device idle before the first and after the last.

    This is what a training loop sees, host time included. For whole steps, which may be launch-bound, and which are too
    long for a warm cache or the final synchronisation to matter.
    """

    shortest = 0.2

    def read(self, calls: Sequence[Call]) -> float:
        torch.cuda.synchronize(self.device)
        start = time.perf_counter()
        for call in calls:
            call()
        torch.cuda.synchronize(self.device)
        return (time.perf_counter() - start) / len(calls)


def make_clock(device: torch.device, threads: int) -> Clock:
    return CudaClock(device) if device.type == "cuda" else CpuClock(threads)


@dataclass(frozen=True)
class Timing:
    """Milliseconds: the median of `readings` of `launches` calls each, and the 20th and 80th percentile."""

    median_ms: float
    low_ms: float
    high_ms: float
    readings: int
    launches: int
    late: int = 0
    """Readings for which the host was late (`Clock.late`), i.e. too long."""


def interleave(
    clock: Clock, candidates: Mapping[str, Sequence[Call]], seconds: float, least: int = 5, most: int = 200
) -> dict[str, Timing]:
    """Time the candidates in turns, so that changes of clock rate or load affect all of them equally.

    The order is shuffled every round: whatever ran just before affects caches and the heap.

    Args:
        candidates: name -> the same call on each set of inputs; a reading cycles through the sets.
        seconds: approximate duration, all candidates together; at least `least` rounds, at most `most`.
    """
    rounds: dict[str, list[Call]] = {}
    for name, sets in candidates.items():
        for call in sets:
            call()
        turns = math.ceil(clock.region(sets[0]) / len(sets))
        rounds[name] = [*sets] * turns
    found: dict[str, list[float]] = {name: [] for name in candidates}
    late = dict.fromkeys(candidates, 0)
    order, orders, started = list(candidates), random.Random(0), time.perf_counter()
    for done in range(most):
        if done >= least and time.perf_counter() - started > seconds:
            break
        orders.shuffle(order)
        for name in order:
            before = clock.late
            found[name].append(clock.read(rounds[name]))
            late[name] += clock.late - before
    return {name: _summary(times, len(rounds[name]), late[name]) for name, times in found.items()}


def _summary(times: list[float], launches: int, late: int) -> Timing:
    fifths = statistics.quantiles(times, n=5, method="inclusive")
    return Timing(statistics.median(times) * 1e3, fifths[0] * 1e3, fifths[-1] * 1e3, len(times), launches, late)


def equal_copy(bytes: int, device: torch.device) -> Call:
    """A copy that moves as many bytes as an op, read and written together, into new memory like the op's output."""
    # Written once: memory that was never written maps to one and the same page of zeros.
    source = torch.ones(max(1, bytes // 2), dtype=torch.uint8, device=device)
    return source.clone


@dataclass(frozen=True)
class Limits:
    """Rates measured on this device in this run, in units of 1e9 per second."""

    copy_gbps: float
    """Bytes read plus bytes written by a copy of a tensor far larger than the cache."""
    matmul_gflops: float
    """2 n^3 divided by the time of a square matrix product of random numbers, in `matmul_dtype`."""
    matmul_dtype: str
    philox_gblocks: float | None
    """Philox4x32-10 blocks generated in registers; None on a CPU without a C++ compiler."""

    def seconds(self, work: Count) -> float:
        """An approximate lower bound on the time of this work: the slowest of memory traffic, FLOPs and Philox."""
        times = [work.bytes / self.copy_gbps, work.flops / self.matmul_gflops]
        if self.philox_gblocks is not None:
            times.append(work.philox_blocks / self.philox_gblocks)
        return max(times) * 1e-9


def measure_limits(device: torch.device, clock: Clock) -> Limits:
    """Rates from the fastest fifth of the readings: a limit reduced by other load would not be a limit."""
    on_gpu = device.type == "cuda"
    size, n, dtype = (2**30, 8192, torch.bfloat16) if on_gpu else (2**26, 1024, torch.float32)
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    c = torch.empty_like(a)
    calls: dict[str, Sequence[Call]] = {
        "copy": [lambda: target.copy_(source)],
        "matmul": [lambda: torch.matmul(a, b, out=c)],
    }
    blocks = 0
    if on_gpu:
        from benchmarks import philox_rate  # needs triton

        words = torch.empty(2**20, dtype=torch.int32, device=device)
        blocks = words.numel() * philox_rate.BLOCKS_PER_LANE
        calls["philox"] = [lambda: philox_rate.launch(words)]
    else:
        from benchmarks import philox_cpu

        threads = torch.get_num_threads()
        if (spin := philox_cpu.spin(threads)) is not None:
            blocks = threads * philox_cpu.BLOCKS
            calls["philox"] = [spin]
    times = interleave(clock, calls, seconds=1.0, least=10)
    return Limits(
        copy_gbps=2 * size / times["copy"].low_ms * 1e-6,
        matmul_gflops=2 * n**3 / times["matmul"].low_ms * 1e-6,
        matmul_dtype=str(dtype).removeprefix("torch."),
        philox_gblocks=blocks / times["philox"].low_ms * 1e-6 if blocks else None,
    )
