"""The attention of patched models on a CPU in half precision: numbers, gradients, what it keeps, when it is chosen."""

import pytest
import torch
import torch.nn.functional as F

from maekernels.integrations._recomputed import recomputed_attention, wins


def inputs(queries=33, keys=20, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, queries, 8), (2, 3, keys, 8), (2, 3, keys, 8))
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_equals_float64_with_gradients(dtype):
    qkv = inputs(dtype=dtype)
    wide = [x.detach().double().requires_grad_() for x in qkv]
    out, expected = recomputed_attention(*qkv), F.scaled_dot_product_attention(wide[0], wide[1], wide[2])
    weight = torch.ones_like(out) + out.detach()
    close = 1e-10 if dtype == torch.float64 else 3e-2
    torch.testing.assert_close(out.double(), expected, rtol=close, atol=close)
    ours, theirs = torch.autograd.grad(out, qkv, weight), torch.autograd.grad(expected, wide, weight.double())
    for found, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found.double(), right, rtol=close, atol=close)


def test_second_derivative():
    qkv = [x.detach()[:, :1, :3].requires_grad_() for x in inputs(dtype=torch.float64)]
    assert torch.autograd.gradgradcheck(recomputed_attention, qkv)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # of torch's own derivative of softmax
def test_under_torch_func():
    qkv = [x.detach() for x in inputs()]
    expected = recomputed_attention(*qkv)
    torch.testing.assert_close(torch.func.vmap(recomputed_attention)(*qkv), expected, rtol=2e-2, atol=2e-2)
    tangent = torch.func.jvp(recomputed_attention, tuple(qkv), tuple(qkv))[1]
    assert tangent.isfinite().all()
    assert tangent.any()


def test_the_weights_are_not_kept():
    kept = []
    qkv = inputs()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.data_ptr()) or x, lambda x: x):
        recomputed_attention(*qkv)
    assert kept == [x.data_ptr() for x in qkv]


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((4, 16, 197, 32), torch.bfloat16, True),
        ((4, 12, 50, 64), torch.float16, True),
        ((4, 2, 17, 8), torch.bfloat16, False),
        ((4, 6, 1568, 64), torch.bfloat16, False),
        ((4, 16, 197, 32), torch.float32, False),
    ],
    ids=["decoder of ViTMAE", "its encoder", "few tokens", "decoder of VideoMAE", "float32"],
)
def test_chosen_by_type_and_shape(shape, dtype, expected):
    x = torch.empty(shape, dtype=dtype)
    assert wins(x, x) is expected


def test_compiles_without_a_break():
    qkv = inputs()
    compiled = torch.compile(recomputed_attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*qkv), recomputed_attention(*qkv), rtol=2e-2, atol=2e-2)
