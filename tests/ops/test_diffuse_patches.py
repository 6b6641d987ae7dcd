"""diffuse_patches against float64: cut, normalise, add the documented noise, gather."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maekernels import add_noise, diffuse_patches, patchify
from maekernels._pixels import NormPix, norm_mode
from maekernels.diffuse_patches import _diffuse_patches, _diffuse_patches_backward
from tests.ops.mae_oracle import MEAN, PIXELS, STD, Pixels, assert_same, assert_within, gather, noise_like, normalised

VIDEO, FLOAT_VIDEO, SPECTROGRAM = PIXELS[0], PIXELS[2], PIXELS[7]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SEED, OFFSET = 91, 2**32 - 1
NORMS = pytest.mark.parametrize("norm", [False, True, "channel"], ids=["plain", "norm-pix", "norm-channel"])


def levels(case: Pixels) -> Tensor:
    return torch.tensor([0.6, 0.0, 1.0])[: case.shape[0]]


def run(case: Pixels, x: Tensor, ids: Tensor, norm: NormPix = False, dtype: torch.dtype = torch.float32, **options):
    args = (case.patch, *case.normal, levels(case), SEED, OFFSET, norm, dtype)
    return diffuse_patches(x, ids, *args, channels_first=case.channels_first, **options)


def oracle(case: Pixels, x: Tensor, ids: Tensor, norm: NormPix = False) -> Tensor:
    """Noise for the whole sample, of which the patches are then picked."""
    clean = case.patches(x)
    noise = noise_like(clean.detach(), SEED, OFFSET)
    alpha_bar = levels(case).double()[:, None, None]
    x_t = alpha_bar.sqrt() * normalised(clean, norm, case.channels) + (1 - alpha_bar).sqrt() * noise
    return gather(x_t, ids)


@NORMS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", PIXELS, ids=str)
def test_forward(case, dtype, norm):
    x, ids = case.make(), case.ids()
    expected = oracle(case, x, ids, norm)
    for backend in (None, "torch"):
        out = run(case, x, ids, norm, dtype, backend=backend)
        assert out.dtype == dtype
        assert_within(out, expected, ulps=32 if dtype == torch.float32 else 2)


@NORMS
@pytest.mark.parametrize("case", PIXELS, ids=str)
def test_gradient(case, norm):
    x, ids = case.make(torch.float64).requires_grad_(), case.ids()
    expected_out = oracle(case, x, ids, norm)
    weight = torch.randn_like(expected_out)
    (expected,) = torch.autograd.grad(expected_out, x, weight)
    (found,) = torch.autograd.grad(run(case, x, ids, norm, torch.float64), x, weight)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # alpha_bar is float32
    (plain,) = torch.autograd.grad(run(case, x, ids, norm, torch.float64, backend="torch"), x, weight)
    torch.testing.assert_close(found, plain)


@NORMS
def test_gradcheck(norm):
    x, ids = torch.rand(2, 8, 8, dtype=torch.float64, requires_grad=True), torch.tensor([[1], [3]])

    def diffused(x):
        args = ((4, 4), (0.0,), (1.0,), torch.tensor([0.25, 1.0]), 3, 0, norm, torch.float64)
        return diffuse_patches(x, ids, *args)

    assert torch.autograd.gradcheck(diffused, x, fast_mode=True)


@pytest.mark.parametrize("case", [VIDEO, PIXELS[9]], ids=str)
def test_noise_of_a_patch_does_not_depend_on_the_others(case):
    x, ids = case.make(), case.ids()
    out = run(case, x, ids)
    assert_same(run(case, x, ids.flip(1)), out.flip(1))
    assert_same(run(case, x, ids[:, 1:2]), out[:, 1:2])


def test_all_patches_are_add_noise_of_patchify():
    x, ids = VIDEO.make(), VIDEO.ids(8).sort(dim=1).values
    clean = patchify(x, ids, VIDEO.patch, MEAN, STD)
    torch.testing.assert_close(run(VIDEO, x, ids), add_noise(clean, levels(VIDEO), SEED, OFFSET))


def test_splitting_the_batch_changes_nothing():
    x, ids, alpha_bar = VIDEO.make(), VIDEO.ids(), levels(VIDEO)
    parts = [
        diffuse_patches(x[a:b], ids[a:b], VIDEO.patch, MEAN, STD, alpha_bar[a:b], SEED, OFFSET + a)
        for a, b in ((0, 1), (1, 3))
    ]
    assert_same(run(VIDEO, x, ids), torch.cat(parts))


def test_many_chunks_are_one_batch():
    x = torch.randint(0, 256, (40, 64, 64, 3), dtype=torch.uint8)
    ids, alpha_bar = torch.arange(64, dtype=torch.int32).expand(40, 64), torch.full((40,), 0.5)
    whole = diffuse_patches(x, ids, (8, 8), MEAN, STD, alpha_bar, 1, 7)
    single = [diffuse_patches(x[b, None], ids[:1], (8, 8), MEAN, STD, alpha_bar[:1], 1, 7 + b) for b in range(40)]
    assert_same(whole, torch.cat(single))


def test_tensor_seed_and_autocast_change_nothing():
    x, ids = VIDEO.make(), VIDEO.ids()
    args = (VIDEO.patch, MEAN, STD, levels(VIDEO))
    with torch.autocast("cpu", torch.bfloat16):
        out = diffuse_patches(x, ids, *args, torch.tensor(SEED), OFFSET)
    assert_same(out, run(VIDEO, x, ids))


@NORMS
def test_few_tokens_and_empty_batch(norm):
    assert run(VIDEO, VIDEO.make(), VIDEO.ids(0), norm).shape == (3, 0, 144)
    out = diffuse_patches(VIDEO.make()[:0], VIDEO.ids()[:0], VIDEO.patch, MEAN, STD, torch.zeros(0), 1, 0, norm)
    assert out.shape == (0, VIDEO.ids().shape[1], 144)


@NORMS
@pytest.mark.parametrize("case", [VIDEO, SPECTROGRAM], ids=str)
def test_opcheck(case, norm):
    x, ids = case.make(), case.ids()
    x = x.requires_grad_() if x.is_floating_point() else x
    args = (list(case.patch), *(list(v) for v in case.normal), levels(case))
    torch.library.opcheck(_diffuse_patches, (x, ids, *args, torch.tensor(3), 1, norm_mode(norm), torch.float32, False))
    grad = run(case, x.detach(), ids)
    strided = grad.mT.contiguous().mT
    torch.library.opcheck(_diffuse_patches_backward, (strided, x.detach(), ids, *args, norm_mode(norm), False))


def test_compile():
    def loss(x, ids):
        return run(FLOAT_VIDEO, x, ids, norm=True).square().sum()

    x, ids = FLOAT_VIDEO.make().requires_grad_(), FLOAT_VIDEO.ids()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_same(*(torch.autograd.grad(f(x, ids), x)[0] for f in (compiled, loss)))


def test_export():
    class Diffused(torch.nn.Module):
        def forward(self, x, ids):
            return run(VIDEO, x, ids)

    other = VIDEO.make().flip(0)
    exported = torch.export.export(Diffused(), (VIDEO.make(), VIDEO.ids())).module()
    assert_same(exported(other, VIDEO.ids()), run(VIDEO, other, VIDEO.ids()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 4, 8, 12)}, r"x=float32\[3, 4, 8, 12\]"),
        ({"ids": torch.full((3, 1), 8)}, r"ids=values in \[8, 8\]"),
        ({"alpha_bar": torch.zeros(4)}, r"alpha_bar=float32\[4\] on cpu: must be float32 \[B\] with B=3"),
        ({"alpha_bar": torch.full((3,), -0.1)}, r"alpha_bar=values in \[-0.1.*, -0.1.*\]: must be in \[0, 1\]"),
        ({"seed": -1}, r"seed=-1"),
        ({"offset": -1}, r"offset=-1"),
        ({"dtype": torch.uint8}, r"dtype=torch.uint8"),
        ({"mean": (0.5,)}, r"mean=\(0.5,\)"),
        ({"patch": (1, 1, 1), "x": torch.zeros(3, 1, 2, 2, 1), "mean": (0,), "std": (1,), "norm_pix": True}, "patch="),
        ({"backend": "triton"}, r"backend='triton'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input(change, message):
    args = {"x": VIDEO.make(), "ids": VIDEO.ids(2), "patch": VIDEO.patch, "mean": MEAN, "std": STD, "seed": 0}
    with pytest.raises(ValueError, match=message):
        diffuse_patches(**args | {"alpha_bar": torch.zeros(3)} | change)
