"""patchify, diffuse_patches and masked_mse: kernels against references, under the sanitizer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maekernels._pixels import CHANNEL, PATCH, PLAIN
from maekernels.diffuse_patches import (
    _diffuse_patches,
    _diffuse_patches_backward,
    _launch_diffuse,
    _launch_diffuse_backward,
)
from maekernels.masked_mse import _launch_masked_mse, _launch_masked_mse_backward, _masked_mse, _masked_mse_backward
from maekernels.patchify import _launch_patchify, _launch_patchify_backward, _patchify, _patchify_backward
from tests.ops.mae_oracle import PIXELS, Pixels, assert_same, assert_within

VIDEO = PIXELS[0]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CASES = pytest.mark.parametrize("case", PIXELS, ids=str)
NORMS = pytest.mark.parametrize("norm", [PLAIN, PATCH, CHANNEL], ids=["plain", "norm-pix", "norm-channel"])


def layout(case: Pixels) -> tuple[list[int], list[float], list[float]]:
    mean, std = case.normal
    return list(case.patch), list(mean), list(std)


def levels(case: Pixels) -> Tensor:
    return torch.tensor([0.6, 0.0, 1.0])[: case.shape[0]]


def random(case: Pixels, dtype: torch.dtype = torch.float32) -> Tensor:
    shape = *case.ids().shape, case.patches().shape[2]
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@CASES
def test_patchify(case, dtype):
    args = (case.make(), case.ids(), *layout(case), dtype, case.channels_first)
    # A multiplication and an addition, in the same order: the same bits.
    assert_same(_launch_patchify(*args), _patchify(*args))


@CASES
def test_patches_of_ids_that_are_none_are_nan_and_not_read(case):
    """The sanitizer knows where the pixels end. Losses of such patches are NaN, which a training stops at."""
    ids, x, patch = case.ids(), case.make(), layout(case)
    bad = ids.clone()
    bad[0, 0], bad[-1, -1] = -1, 2**20
    wrong = bad != ids
    args = (*patch, torch.float32, case.channels_first)
    found = _launch_patchify(x, bad, *args)
    assert found[wrong].isnan().all()
    assert_same(found[~wrong], _patchify(x, ids, *args)[~wrong])
    pred = random(case)
    assert _launch_masked_mse(pred, x, bad, *patch, PATCH, case.channels_first).isnan()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@CASES
def test_patchify_backward(case, dtype):
    patch, _, std = layout(case)
    args = (random(case, dtype), case.make(dtype), case.ids(), patch, std, case.channels_first)
    assert_same(_launch_patchify_backward(*args), _patchify_backward(*args))


@NORMS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@CASES
def test_diffuse_patches(case, dtype, norm):
    offset = 2**32 - 1  # samples on both sides of a 32-bit counter word
    args = (case.make(), case.ids(), *layout(case), levels(case))
    options = (torch.tensor(2**40 + 5), offset, norm)
    found = _launch_diffuse(*args, *options, dtype, case.channels_first)
    wide = _diffuse_patches(*args, *options, torch.float64, case.channels_first)
    assert_within(found, wide, ulps=64 if dtype == torch.float32 else 2)


@NORMS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@CASES
def test_diffuse_patches_backward(case, dtype, norm):
    grad = random(case, dtype)
    args = (case.make(), case.ids(), *layout(case), levels(case), norm, case.channels_first)
    found, wide = _launch_diffuse_backward(grad, *args), _diffuse_patches_backward(grad.double(), *args)
    # rstd multiplies the rounding of the sums before it.
    assert_within(found, wide, ulps=64 if dtype == torch.float32 else 2)


@NORMS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@CASES
def test_masked_mse(case, dtype, norm):
    pred, scale = random(case, dtype), torch.tensor(-1.7)
    args = (case.make(), case.ids(), *layout(case), norm, case.channels_first)
    assert_within(_launch_masked_mse(pred, *args), _masked_mse(pred.double(), *args), ulps=16)
    expected = _masked_mse_backward(scale, pred.double(), *args)
    tiny = 2.0**-24 / torch.finfo(dtype).eps if dtype == torch.float16 else 0
    found = _launch_masked_mse_backward(scale, pred, *args)
    assert_within(found, expected, ulps=16 if dtype == torch.float32 else 2, scale=4 / pred.numel() + tiny)


@pytest.mark.parametrize("ids", [VIDEO.ids().mT.contiguous().mT, VIDEO.ids().long()], ids=["strided", "int64"])
def test_other_ids(ids):
    args = (*layout(VIDEO), torch.float32, False)
    assert_same(_launch_patchify(VIDEO.make(), ids, *args), _patchify(VIDEO.make(), VIDEO.ids(), *args))


def test_strided_gradient_and_prediction():
    case = PIXELS[2]
    patch, _, std = layout(case)
    strided = random(case).mT.contiguous().mT
    args = (case.make(), case.ids(), patch, std, False)
    assert_same(_launch_patchify_backward(strided, *args), _patchify_backward(strided, *args))
    args = (case.make(), case.ids(), *layout(case), True, False)
    torch.testing.assert_close(_launch_masked_mse(strided, *args), _masked_mse(strided, *args))
    args = (torch.tensor(2.0), strided, *args)
    torch.testing.assert_close(_launch_masked_mse_backward(*args), _masked_mse_backward(*args))


@pytest.mark.parametrize("batch", [0, 3], ids=["no-sample", "no-token"])
def test_empty(batch):
    x, ids, alpha_bar = VIDEO.make()[:batch], VIDEO.ids(0)[:batch], levels(VIDEO)[:batch]
    out = _launch_patchify(x, ids, *layout(VIDEO), torch.float32, False)
    assert out.shape == (batch, 0, 144)
    diffused = _launch_diffuse(x, ids, *layout(VIDEO), alpha_bar, torch.tensor(1), 0, True, torch.float32, False)
    assert diffused.shape == out.shape
    assert _launch_masked_mse(out, x, ids, *layout(VIDEO), True, False).isnan()
    patch, _, std = layout(VIDEO)
    wide = VIDEO.make(torch.float32)[:batch]
    assert_same(_launch_patchify_backward(out, wide, ids, patch, std, False), torch.zeros_like(wide))


def test_float64_is_refused():
    x = VIDEO.make(torch.float64)
    with pytest.raises(ValueError, match=r"x=float64.*for the CUDA kernels"):
        _launch_patchify(x, VIDEO.ids(), *layout(VIDEO), torch.float32, False)
    with pytest.raises(ValueError, match=r"dtype=float64.*for the CUDA kernels"):
        _launch_patchify(VIDEO.make(), VIDEO.ids(), *layout(VIDEO), torch.float64, False)
