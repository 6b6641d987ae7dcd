"""Philox4x32-10 against the published vectors, and its noise as noise."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from maekernels import philox
from tests.ops import mae_oracle

# Random123 1.14, tests/kat_vectors: philox4x32 10.
KNOWN = [
    pytest.param(0, (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8), id="zeros"),
    pytest.param(2**64 - 1, (2**32 - 1,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD), id="ones"),
    pytest.param(
        0x299F31D0_A4093822,
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        id="digits-of-pi",
    ),
]


def as_int64(seed: int) -> int:
    return seed - 2**64 if seed >= 2**63 else seed


@pytest.mark.parametrize(("seed", "counter", "words"), KNOWN)
def test_known_answers_torch(seed, counter, words):
    found = philox.philox4x32(torch.tensor(as_int64(seed)), *(torch.tensor([c]) for c in counter))
    assert tuple(int(w) for w in found) == words


@pytest.mark.parametrize(("seed", "counter", "words"), KNOWN)
def test_known_answers_python(seed, counter, words):
    assert philox._block_of_ints(seed, counter) == words
    assert mae_oracle.philox(seed, counter) == words


def test_uint32_is_the_documented_counter():
    samples = torch.tensor([0, 7, 2**32 + 5])
    found = philox.uint32(99 << 40 | 3, 10, samples=samples, stream=6)
    for sample, row in zip(samples.tolist(), found.tolist(), strict=True):
        blocks = [mae_oracle.philox(99 << 40 | 3, (block, 6, sample % 2**32, sample >> 32)) for block in range(3)]
        assert row == [word for block in blocks for word in block][:10]


def test_normals_are_box_muller_of_the_words():
    found = philox.normal(1234, 4001, samples=torch.tensor([2**32 + 5]))
    expected = torch.from_numpy(mae_oracle.noise(1234, 2**32 + 5, 4001))
    mae_oracle.assert_within(found[0], expected, ulps=32)  # the angle, up to 2 pi, is rounded before its cosine


def test_uniform_is_in_the_unit_interval_and_uniform():
    found = philox.uniform(5, 20_000, samples=torch.tensor([0, 1]), stream=3)
    assert 0 <= found.min() < 1e-3
    assert 1 - 1e-3 < found.max() < 1
    assert stats.kstest(found.flatten().numpy(), "uniform").pvalue > 1e-3


def test_largest_radius_is_finite():
    lowest, highest = torch.zeros(1, dtype=torch.int64), torch.full((1,), 2**32 - 1)
    far, near = philox._box_muller(lowest, lowest)[0], philox._box_muller(highest, lowest)[0]
    assert far.item() == pytest.approx(math.sqrt(-2 * math.log(2**-33)), rel=1e-6)
    assert near.item() == 0


@pytest.fixture(scope="module")
def normals() -> torch.Tensor:
    return philox.normal(2026, 100_000, samples=torch.arange(4)).double()


def test_moments(normals):
    n = normals.numel()
    assert abs(normals.mean().item()) < 4 / math.sqrt(n)
    assert abs(normals.var().item() - 1) < 4 * math.sqrt(2 / n)
    assert abs((normals**3).mean().item()) < 4 * math.sqrt(15 / n)
    assert abs((normals**4).mean().item() - 3) < 4 * math.sqrt(96 / n)


def test_kolmogorov_smirnov(normals):
    assert stats.kstest(normals.flatten().numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 768, 1536], ids=lambda lag: f"lag-{lag}")
def test_elements_are_independent(normals, lag):
    a, b = normals[:, :-lag].flatten(), normals[:, lag:].flatten()
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1].item()) < 4 / math.sqrt(a.numel())
    # Dependence in size alone would escape the first.
    assert abs(torch.corrcoef(torch.stack([a.abs(), b.abs()]))[0, 1].item()) < 4 / math.sqrt(a.numel())


def test_samples_are_independent(normals):
    off_diagonal = torch.corrcoef(normals) - torch.eye(4)
    assert off_diagonal.abs().max().item() < 5 / math.sqrt(normals.shape[1])


def test_seeds_and_streams_are_independent():
    kinds = [(0, 0), (1, 0), (0, 1), (1 << 32, 0), (philox.fold_in(0, 1), 0)]
    rows = [philox.normal(seed, 50_000, samples=torch.tensor([0]), stream=stream)[0] for seed, stream in kinds]
    off_diagonal = torch.corrcoef(torch.stack(rows).double()) - torch.eye(len(kinds))
    assert off_diagonal.abs().max().item() < 5 / math.sqrt(50_000)


def test_fold_in_is_a_chain_and_tells_data_apart():
    assert philox.fold_in(5) == 5
    assert philox.fold_in(5, 1, 2) == philox.fold_in(philox.fold_in(5, 1), 2)
    seeds = {philox.fold_in(seed, *data) for seed in (0, 1) for data in [(0,), (1,), (-1,), (2**40,), (0, 1), (1, 0)]}
    assert len(seeds) == 12
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_fold_in_does_not_change():
    """Runs are resumed across versions: masks and noise hang on this value."""
    words = mae_oracle.philox(1, (7, 2, 0, 0))
    assert philox.fold_in(1, 7) == (words[0] | words[1] << 32) % 2**63


@pytest.mark.parametrize(
    "seed",
    [-1, 2**63, 0.5, torch.tensor([1]), torch.tensor(1, dtype=torch.int32)],
    ids=["negative", "large", "float", "1-d", "int32"],
)
def test_bad_seed(seed):
    with pytest.raises(ValueError, match="seed="):
        philox.normal(seed, 4, samples=torch.tensor([0]))
