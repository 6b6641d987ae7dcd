"""The algorithm of csrc/cuda/random_mask.h, its threads run one after the other on the CPU, against the reference.

Every result must be the same bit for bit, whatever the order in which the threads run between two barriers.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from maekernels import philox
from maekernels.random_mask import NATIVE_LENGTH, _reference
from tests.ops.mae_oracle import assert_same

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("g++") or shutil.which("clang++")
OFFSET = 2**32 - 1  # the high half of the sample's number changes from the first sample to the second

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")

Run = Callable[..., tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    target = tmp_path_factory.mktemp("host") / "random_mask.so"
    # Undefined behaviour, an index outside its array among it, ends the process with a message.
    flags = ["-std=c++20", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    flags += ["-fsanitize=undefined", "-fno-sanitize-recover=all"]
    source = ROOT / "tests" / "csrc" / "random_mask_host.cpp"
    subprocess.run([str(COMPILER), *flags, f"-I{ROOT / 'csrc' / 'cuda'}", str(source), "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


@pytest.fixture(scope="module")
def run(library) -> Run:
    def call(batch, length, keep, seed, offset, groups=None, order=0) -> tuple[Tensor, Tensor]:
        # A row more before and after: nothing may be written there.
        out = [torch.full((batch + 2, columns), -7, dtype=torch.int32) for columns in (keep, length - keep)]
        library.random_mask_host(
            ctypes.c_int64(batch),
            ctypes.c_uint32(length),
            ctypes.c_uint32(keep),
            ctypes.c_int64(seed),
            ctypes.c_int64(offset),
            ctypes.c_void_p(None if groups is None else groups.data_ptr()),
            ctypes.c_int(groups is not None and groups.dtype == torch.int64),
            ctypes.c_uint32(0 if groups is None else len(groups)),
            *(ctypes.c_void_p(ids[1:].data_ptr()) for ids in out),
            ctypes.c_int(order),
        )
        for ids in out:
            assert (ids[[0, -1]] == -7).all()
        return out[0][1:-1].contiguous(), out[1][1:-1].contiguous()

    return call


def labels(kind: str, length: int) -> Tensor | None:
    n = torch.arange(length)
    return {
        "plain": None,
        "tube": (n % -(-length // 8))[None],
        "time-frequency": torch.stack([n // 8, n % min(8, length)]),
        "one group": torch.zeros(1, length, dtype=torch.int64),
        "own groups": (length - 1 - n)[None],
        "int32": (n // 3)[None].int(),
        "three sets": torch.stack([n // 16, n % min(16, length), n // 5]).int(),
    }[kind]


KINDS = ["plain", "tube", "time-frequency", "one group", "own groups", "int32", "three sets"]
# On both sides of each shape of block, and of the four tokens of a Philox block.
LENGTHS = [1, 2, 3, 4, 5, 7, 37, 196, 512, 784, 1023, 1024, 1025, 1568, 2047, 2048, 2049, 4095, 4096, 4097, 8191, 8192]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", LENGTHS, ids=str)
def test_equals_the_reference(run, length, kind):
    groups, seed = labels(kind, length), 2**62 + 2**33 + length
    for keep in sorted({0, 1, length // 5, length // 2, length - 1, length}):
        expected = _reference(2, length, keep, torch.tensor(seed), OFFSET, groups)
        for found, right in zip(run(2, length, keep, seed, OFFSET, groups), expected, strict=True):
            assert_same(found, right)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [37, 1568, 3000, 8192], ids=str)
def test_the_order_of_threads_does_not_matter(run, length, kind):
    groups, keep = labels(kind, length), length // 5
    expected = run(1, length, keep, 5, 0, groups)
    for order in range(1, 6):
        for found, right in zip(run(1, length, keep, 5, 0, groups, order), expected, strict=True):
            assert_same(found, right)


def test_every_count_of_kept_tokens(run):
    """So that the pivot falls on every token once."""
    groups = labels("time-frequency", 64)
    for keep in range(65):
        for g in (None, groups):
            expected = _reference(1, 64, keep, torch.tensor(9), 0, g)
            for found, right in zip(run(1, 64, keep, 9, 0, g), expected, strict=True):
                assert_same(found, right)


def test_tokens_of_one_key_are_kept_by_index(run):
    """Two of 8192 tokens have the same 32 bits in about one sample of a hundred: keep the first of such two."""
    length, samples = 8192, torch.arange(256)
    words = philox.uint32(3, length, samples=samples, stream=philox.MASK)
    ordered = words.sort(dim=1).values
    twins = (ordered.diff(dim=1) == 0).nonzero().tolist()
    assert twins
    for sample, rank in twins:
        keep = rank + 1
        first = (words[sample] == ordered[sample, rank]).nonzero()[0].item()
        found = run(1, length, keep, 3, sample)
        assert first in found[0]
        for ours, right in zip(found, _reference(1, length, keep, torch.tensor(3), sample, None), strict=True):
            assert_same(ours, right)


def test_a_wrong_label_reads_nothing_outside(run):
    """The contract is broken, so any mask will do, but it has to be one."""
    groups = torch.tensor([[0, -1, 2**31, 10, 5, 2**40, 1, 2]])
    keep, mask = run(1, 8, 3, 1, 0, groups)
    assert sorted([*keep[0].tolist(), *mask[0].tolist()]) == list(range(8))


def test_python_knows_the_longest_sample(library):
    assert library.max_length() == NATIVE_LENGTH
