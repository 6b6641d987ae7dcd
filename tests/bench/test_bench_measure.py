"""Clocks and counts: what is called, in which order, and what is made of the readings. Nothing here is timed."""

from __future__ import annotations

import itertools
import statistics
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import philox_cpu
from benchmarks.bench import OPS
from benchmarks.cases import CASES, Case
from benchmarks.counts import Count, count, pixel_bytes
from benchmarks.measure import CudaClock, Limits, equal_copy, interleave, measure_limits
from maekernels import philox

LIMITS = Limits(copy_gbps=10.0, matmul_gflops=100.0, matmul_dtype="float32", philox_gblocks=2.0)


class ScriptedClock:
    """Notes who is called; reading number i lasts i milliseconds."""

    late = 0

    def __init__(self, log: list[str]) -> None:
        self.log, self.readings = log, itertools.count(1)

    def region(self, call) -> int:
        return 4

    def read(self, calls) -> float:
        for call in calls:
            call()
        self.log.append("|")
        return next(self.readings) * 1e-3

    def peak_mib(self, call, *, recorded: bool = False) -> float | None:
        return None


def test_providers_take_turns_over_their_sets_and_each_comes_after_every_other():
    log: list[str] = []
    candidates = {name: [lambda s=f"{name}{i}": log.append(s) for i in range(2)] for name in "abc"}
    timings = interleave(ScriptedClock(log), candidates, seconds=0, least=24, most=24)
    warm, readings = log[:6], "".join(log[6:]).strip("|").split("|")
    assert warm == ["a0", "a1", "b0", "b1", "c0", "c1"]
    names = [reading[0] for reading in readings]
    assert readings == [f"{name}0{name}1{name}0{name}1" for name in names]
    assert all(sorted(names[first : first + 3]) == ["a", "b", "c"] for first in range(0, 72, 3))
    assert {a + b for a, b in itertools.pairwise(names) if a != b} == {"ab", "ac", "ba", "bc", "ca", "cb"}
    for name, timing in timings.items():  # the n-th reading takes n
        assert timing.median_ms == pytest.approx(statistics.median(n + 1 for n, x in enumerate(names) if x == name))
        assert (timing.readings, timing.launches) == (24, 4)


def test_the_spread_is_the_20th_and_80th_percentile():
    timing = interleave(ScriptedClock([]), {"a": [lambda: None]}, seconds=0, least=11, most=11)["a"]
    assert (timing.low_ms, timing.median_ms, timing.high_ms) == pytest.approx((3, 6, 9))


def test_readings_that_the_host_was_late_for_are_told_of_whom_they_are():
    clock = ScriptedClock([])

    def slow() -> None:
        clock.late += 1

    calls = {"slow": [slow], "quick": [lambda: None]}
    timings = interleave(clock, calls, seconds=0, least=5, most=5)
    assert (timings["slow"].late, timings["quick"].late) == (4 * 5, 0), "region makes four calls of a reading"


@pytest.mark.parametrize(
    ("work", "seconds"),
    [
        pytest.param(Count(bytes=10**10), 1.0, id="bytes"),
        pytest.param(Count(bytes=10**10, flops=3 * 10**11), 3.0, id="flops"),
        pytest.param(Count(bytes=10**10, flops=10**11, philox_blocks=10**10), 5.0, id="philox"),
    ],
)
def test_the_limit_is_the_slowest_of_moving_computing_and_drawing(work: Count, seconds: float):
    assert LIMITS.seconds(work) == pytest.approx(seconds)


def test_without_a_philox_rate_bytes_and_flops_are_the_limit():
    limits = Limits(10.0, 100.0, "float32", None)
    assert limits.seconds(Count(bytes=10**10, philox_blocks=10**12)) == pytest.approx(1.0)


def test_limits_follow_from_the_bytes_and_flops_of_the_calls():
    """Every reading of the scripted clock is known, so the rates are exact."""
    torch.set_num_threads(1)
    limits = measure_limits(torch.device("cpu"), _Constant())
    assert limits.copy_gbps == pytest.approx(2 * 2**26 / 0.5 * 1e-9)
    assert limits.matmul_gflops == pytest.approx(2 * 1024**3 / 0.5 * 1e-9)
    compiled = philox_cpu.spin(1) is not None
    assert limits.philox_gblocks == (pytest.approx(philox_cpu.BLOCKS / 0.5 * 1e-9) if compiled else None)


def test_the_philox_rate_is_of_philox():
    """Block i of key (1, 2) and counter (i, 0, 0, 0): the xor of all words of BLOCKS of them."""
    spin = philox_cpu.spin(1)
    if spin is None:
        pytest.skip("no C++ compiler")
    seed, zero = torch.tensor(2 << 32 | 1), torch.tensor(0)
    words = philox.words(seed, zero, torch.arange(philox_cpu.BLOCKS), stream=0)
    every = torch.stack(words).numpy()
    assert spin() == np.bitwise_xor.reduce(every, axis=None)


class _Constant(ScriptedClock):
    def __init__(self) -> None:
        super().__init__([])

    def read(self, calls) -> float:
        return 0.5


@pytest.mark.parametrize(("moved", "copied"), [(1000, 500), (7, 3), (1, 1)])
def test_an_equal_copy_reads_and_writes_the_bytes_of_the_op_together(moved: int, copied: int):
    call = equal_copy(moved, torch.device("cpu"))
    first, second = call(), call()
    assert isinstance(first, torch.Tensor)
    assert isinstance(second, torch.Tensor)
    assert first.nbytes == copied
    assert first.data_ptr() != second.data_ptr()
    assert first.all()


@pytest.fixture
def hurry() -> list[bool]:
    """Whether the next spins end before the host has queued everything; none left: they do not."""
    return []


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch, hurry: list[bool]) -> list[str]:
    """A CUDA device that only writes down what it is told."""
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("event")

        def synchronize(self) -> None:
            log.append("wait")

        def query(self) -> bool:
            return hurry.pop(0) if hurry else False

        def elapsed_time(self, end) -> float:
            return 12.0

    class Buffer:
        def zero_(self) -> None:
            log.append("flush")

    peaks = itertools.cycle([9 * 2**20, 3 * 2**20])  # of a first call, and of a warm one
    for name, value in {
        "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=2**20),
        "Event": Event,
        "synchronize": lambda device: log.append("wait"),
        "_sleep": lambda cycles: log.append("spin" if cycles > 0 else "no spin"),
        "memory_allocated": lambda device: 2**20,
        "max_memory_allocated": lambda device: next(peaks),
        "reset_peak_memory_stats": lambda device: log.append("reset"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: Buffer())
    return log


def test_device_time_is_read_between_events_behind_a_flush_and_a_spin(fake_cuda: list[str]):
    clock = CudaClock(torch.device("cuda"))
    seconds = clock.read([lambda: fake_cuda.append("call")] * 3)
    measured = fake_cuda[fake_cuda.index("flush") :]
    assert measured == ["flush", "spin", "event", "call", "call", "call", "event", "wait"]
    assert fake_cuda[fake_cuda.index("flush") - 1] == "wait"
    assert seconds == pytest.approx(0.004)  # 12 ms for three calls


@pytest.mark.parametrize(
    ("too_short", "readings", "late"),
    [([], 1, 0), ([True, False], 2, 0), ([True, True], 2, 1)],
    ids=["in time", "in time at the second try", "late"],
)
def test_a_host_that_is_late_is_given_one_longer_spin(fake_cuda, hurry, too_short, readings, late):
    hurry += too_short
    clock = CudaClock(torch.device("cuda"))
    assert clock.read([lambda: None] * 3) == pytest.approx(0.004)
    assert fake_cuda.count("flush") == readings
    assert clock.late == late


def test_a_late_reading_that_only_sets_the_length_of_others_does_not_count(fake_cuda, hurry):
    hurry += [True, True]
    clock = CudaClock(torch.device("cuda"))
    clock.region(lambda: None)
    assert clock.late == 0


def test_what_lasts_under_100_us_is_launched_at_least_five_times_in_a_reading(fake_cuda, monkeypatch):
    clock = CudaClock(torch.device("cuda"))
    for seconds, least in ((99e-6, 5), (2e-6, 250)):
        monkeypatch.setattr(clock, "read", lambda calls, seconds=seconds: seconds)
        assert clock.region(lambda: None) >= least


def test_peak_memory_is_that_above_what_was_allocated(fake_cuda: list[str]):
    clock = CudaClock(torch.device("cuda"))
    assert clock.peak_mib(lambda: fake_cuda.append("call")) == pytest.approx(2.0)
    assert fake_cuda[-6:] == ["reset", "call", "wait", "reset", "call", "wait"]
    assert clock.peak_mib(lambda: None, recorded=True) == pytest.approx(8.0), "a replay allocates nothing"


def test_pixel_bytes_lie_between_the_pixels_and_the_whole_clip():
    case = CASES["base-16-frames"]
    whole = 16 * 224 * 224 * 3
    assert pixel_bytes(case, case.tokens) == whole
    assert case.kept * case.patch_dim < pixel_bytes(case, case.kept) < case.kept * case.patch_dim * 64 / 48


def test_pixel_bytes_are_those_of_the_sectors_that_random_patches_touch():
    case = CASES["base-16-frames"]
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(40):
        chosen = torch.rand(8, 14, 14, generator=generator).flatten().argsort() < case.kept
        columns = chosen.view(8, 14, 14).repeat_interleave(48, dim=2)  # one line of bytes for each row of patches
        found.append(int(columns.unflatten(2, (21, 32)).any(dim=3).sum()) * 32 * 32)  # 2 frames x 16 lines
    expected = sum(found) / len(found)
    assert pixel_bytes(case, case.kept) == pytest.approx(expected, rel=5e-3)


def test_counts_of_a_small_case_by_hand():
    case = Case("hand", "image", (32, 32), (16, 16), 8, 4, 0.75, cpu_batch=1, cuda_batch=1)  # 4 tokens, 1 kept
    bf16 = torch.bfloat16
    assert count("gather_tokens", case, 1, bf16, "fwd").bytes == 2 * 1 * 8 * 2 + 4
    assert count("gather_tokens", case, 1, bf16, "bwd").bytes == (1 + 4) * 8 * 2 + 4
    assert count("scatter_tokens", case, 1, bf16, "fwd").bytes == (1 + 4) * 4 * 2 + 4 + 4 * 2
    assert count("add_noise", case, 1, bf16, "fwd") == Count(2 * 3 * 768 * 2 + 4, 8 * 3 * 768, 3 * 768 // 4)
    assert count("info_nce", case, 10, bf16, "fwd").flops == 2 * 10 * 10 * 8 + 5 * 100 + 6 * 80
    assert count("random_mask", case, 2, bf16, "fwd") == Count(2 * 4 * 4, 0, 2)
    assert count("softmax", case, 1, bf16, "fwd") == Count(2 * 3 * 768 * 2, 4 * 3 * 768)
    assert count("rms_norm", case, 1, bf16, "fwd") == Count(2 * 8 * 2 + 8 * 2, 4 * 8)
    assert count("layer_norm", case, 1, bf16, "fwd") == Count(2 * 8 * 2 + 2 * 8 * 2, 7 * 8)
    assert count("cross_entropy", case, 1, bf16, "fwd") == Count(3 * (768 * 2 + 8 + 2), 3 * 3 * 768)


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_row_ops_move_the_bytes_of_ours_but_for_ids_and_weights(case: Case):
    norm, gather, softmax, noise = (
        count(op, case, 8, torch.bfloat16, "fwd").bytes for op in ("rms_norm", "gather_tokens", "softmax", "add_noise")
    )
    assert norm == pytest.approx(gather, rel=0.01)
    assert softmax == pytest.approx(noise, rel=0.001)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_work_grows_with_the_batch(op: str, case: Case):
    one, two = (count(op, case, batch, torch.bfloat16, "fwd") for batch in (1, 2))
    assert one.bytes < two.bytes <= 2 * one.bytes


def test_a_mode_that_an_op_lacks_is_refused():
    with pytest.raises(ValueError, match="mode='bwd': patchify has no backward"):
        count("patchify", CASES["tiny"], 1, torch.float32, "bwd")
