"""attention against float64, packed against padded, and who computes it."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from maekernels import Segments, attention
from maekernels.attention import (
    _aligned,
    _choose,
    _flash_problem,
    _problem,
    _runs,
    _segments,
    _xformers_packed,
    _xformers_problem,
)
from tests.ops.mae_oracle import assert_same

HEADS, DIM = 3, 8
LENGTHS = {
    "equal": ([5, 5, 5], [5, 5, 5]),
    "mixed": ([4, 4, 7, 1, 4], [4, 4, 7, 1, 4]),
    "cross": ([6, 6, 2, 9], [3, 3, 3, 1]),
    "one": ([11], [4]),
}


def make(queries: int, keys: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """q [queries, H, D], k and v [keys, H, D], with gradients."""
    generator = torch.Generator().manual_seed(queries + 100 * keys)
    q, k, v = (torch.randn(n, HEADS, DIM, generator=generator).to(dtype) for n in (queries, keys, keys))
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def exact(q: Tensor, k: Tensor, v: Tensor, queries: list[int], keys: list[int]) -> Tensor:
    """Sequence by sequence, head by head, in float64: [T, H, D]."""
    out = []
    parts = zip(q.double().split(queries), k.double().split(keys), v.double().split(keys), strict=True)
    for rows, columns, values in parts:
        weights = torch.softmax(torch.einsum("nhd,mhd->hnm", rows, columns) / DIM**0.5, dim=-1)
        out.append(torch.einsum("hnm,mhd->nhd", weights, values))
    return torch.cat(out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("backend", ["auto", "sdpa", "math"])
@pytest.mark.parametrize("case", list(LENGTHS))
def test_packed_equals_float64_with_gradients(case, backend, dtype):
    queries, keys = LENGTHS[case]
    inputs = make(sum(queries), sum(keys), dtype)
    out = attention(*inputs, Segments.of(queries), Segments.of(keys), backend=backend)
    expected = exact(*inputs, queries, keys)
    assert (out.dtype, out.shape) == (dtype, inputs[0].shape)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = torch.autograd.grad(out, inputs, weight)
    right = torch.autograd.grad(expected, inputs, weight.double())
    close = {torch.float32: 1e-5, torch.bfloat16: 0.04, torch.float64: 1e-12}[dtype]
    for ours, theirs in zip((out, *found), (expected, *right), strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=close, atol=close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["auto", "sdpa", "math"])
def test_packed_equals_padded(backend, dtype):
    """Sequences of one length, packed: what the same rectangle gives, to the last bit."""
    q, k, v = make(4 * 6, 4 * 5, dtype)
    rows, columns, values = (x.unflatten(0, (4, -1)) for x in (q, k, v))
    packed = attention(q, k, v, Segments.of([6] * 4), Segments.of([5] * 4), backend=backend)
    assert_same(packed.unflatten(0, (4, 6)), attention(rows, columns, values, backend=backend))


def test_a_sequence_does_not_see_its_neighbours():
    queries, keys = LENGTHS["cross"]
    q, k, v = (x.detach() for x in make(sum(queries), sum(keys)))
    bounds = Segments.of(queries), Segments.of(keys)
    before = attention(q, k, v, *bounds)
    v[3:6] += 1  # the second sequence's
    changed = (attention(q, k, v, *bounds) != before).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == list(range(6, 12))


def test_bounds_as_a_tensor_are_the_same():
    q, k, v = make(9, 9)
    ours = attention(q, k, v, torch.tensor([0, 4, 9]))
    assert_same(ours, attention(q, k, v, Segments.of([4, 5])))
    assert_same(ours, attention(q, k, v, torch.tensor([0, 4, 9]), torch.tensor([0, 4, 9], dtype=torch.int32)))


def test_strided_views_of_one_projection():
    qkv = torch.randn(2, 7, 3, HEADS, DIM)
    q, k, v = qkv.unbind(2)
    assert_same(attention(q, k, v), attention(q.contiguous(), k.contiguous(), v.contiguous()))


def test_no_tokens():
    empty = torch.zeros(0, HEADS, DIM)
    assert attention(empty, empty, empty, Segments.of([])).shape == (0, HEADS, DIM)


def test_runs_join_neighbours_of_one_size_alone():
    assert list(_runs([4, 4, 7, 4, 4], [1, 1, 1, 2, 3])) == [(2, 4, 1), (1, 7, 1), (1, 4, 2), (1, 4, 3)]


def test_half_precision_on_a_cpu_avoids_the_slow_backward_while_weights_are_small():
    half, full = torch.zeros(1, 64, 4, 8, dtype=torch.bfloat16), torch.zeros(1, 64, 4, 8)
    assert _choose("auto", half, 64, 64, False) == "math"
    assert _choose("auto", half, 2048, 2048, False) == "sdpa"
    assert _choose("auto", full, 64, 64, False) == "sdpa"


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("backend", ["flash", "xformers"])
def test_a_backend_that_cannot_is_an_error_and_no_other_steps_in(backend, packed):
    q, k, v = make(6, 6)
    inputs: Any = (q, k, v, Segments.of([2, 4])) if packed else (q[None], k[None], v[None])
    with pytest.raises(ValueError, match=rf"backend='{backend}': .* runs on CUDA, these tensors are on cpu"):
        attention(*inputs, backend=backend)


def test_xformers_gets_packed_sequences_with_their_mask(monkeypatch):
    """Its own mask and layout, with a stand-in for its kernel, which needs a GPU."""
    seen = {}

    class BlockDiagonalMask:
        @classmethod
        def from_seqlens(cls, queries, keys, device):
            seen["lengths"] = (queries, keys, device.type)
            return "mask"

    def kernel(q, k, v, attn_bias):
        seen["call"] = (q.shape, k.shape, attn_bias)
        return q

    monkeypatch.setitem(sys.modules, "xformers.ops", SimpleNamespace(memory_efficient_attention=kernel))
    monkeypatch.setitem(
        sys.modules, "xformers.ops.fmha.attn_bias", SimpleNamespace(BlockDiagonalMask=BlockDiagonalMask)
    )
    q, k, v = make(6, 5)
    out = _xformers_packed(q, k, v, Segments.of([2, 4]), Segments.of([1, 4]))
    assert out.shape == q.shape
    assert seen["lengths"] == ([2, 4], [1, 4], "cpu")
    assert seen["call"] == ((1, 6, HEADS, DIM), (1, 5, HEADS, DIM), "mask")


def test_a_missing_xformers_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers", None)
    said = _problem("xformers", "cuda", 0, torch.bfloat16, 8)
    assert said is not None
    assert "pip install 'diffmavil[xformers]'" in said


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")])
def test_what_xformers_can_is_found_alike_in_every_mode(monkeypatch, mode):
    """It is found once: a first call without gradients must not say for all later ones that there is none."""
    monkeypatch.setitem(sys.modules, "xformers.ops", SimpleNamespace())
    monkeypatch.setattr(sys.modules["maekernels.attention"], "_xformers_packed", lambda q, *rest: q * q)
    monkeypatch.setattr(torch, "ones", lambda *size, device, **how: torch.full(size, 1.0, **how))
    with mode():
        assert _xformers_problem("cuda", 0, torch.float32, 8) is None


@pytest.mark.parametrize(("capturing", "chosen"), [(False, "xformers"), (True, "sdpa")], ids=["eager", "graph"])
def test_auto_leaves_xformers_out_of_graphs(monkeypatch, capturing, chosen):
    """Its mask is copied from the host at every call."""
    monkeypatch.setattr(sys.modules["maekernels.attention"], "_problem", lambda name, *rest: name == "flash" or None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    q: Any = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32, shape=(6, HEADS, DIM))
    assert _choose("auto", q, 3, 3, True) == chosen


@pytest.mark.parametrize(
    ("capability", "dim", "problem"),
    [
        ((8, 0), 208, None),
        ((9, 0), 208, None),
        ((8, 9), 192, None),
        ((8, 9), 256, None),
        ((8, 9), 208, "flash has no gradient for D from 193 to 224 with compute capability 8.9"),
        ((7, 5), 64, "flash needs compute capability 8.0"),
        ((9, 0), 60, "flash needs D a multiple of 8 up to 256, not 60"),
    ],
)
def test_flash_is_not_taken_where_it_has_no_gradient(monkeypatch, capability, dim, problem):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    assert _flash_problem("cuda", 0, torch.bfloat16, dim) == problem


def test_flash_gets_what_it_can_read_and_no_copy_where_that_is_so():
    """Its kernels load 16 bytes at a time and do not look where these begin."""
    whole = torch.randn(6, HEADS, 3 * 8, dtype=torch.bfloat16)
    for part in (whole, whole[..., 8:16], whole[2:]):
        assert _aligned(part) is part
    for part in (whole[..., 1:9], whole.mT, whole[..., ::2], whole.flatten()[3 : 3 + 6 * HEADS * 8].view(6, HEADS, 8)):
        assert _aligned(part).is_contiguous()
        assert_same(_aligned(part), part)
    compiled = torch.compile(_aligned, fullgraph=True, backend="aot_eager")
    for part in (whole[..., 8:16], whole.mT):
        assert_same(compiled(part), part)


def test_bounds_of_another_device_are_made_anew():
    q, *_ = make(6, 6)
    bounds = _segments("cu_seqlens", Segments.of([2, 4], "meta"), q)
    assert bounds.cu_seqlens.tolist() == [0, 2, 6]
    strided = torch.tensor([0, 9, 2, 9, 6, 9], dtype=torch.int32)[::2]
    assert _segments("cu_seqlens", strided, q).cu_seqlens.is_contiguous()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(4, 3, 8)}, r"q=float32\[4, 3, 8\] on cpu: must be a float tensor \[B, N, H, D\]"),
        ({"k": torch.zeros(2, 5, 2, 8)}, r"k=float32\[2, 5, 2, 8\]"),
        ({"k": torch.zeros(2, 5, 3, 8, dtype=torch.bfloat16)}, r"k=bfloat16"),
        ({"k": torch.zeros(1, 5, 3, 8)}, r"k=float32\[1, 5, 3, 8\]"),
        ({"v": torch.zeros(2, 4, 3, 8)}, r"v=float32\[2, 4, 3, 8\]"),
        ({"backend": "cudnn"}, r"backend='cudnn': must be one of auto, sdpa, math, flash, xformers"),
        ({"cu_seqlens_k": torch.tensor([0, 5])}, r"cu_seqlens_k=.*None without cu_seqlens"),
        ({"packed": [2, 2]}, r"cu_seqlens=4 tokens: must be 10"),
        ({"cu_seqlens": torch.tensor([0.0, 10.0])}, r"cu_seqlens=float32\[2\]"),
        ({"cu_seqlens": torch.tensor([0, 6, 4, 10])}, r"cu_seqlens=\[0, 6, 4, 10\]: must be 0 first and then rising"),
        ({"packed": [4, 6], "packed_k": [10]}, r"cu_seqlens_k=1 sequences: must be 2"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_input(change, message):
    arguments: dict[str, Any] = {
        "q": torch.zeros(2, 5, 3, 8),
        "k": torch.zeros(2, 5, 3, 8),
        "v": torch.zeros(2, 5, 3, 8),
    }
    if {"packed", "cu_seqlens"} & set(change):
        arguments = {name: x.flatten(0, 1) for name, x in arguments.items()}
    bounds = {name.replace("packed", "cu_seqlens"): x for name, x in change.items() if name.startswith("packed")}
    others: dict[str, Any] = {name: x for name, x in change.items() if not name.startswith("packed")}
    others |= {name: Segments.of(x) for name, x in bounds.items()}
    with pytest.raises(ValueError, match=message):
        attention(**(arguments | others))


def test_keys_need_bounds_of_their_own_when_they_are_others():
    q, k, v = make(6, 5)
    with pytest.raises(ValueError, match="of 6 tokens without cu_seqlens_k"):
        attention(q, k, v, Segments.of([2, 4]))


def test_lengths_are_positive():
    with pytest.raises(ValueError, match=r"lengths=\[3, 0\]"):
        Segments.of([3, 0])


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_compiles_without_a_break(packed):
    q, k, v = leaves = [x.detach()[None if not packed else ...].requires_grad_() for x in make(10, 10)]
    inputs: Any = (q, k, v, Segments.of([4, 4, 2])) if packed else (q, k, v)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    assert_same(compiled(*inputs), attention(*inputs))
    pair = (torch.autograd.grad(f(*inputs).square().sum(), leaves) for f in (compiled, attention))
    for ours, theirs in zip(*pair, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_compiles_for_other_lengths_too():
    """Which makes the lengths symbols."""
    torch._dynamo.reset()
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    for lengths in ([3, 5, 2], [4, 5, 2], [6, 1, 3], [2, 2, 2]):
        q, k, v = (x[: sum(lengths)] for x in make(12, 12))
        bounds = Segments.of(lengths)
        assert_same(compiled(q, k, v, bounds), attention(q, k, v, bounds))
