"""masked_mse against MAE's loss in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maekernels import masked_mse
from maekernels._pixels import NormPix, norm_mode
from maekernels.masked_mse import _masked_mse, _masked_mse_backward
from tests.ops.mae_oracle import MEAN, PIXELS, STD, Pixels, assert_same, assert_within, gather, normalised

VIDEO, SPECTROGRAM = PIXELS[0], PIXELS[7]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NORMS = pytest.mark.parametrize("norm", [False, True, "channel"], ids=["plain", "norm-pix", "norm-channel"])


def prediction(case: Pixels, dtype: torch.dtype = torch.float32) -> Tensor:
    shape = *case.ids().shape, case.patches().shape[2]
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)


def run(case: Pixels, pred: Tensor, norm: NormPix = True, x: Tensor | None = None, **options) -> Tensor:
    x, ids = case.make() if x is None else x, case.ids()
    return masked_mse(pred, x, ids, case.patch, *case.normal, norm, channels_first=case.channels_first, **options)


def oracle(case: Pixels, pred: Tensor, norm: NormPix = True) -> Tensor:
    target = gather(case.patches(), case.ids())
    return ((pred.double() - normalised(target, norm, case.channels)) ** 2).mean()


@NORMS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", PIXELS, ids=str)
def test_loss_and_gradient(case, dtype, norm):
    pred = prediction(case, dtype).requires_grad_()
    wide = pred.detach().double().requires_grad_()
    loss, expected = run(case, pred, norm), oracle(case, wide, norm)
    assert loss.dtype == torch.float32
    assert_within(loss, expected, ulps=16)
    (grad,), (expected_grad,) = torch.autograd.grad(3 * loss, pred), torch.autograd.grad(3 * expected, wide)
    assert grad.dtype == dtype
    # float16 has little range below.
    tiny = 2.0**-24 / torch.finfo(dtype).eps if dtype == torch.float16 else 0
    assert_within(grad, expected_grad, ulps=8 if dtype == torch.float32 else 2, scale=6 / pred.numel() + tiny)
    assert_within(run(case, pred, norm, backend="torch"), expected, ulps=16)


@NORMS
def test_gradcheck(norm):
    x, ids = torch.rand(2, 4, 6), torch.tensor([[1, 2], [3, 0]])
    pred = torch.randn(2, 2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda pred: masked_mse(pred, x, ids, (2, 3), (0.2,), (0.7,), norm), pred)


def test_backward_twice():
    pred = prediction(VIDEO).requires_grad_()
    loss = run(VIDEO, pred)
    first, second = (torch.autograd.grad(loss, pred, torch.tensor(w), retain_graph=True)[0] for w in (1.0, 2.0))
    assert_same(second, 2 * first)


def test_second_derivative_is_refused():
    pred = prediction(VIDEO).requires_grad_()
    (grad,) = torch.autograd.grad(run(VIDEO, pred), pred, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        grad.square().sum().backward()


def test_target_has_no_gradient():
    x = SPECTROGRAM.make().requires_grad_()
    for backend in (None, "torch"):
        loss = run(SPECTROGRAM, prediction(SPECTROGRAM).requires_grad_(), x=x, backend=backend)
        loss.backward()
        assert x.grad is None


@pytest.mark.parametrize("norm", [True, "channel"], ids=["norm-pix", "norm-channel"])
def test_constant_patches_are_finite(norm):
    """Silence: variance 0 is held up by the 1e-6, and the target is 0."""
    pred = prediction(SPECTROGRAM).requires_grad_()
    loss = run(SPECTROGRAM, pred, norm, x=torch.full((3, 24, 16), -4.0))
    (grad,) = torch.autograd.grad(loss, pred)
    torch.testing.assert_close(loss, pred.detach().square().mean())
    torch.testing.assert_close(grad, 2 * pred.detach() / pred.numel())


@NORMS
def test_mean_over_parts_is_the_mean(norm):
    pred = prediction(VIDEO)
    parts = [
        masked_mse(pred[b : b + 1], VIDEO.make()[b : b + 1], VIDEO.ids()[b : b + 1], VIDEO.patch, MEAN, STD, norm)
        for b in range(3)
    ]
    torch.testing.assert_close(run(VIDEO, pred, norm), torch.stack(parts).mean())


def test_many_chunks():
    x = torch.randint(0, 256, (40, 64, 64, 3), dtype=torch.uint8)
    ids, pred = torch.arange(64, dtype=torch.int32).expand(40, 64), torch.randn(40, 64, 192, requires_grad=True)
    loss, plain = (masked_mse(pred, x, ids, (8, 8), MEAN, STD, backend=b) for b in (None, "torch"))
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(torch.autograd.grad(loss, pred), torch.autograd.grad(plain, pred))


def test_deterministic():
    pred = prediction(VIDEO)
    assert_same(run(VIDEO, pred), run(VIDEO, pred))


def test_strided_prediction():
    pred = prediction(VIDEO).mT.contiguous().mT.requires_grad_()
    loss = run(VIDEO, pred)
    torch.testing.assert_close(loss, run(VIDEO, pred.contiguous()))
    (grad,) = torch.autograd.grad(loss, pred)
    assert_same(grad, torch.autograd.grad(run(VIDEO, p := pred.detach().contiguous().requires_grad_()), p)[0])


def test_no_elements_are_nan():
    pred = torch.zeros(3, 0, 144, requires_grad=True)
    loss = masked_mse(pred, VIDEO.make(), VIDEO.ids(0), VIDEO.patch, MEAN, STD)
    assert loss.isnan()
    assert torch.autograd.grad(loss, pred)[0].shape == (3, 0, 144)


def test_under_autocast_the_loss_is_float32():
    with torch.autocast("cpu", torch.bfloat16):
        loss = run(VIDEO, prediction(VIDEO, torch.bfloat16))
    assert_same(loss, run(VIDEO, prediction(VIDEO, torch.bfloat16)))


@NORMS
def test_opcheck(norm):
    pred = prediction(VIDEO).requires_grad_()
    args = (VIDEO.make(), VIDEO.ids(), list(VIDEO.patch), list(MEAN), list(STD), norm_mode(norm), False)
    torch.library.opcheck(_masked_mse, (pred, *args))
    strided = pred.detach().mT.contiguous().mT
    torch.library.opcheck(_masked_mse_backward, (torch.tensor(2.0), strided, *args))


def test_compile():
    def loss(pred, x, ids):
        return masked_mse(pred * 2, x, ids, VIDEO.patch, MEAN, STD)

    pred = prediction(VIDEO).requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    args = (pred, VIDEO.make(), VIDEO.ids())
    assert_same(*(torch.autograd.grad(f(*args), pred)[0] for f in (compiled, loss)))


def test_export():
    class Loss(torch.nn.Module):
        def forward(self, pred, x, ids):
            return masked_mse(pred, x, ids, VIDEO.patch, MEAN, STD)

    args = (VIDEO.make(), VIDEO.ids())
    exported = torch.export.export(Loss(), (prediction(VIDEO), *args)).module()
    assert_same(exported(prediction(VIDEO) + 1, *args), run(VIDEO, prediction(VIDEO) + 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pred": torch.zeros(3, 2, 143)}, r"pred=float32\[3, 2, 143\] on cpu: must be \[B, Q, P\]=\[3, 2, 144\]"),
        ({"pred": torch.zeros(3, 288)}, r"pred=float32\[3, 288\] on cpu: must be a float tensor \[B, Q, P\]"),
        ({"pred": torch.zeros(3, 2, 144, dtype=torch.int32)}, r"pred=int32"),
        ({"ids": torch.zeros(3, 2)}, r"ids=float32"),
        ({"ids": torch.full((3, 2), 8)}, r"ids=values in \[8, 8\]"),
        ({"patch": (2, 5, 6)}, r"patch=\(2, 5, 6\)"),
        ({"std": (0.5,)}, r"std=\(0.5,\)"),
        ({"norm_pix": "patch"}, r"norm_pix='patch': must be False, True or 'channel'"),
        ({"backend": "triton"}, r"backend='triton'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input(change, message):
    args = {"x": VIDEO.make(), "ids": VIDEO.ids(2), "patch": VIDEO.patch, "mean": MEAN, "std": STD}
    with pytest.raises(ValueError, match=message):
        masked_mse(**args | {"pred": torch.zeros(3, 2, 144)} | change)


def test_norm_pix_of_one_element_has_no_variance():
    with pytest.raises(ValueError, match=r"patch=\(1, 1\): must be of at least 2 elements with norm_pix"):
        masked_mse(torch.zeros(1, 1, 1), torch.zeros(1, 4, 4), torch.zeros(1, 1, dtype=torch.int32), (1, 1), [0], [1])


def test_channels_of_one_element_have_no_variance():
    video, ids = torch.zeros(1, 2, 2, 3), torch.zeros(1, 1, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"patch=\(1, 1\): must be of at least 2 elements with norm_pix"):
        masked_mse(torch.zeros(1, 1, 3), video, ids, (1, 1), MEAN, STD, "channel")
