"""The CUDA kernels of csrc on a GPU, against the reference on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maekernels import MaskIds, random_mask
from maekernels._native_cuda import native_ops
from maekernels.random_mask import NATIVE_LENGTH
from tests.ops.mae_oracle import assert_same

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(native_ops() is None, reason="maekernels._C_cuda is not built, or MAEKERNELS_NATIVE=0"),
]

SEED, OFFSET = 2**40 + 5, 2**32 - 2
SIZES = [
    (length, keep)
    for length in (1, 3, 196, 512, 1024, 1025, 1568, 2049, 4096, 4097, NATIVE_LENGTH)
    for keep in sorted({0, 1, length // 5, length - 1, length})
]


def on_gpu(batch: int, length: int, keep: int, groups: Tensor | None = None, backend: str | None = "cuda") -> MaskIds:
    groups = groups.cuda() if groups is not None else None
    return random_mask(batch, length, keep, seed=SEED, offset=OFFSET, groups=groups, device="cuda", backend=backend)


def assert_equal(found: MaskIds, expected: MaskIds) -> None:
    for ours, right in zip(found, expected, strict=True):
        assert_same(ours.cpu(), right.cpu())


@pytest.mark.parametrize("kind", ["plain", "tube", "time-frequency"])
@pytest.mark.parametrize(("length", "keep"), SIZES, ids=str)
def test_random_mask(length, keep, kind):
    n = torch.arange(length)
    groups = {"plain": None, "tube": n % -(-length // 8), "time-frequency": torch.stack([n // 8, n % min(8, length)])}
    expected = random_mask(16, length, keep, seed=SEED, offset=OFFSET, groups=groups[kind])
    assert_equal(on_gpu(16, length, keep, groups[kind]), expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_types_and_strides_of_groups(dtype):
    groups = torch.stack([torch.arange(512) // 8, torch.arange(512) % 8], dim=1).to(dtype).t()
    expected = random_mask(4, 512, 103, seed=SEED, offset=OFFSET, groups=groups)
    assert_equal(on_gpu(4, 512, 103, groups), expected)


def test_large_batch_agrees_with_triton():
    assert_equal(on_gpu(4096, 1568, 314), on_gpu(4096, 1568, 314, backend="triton"))


def test_repeats_itself():
    first = on_gpu(512, 8192, 1638)
    for _ in range(20):
        assert_equal(on_gpu(512, 8192, 1638), first)


def test_longer_samples_take_triton():
    length = NATIVE_LENGTH + 1
    assert_equal(on_gpu(2, length, 99, backend=None), random_mask(2, length, 99, seed=SEED, offset=OFFSET))
    with pytest.raises(ValueError, match=r"backend='cuda'"):
        on_gpu(2, length, 99)


def test_empty_batch():
    assert [ids.shape for ids in on_gpu(0, 8, 2)] == [(0, 2), (0, 6)]
    assert [ids.shape for ids in on_gpu(2, 0, 0)] == [(2, 0), (2, 0)]


def test_runs_on_the_current_stream():
    """Behind a long kernel of the same stream that makes the seed."""
    seed, busy = torch.zeros((), dtype=torch.int64, device="cuda"), torch.randn(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(20):
            busy = busy @ busy
        seed.fill_(77)
        found = random_mask(8, 784, 157, seed=seed, backend="cuda")
    torch.cuda.synchronize()
    assert_equal(found, random_mask(8, 784, 157, seed=77))


def test_cuda_graph_with_a_changing_seed():
    seed = torch.zeros((), dtype=torch.int64, device="cuda")
    groups = (torch.arange(784) % 196).cuda()
    random_mask(8, 784, 157, seed=seed, groups=groups, backend="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = random_mask(8, 784, 157, seed=seed, groups=groups, backend="cuda")
    for value in (3, 4):
        seed.fill_(value)
        graph.replay()
        assert_equal(found, random_mask(8, 784, 157, seed=value, groups=groups.cpu()))
