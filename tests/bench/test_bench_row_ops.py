"""Row ops of other packages: found, asked, checked and measured where they are, and named with the reason where not.

The packages run on a GPU alone; doubles stand in for their modules here, with the names and arguments of liger-kernel
0.8.5 and quack-kernels 0.6.5.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import kernels
from benchmarks.bench import COPY, OPS, Bench
from benchmarks.cases import Case
from benchmarks.check import TOLERANCE, complaint, expected
from benchmarks.counts import Count
from benchmarks.measure import Limits, Timing
from benchmarks.row_ops import ROW_OPS, find_packages

CPU = torch.device("cpu")
VIDEO = Case("video", "video", (4, 32, 48), (2, 16, 16), 24, 16, 0.75, cpu_batch=3, cuda_batch=3)
SPECTROGRAM = Case("spectrogram", "spectrogram", (64, 32), (16, 16), 24, 16, 0.75, cpu_batch=3, cuda_batch=3)
QUICK = ("--device", "cpu", "--case", "tiny", "--batch", "1", "--seconds", "0")


class Liger(ModuleType):
    """`liger_kernel.transformers.functional`."""

    def liger_softmax(self, x: Tensor) -> Tensor:
        return F.softmax(x, dim=-1)

    def liger_rms_norm(self, X: Tensor, W: Tensor, eps: float, offset=0.0, casting_mode="llama", in_place=True):
        return F.rms_norm(X, W.shape, W, eps)

    def liger_layer_norm(self, X: Tensor, W: Tensor, B: Tensor, eps: float) -> Tensor:
        return F.layer_norm(X, W.shape, W, B, eps)


class Quack(ModuleType):
    def softmax(self, x: Tensor) -> Tensor:
        return F.softmax(x, dim=-1)

    def rmsnorm(self, x: Tensor, weight: Tensor | None = None, bias=None, residual=None, *, eps: float = 1e-6):
        return F.rms_norm(x, x.shape[-1:], weight, eps)

    def cross_entropy(self, x: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
        return F.cross_entropy(x, target, reduction=reduction).float()


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> tuple[Liger, Quack]:
    """Both packages, as they would be installed."""
    liger, quack = Liger("liger_kernel.transformers.functional"), Quack("quack")
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for module in (liger, quack):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    versions = {"liger-kernel": "0.8.5", "quack-kernels": "0.6.5"}
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    return liger, quack


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither package."""
    for name in ("liger_kernel", "quack"):
        monkeypatch.setitem(sys.modules, name, None)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_they_are_measured_beside_torch_under_their_names_and_versions(others, tmp_path: Path, capsys):
    results = tmp_path / "results.jsonl"
    asked = [word for op in ROW_OPS for word in ("--op", op)]
    assert kernels.main([*QUICK, *asked, "--json", str(results)]) == 0
    liger, quack = "liger-kernel 0.8.5", "quack-kernels 0.6.5"
    found = [(row["op"], row["provider"], row["package"]) for row in rows_of(results)]
    assert found == [
        *(("softmax", *who) for who in (("eager", None), ("liger", liger), ("quack", quack))),
        *(("rms_norm", *who) for who in (("eager", None), ("liger", liger), ("quack", quack))),
        *(("layer_norm", *who) for who in (("eager", None), ("liger", liger))),
        *(("cross_entropy", *who) for who in (("eager", None), ("quack", quack))),
    ]
    assert {row["mode"] for row in rows_of(results)} == {"fwd"}
    said = capsys.readouterr().out
    assert f"row ops of other packages: {liger}, {quack}" in said
    assert said.count(liger) == 1 + 3
    assert "not measured" not in said


def test_absent_packages_are_named_and_no_error(alone, tmp_path: Path, capsys):
    results = tmp_path / "results.jsonl"
    assert kernels.main([*QUICK, "--op", "layer_norm", "--json", str(results)]) == 0
    assert [row["provider"] for row in rows_of(results)] == ["eager"]
    said = capsys.readouterr().out
    for name in ("liger-kernel", "quack-kernels"):
        (line,) = (line for line in said.splitlines() if line.startswith(name))
        assert line.startswith(f"{name}: not measured: ModuleNotFoundError")


def test_nobody_asks_for_them_where_only_our_ops_are_measured(alone, capsys):
    assert kernels.main([*QUICK, "--op", "random_mask"]) == 0
    assert "not measured" not in capsys.readouterr().out


def test_a_kernel_that_does_not_run_here_is_named_and_the_others_are_kept(others, monkeypatch):
    def fails(x: Tensor) -> Tensor:
        raise RuntimeError("0 active drivers\n(there should be one)")

    monkeypatch.setattr(others[0], "liger_softmax", fails)
    liger, quack = find_packages(CPU, torch.float32)
    said = "liger-kernel 0.8.5: softmax not measured: RuntimeError: 0 active drivers (there should be one)"
    assert liger.missing == (said,)
    assert sorted(liger.kernels) == ["layer_norm", "rms_norm"]
    assert (quack.missing, sorted(quack.kernels)) == ((), ["cross_entropy", "rms_norm", "softmax"])


def test_a_wrong_kernel_is_named_and_not_timed(others, monkeypatch, tmp_path: Path, capsys):
    monkeypatch.setattr(others[1], "softmax", lambda x: F.softmax(x, dim=-1) * 1.0001)
    results = tmp_path / "results.jsonl"
    assert kernels.main([*QUICK, "--op", "softmax", "--json", str(results)]) == 1
    assert [row["provider"] for row in rows_of(results)] == ["eager", "liger"]
    assert "quack is WRONG and not timed: output 0 has a relative error of 1.0e-04" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", [VIDEO, SPECTROGRAM], ids=lambda case: case.name)
@pytest.mark.parametrize("op", ROW_OPS)
def test_what_is_allowed_follows_from_the_float64_run(op: str, case, dtype: torch.dtype):
    """A rounding to the dtype of the right answer passes, ten times the spacing of its numbers does not."""
    problem = ROW_OPS[op](case, 3, CPU, dtype)
    right = expected(problem)
    eps = torch.finfo(dtype).eps
    assert eps <= right.allowed <= TOLERANCE[dtype]
    assert right.allowed < 10 * eps
    assert complaint(problem, lambda p: p.eager(), right) is None
    assert complaint(problem, lambda p: right.outputs[0].to(dtype), right) is None
    said = complaint(problem, lambda p: right.outputs[0] * (1 + 10 * eps), right)
    assert said is not None
    assert "relative error" in said


def bench_on(device: str, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(Bench, "l2_bytes", 50 * 2**20)
    limits = Limits(copy_gbps=100.0, matmul_gflops=100.0, matmul_dtype="float32", philox_gblocks=None)
    return Bench(torch.device(device), torch.float32, None, limits, {}, 0.0, 0.0, False, print)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("device", "megabytes", "sets", "state"),
    [
        pytest.param("cuda", 500, 1, "cold", id="larger than the cache twice"),
        pytest.param("cuda", 60, 2, "cold", id="two sets"),
        pytest.param("cuda", 1, 16, "warm", id="too small for any number of sets"),
        pytest.param("cpu", 500, 1, "warm", id="on a CPU"),
    ],
)
def test_sets_outgrow_the_cache_or_the_state_says_that_they_do_not(device, megabytes, sets, state, monkeypatch):
    bench, work = bench_on(device, monkeypatch), Count(megabytes * 2**20)
    assert bench.sets_needed(work) == sets
    assert bench.cache(work, sets) == state


def test_shares_of_the_copies_follow_from_the_times(monkeypatch):
    """10 MB in 0.2 ms are 50 GB/s: half of the large copy's 100. A copy of 10 MB took 0.15 ms: three quarters."""
    bench = bench_on("cpu", monkeypatch)
    bench.identity = dict.fromkeys(("device", "commit", "versions", "date"), "")
    timing, copy = Timing(0.2, 0.1, 0.3, 7, 5), Timing(0.15, 0.1, 0.3, 7, 5)
    problem = OPS["softmax"](VIDEO, 1, CPU, torch.float32)
    row = bench.row("softmax", problem, "fwd", "eager", {COPY: copy, "eager": timing}, Count(10**7), None)
    assert row["share_of_copy"] == pytest.approx(0.5)
    assert row["share_of_equal_copy"] == pytest.approx(0.75)
    assert (row["launches"], row["speedup"], row["package"]) == (5, 1, None)
