"""patchify against cutting all patches in float64 and gathering."""

from __future__ import annotations

import pytest
import torch

from maekernels import patchify
from maekernels.patchify import _patchify, _patchify_backward
from tests.ops.mae_oracle import MEAN, PIXELS, STD, Pixels, assert_same, assert_within, gather

VIDEO, FLOAT_VIDEO, SPECTROGRAM = PIXELS[0], PIXELS[2], PIXELS[7]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def run(case: Pixels, x: torch.Tensor, ids: torch.Tensor, dtype: torch.dtype = torch.float32, **options):
    return patchify(x, ids, case.patch, *case.normal, dtype, channels_first=case.channels_first, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", PIXELS, ids=str)
def test_forward(case, dtype):
    x, ids = case.make(), case.ids()
    out = run(case, x, ids, dtype)
    assert out.dtype == dtype
    assert out.is_contiguous()
    assert_within(out, gather(case.patches(), ids), ulps=4, scale=6)
    assert_same(run(case, x, ids, dtype, backend="torch"), out)


@pytest.mark.parametrize("x_dtype", [torch.uint8, *DTYPES], ids=str)
def test_pixel_types(x_dtype):
    x = VIDEO.make(x_dtype)
    assert_within(run(VIDEO, x, VIDEO.ids()), gather(VIDEO.patches(x), VIDEO.ids()), ulps=4, scale=6)


@pytest.mark.parametrize("case", PIXELS, ids=str)
def test_gradient(case):
    x = case.make(torch.float64).requires_grad_()
    weight = torch.randn_like(gather(case.patches(x), case.ids()))
    (expected,) = torch.autograd.grad((gather(case.patches(x), case.ids()) * weight).sum(), x)
    (found,) = torch.autograd.grad((run(case, x, case.ids(), torch.float64) * weight).sum(), x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_in_low_precision(dtype):
    x = FLOAT_VIDEO.make(dtype).requires_grad_()
    grad = torch.randn(*FLOAT_VIDEO.ids().shape, 96).to(dtype)
    run(FLOAT_VIDEO, x, FLOAT_VIDEO.ids(), dtype).backward(grad)
    wide = x.detach().double().requires_grad_()
    gather(FLOAT_VIDEO.patches(wide), FLOAT_VIDEO.ids()).backward(grad.double())
    assert x.grad is not None
    assert wide.grad is not None
    assert_within(x.grad, wide.grad, ulps=2)


def test_gradcheck():
    x = torch.rand(1, 2, 4, 4, 2, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[2, 0]])
    assert torch.autograd.gradcheck(
        lambda x: patchify(x, ids, (2, 2, 2), (0.1, 0.2), (0.5, 0.7), torch.float64), x, fast_mode=True
    )


def test_ids_may_be_int64_and_of_any_order():
    ids = VIDEO.ids()
    assert_same(run(VIDEO, VIDEO.make(), ids.long()), run(VIDEO, VIDEO.make(), ids))
    assert_same(run(VIDEO, VIDEO.make(), ids.flip(1)), run(VIDEO, VIDEO.make(), ids).flip(1))


def test_ids_may_be_strided():
    ids = VIDEO.ids()
    assert_same(run(VIDEO, VIDEO.make(), ids.mT.contiguous().mT), run(VIDEO, VIDEO.make(), ids))


@pytest.mark.parametrize("keep", [0, 1], ids=["no-token", "one-token"])
def test_few_tokens(keep):
    assert run(VIDEO, VIDEO.make(), VIDEO.ids(keep)).shape == (3, keep, 144)


def test_empty_batch():
    assert run(VIDEO, VIDEO.make()[:0], VIDEO.ids()[:0]).shape == (0, VIDEO.ids().shape[1], 144)


def test_many_chunks_are_one_batch():
    """The CPU path works through the batch in pieces."""
    x = torch.randint(0, 256, (40, 64, 64, 3), dtype=torch.uint8)
    ids = torch.arange(64, dtype=torch.int32).expand(40, 64)
    whole = patchify(x, ids, (8, 8), MEAN, STD)
    assert_same(whole, torch.cat([patchify(x[b : b + 1], ids[b : b + 1], (8, 8), MEAN, STD) for b in range(40)]))


def test_deterministic_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        out = run(VIDEO, VIDEO.make(), VIDEO.ids())
    assert_same(out, run(VIDEO, VIDEO.make(), VIDEO.ids()))


@pytest.mark.parametrize("case", [VIDEO, FLOAT_VIDEO, SPECTROGRAM], ids=str)
def test_opcheck(case):
    x = case.make()
    x = x.requires_grad_() if x.is_floating_point() else x
    args = (list(case.patch), *(list(v) for v in case.normal))
    torch.library.opcheck(_patchify, (x, case.ids(), *args, torch.float32, False))
    if x.is_floating_point():
        grad = run(case, x, case.ids()).detach()
        torch.library.opcheck(_patchify_backward, (grad, x.detach(), case.ids(), args[0], args[2], False))


def test_compile():
    def loss(x, ids):
        return run(FLOAT_VIDEO, x, ids).square().sum()

    x, ids = FLOAT_VIDEO.make().requires_grad_(), FLOAT_VIDEO.ids()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for find in (lambda f: f(x, ids).detach(), lambda f: torch.autograd.grad(f(x, ids), x)[0]):
        assert_same(find(compiled), find(loss))


def test_export():
    class Patches(torch.nn.Module):
        def forward(self, x, ids):
            return run(VIDEO, x, ids)

    exported = torch.export.export(Patches(), (VIDEO.make(), VIDEO.ids()))
    other = VIDEO.make().flip(0)
    assert_same(exported.module()(other, VIDEO.ids()), run(VIDEO, other, VIDEO.ids()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 4, 8, 12, dtype=torch.uint8)}, r"x=uint8\[3, 4, 8, 12\] on cpu: must be .*B, T, H, W, C"),
        ({"x": torch.zeros(3, 4, 8, 12, 3, dtype=torch.int32)}, r"x=int32"),
        ({"x": torch.zeros(3, 4, 8, 12, 5)}, r"x=float32\[3, 4, 8, 12, 5\].*1 to 4 channels"),
        ({"patch": (2, 5, 6)}, r"patch=\(2, 5, 6\): must be divisors of the sizes of x=uint8\[3, 4, 8, 12, 3\]"),
        ({"patch": (2,)}, r"patch=\(2,\): must be 2 or 3"),
        ({"patch": (2, 0, 6)}, r"patch=\(2, 0, 6\)"),
        ({"mean": (0.5,)}, r"mean=\(0.5,\): must be one value for each of the 3 channels"),
        ({"std": (0.5, 0.5, 0.0)}, r"std=\(0.5, 0.5, 0.0\): must be positive"),
        ({"ids": torch.zeros(2, 3, dtype=torch.int32)}, r"ids=int32\[2, 3\] on cpu: must be .*B=3"),
        ({"ids": torch.zeros(3, 3)}, r"ids=float32"),
        ({"ids": torch.full((3, 1), 8)}, r"ids=values in \[8, 8\]: must be in \[0, 8\)"),
        ({"ids": torch.full((3, 1), -1)}, r"ids=values in \[-1, -1\]"),
        ({"ids": torch.zeros(3, 1, dtype=torch.int32, device="meta")}, r"ids=int32\[3, 1\] on meta: must be .* on cpu"),
        ({"dtype": torch.int32}, r"dtype=torch.int32: must be a float type"),
        ({"backend": "triton"}, r"backend='triton'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input(change, message):
    args = {"x": VIDEO.make(), "ids": VIDEO.ids(2), "patch": VIDEO.patch, "mean": MEAN, "std": STD} | change
    with pytest.raises(ValueError, match=message):
        patchify(**args)
