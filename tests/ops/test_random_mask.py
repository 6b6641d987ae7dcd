"""Random masks: exact counts, ascending ids, purity, structure."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from maekernels import MaskIds, random_mask
from maekernels.random_mask import _random_mask
from tests.ops import mae_oracle
from tests.ops.mae_oracle import assert_same

SIZES = [(4, 196, 49), (3, 37, 9), (2, 16, 0), (2, 16, 16), (2, 1, 1), (0, 8, 2), (2, 0, 0)]


def size_id(value: int) -> str:
    return str(value)


@pytest.mark.parametrize(("batch", "length", "keep"), SIZES, ids=size_id)
def test_splits_the_tokens(batch, length, keep):
    ids = random_mask(batch, length, keep, seed=3)
    assert ids.ids_keep.dtype == ids.ids_mask.dtype == torch.int32
    assert ids.ids_keep.shape == (batch, keep)
    assert ids.ids_mask.shape == (batch, length - keep)
    for part in ids:
        assert (part.diff(dim=1) > 0).all()
    both = torch.cat(ids, dim=1).sort(dim=1).values
    assert_same(both, torch.arange(length, dtype=torch.int32).expand(batch, length))


def test_keeps_the_smallest_keys():
    seed, sample, length, keep = 77, 5, 30, 11
    words = [w for block in range(8) for w in mae_oracle.philox(seed, (block, 1, sample, 0))][:length]
    expected = sorted(sorted(range(length), key=lambda n: (words[n], n))[:keep])
    assert random_mask(1, length, keep, seed=seed, offset=sample).ids_keep[0].tolist() == expected


def test_groups_keep_the_smallest_group_keys():
    seed, length, keep = 77, 24, 10
    labels = [[n // 6 for n in range(length)], [n % 6 for n in range(length)]]

    def word(stream: int, element: int) -> int:
        return mae_oracle.philox(seed, (element // 4, stream, 0, 0))[element % 4]

    keys = [(max(word(16 + g, labels[g][n]) for g in range(2)), word(1, n), n) for n in range(length)]
    expected = sorted(n for _, _, n in sorted(keys)[:keep])
    found = random_mask(1, length, keep, seed=seed, groups=torch.tensor(labels))
    assert found.ids_keep[0].tolist() == expected


@pytest.mark.parametrize("grouped", [False, True], ids=["plain", "grouped"])
def test_splitting_the_batch_changes_nothing(grouped):
    groups = torch.arange(40) % 8 if grouped else None
    whole = random_mask(9, 40, 10, seed=1, offset=2**33, groups=groups)
    parts = [random_mask(n, 40, 10, seed=1, offset=2**33 + o, groups=groups) for o, n in ((0, 2), (2, 3), (5, 4))]
    for i, ids in enumerate(whole):
        assert_same(ids, torch.cat([part[i] for part in parts]))


def test_tensor_seed_is_the_same_seed():
    for a, b in zip(random_mask(3, 50, 7, seed=9), random_mask(3, 50, 7, seed=torch.tensor(9)), strict=True):
        assert_same(a, b)


def test_seeds_and_samples_differ():
    a, b = random_mask(50, 64, 16, seed=0).ids_keep, random_mask(50, 64, 16, seed=1).ids_keep
    rows = {tuple(row) for row in torch.cat([a, b]).tolist()}
    assert len(rows) == 100


def test_every_token_is_as_likely():
    keep = random_mask(4000, 49, 12, seed=11).ids_keep
    counts = torch.bincount(keep.flatten(), minlength=49).numpy()
    # Counts of a fixed-size draw vary less than multinomial ones by (1 - 12/49).
    assert stats.chi2.sf((((counts - counts.mean()) ** 2 / counts.mean()).sum()) / (1 - 12 / 49), 48) > 1e-3


def test_tube_mask_repeats_over_time():
    frames, positions, kept = 4, 36, 9
    groups = torch.arange(frames * positions) % positions
    ids = random_mask(5, frames * positions, frames * kept, seed=4, groups=groups).ids_keep
    per_frame = ids.view(5, frames, kept) - torch.arange(frames)[:, None] * positions
    assert_same(per_frame, per_frame[:, :1].expand_as(per_frame).contiguous())


def test_time_frequency_mask_is_a_rectangle_of_kept_columns_and_rows():
    time, freq = torch.arange(64 * 8) // 8, torch.arange(64 * 8) % 8
    ids = random_mask(6, 512, 100, seed=4, groups=torch.stack([time, freq])).ids_keep.long()
    for row in ids:
        columns, rows = set(time[row].tolist()), set(freq[row].tolist())
        # All of the rectangle but for at most its last column or row, which is split to make the count exact.
        assert len(columns) * len(rows) - len(row) < max(len(columns), len(rows))


def test_groups_of_one_token_are_random():
    ids = random_mask(2000, 20, 5, seed=8, groups=torch.arange(20)).ids_keep
    counts = torch.bincount(ids.flatten(), minlength=20).float()
    assert (counts / 2000 - 0.25).abs().max() < 0.05


def test_split_group_is_split_at_random():
    """Twenty tokens of one group, five kept: the group's order must not favour small indices."""
    ids = random_mask(2000, 20, 5, seed=8, groups=torch.zeros(20, dtype=torch.int32)).ids_keep
    counts = torch.bincount(ids.flatten(), minlength=20).float()
    assert (counts / 2000 - 0.25).abs().max() < 0.05


def test_group_types_agree():
    groups = torch.arange(30) // 5
    for a, b in zip(*(random_mask(3, 30, 8, seed=1, groups=g) for g in (groups, groups.int()[None])), strict=True):
        assert_same(a, b)


def test_torch_backend_is_the_same():
    groups = torch.arange(30) // 5
    for g in (None, groups):
        ours, plain = (random_mask(3, 30, 8, seed=1, groups=g, backend=b) for b in (None, "torch"))
        assert isinstance(ours, MaskIds)
        for a, b in zip(ours, plain, strict=True):
            assert_same(a, b)


@pytest.mark.parametrize("groups", [None, torch.arange(12)[None] // 4], ids=["plain", "grouped"])
def test_opcheck(groups):
    torch.library.opcheck(_random_mask, (2, 12, 5, torch.tensor(3), 1, groups))


def test_compile_and_export():
    def masks(seed: torch.Tensor) -> torch.Tensor:
        return random_mask(4, 60, 15, seed=seed, offset=7).ids_keep

    expected = masks(torch.tensor(5))
    compiled = torch.compile(masks, fullgraph=True, backend="aot_eager")
    assert_same(compiled(torch.tensor(5)), expected)

    class Masks(torch.nn.Module):
        def forward(self, seed):
            return masks(seed)

    exported = torch.export.export(Masks(), (torch.tensor(0),))
    assert_same(exported.module()(torch.tensor(5)), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": -1}, r"batch=-1"),
        ({"length": -1}, r"length=-1"),
        ({"length": 40_000}, r"length=40000"),
        ({"num_keep": 11}, r"num_keep=11: must be in \[0, length=10\]"),
        ({"offset": -2}, r"offset=-2"),
        ({"seed": -3}, r"seed=-3"),
        ({"groups": torch.zeros(9, dtype=torch.int32)}, r"groups=int32\[9\]"),
        ({"groups": torch.zeros(10)}, r"groups=float32\[10\]"),
        ({"groups": torch.full((10,), 10)}, r"groups=labels in \[10, 10\]: must be in \[0, 10\)"),
        ({"backend": "cuda"}, r"backend='cuda'"),
        ({"backend": "triton"}, r"backend='triton'"),
        ({"seed": torch.tensor(1), "device": "meta"}, r"seed=int64\[\] on cpu"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input(change, message):
    args = {"batch": 2, "length": 10, "num_keep": 3, "seed": 0} | change
    with pytest.raises(ValueError, match=message):
        random_mask(args.pop("batch"), args.pop("length"), args.pop("num_keep"), **args)
