"""add_noise against the DDPM forward process in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maekernels import add_noise
from maekernels.add_noise import _add_noise, _add_noise_backward
from tests.ops.mae_oracle import assert_same, assert_within, noise_like

SHAPES = [(3, 5, 16), (2, 7), (3,), (2, 3, 5, 1), (0, 4), (2, 0)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def make(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def levels(batch: int) -> Tensor:
    return torch.tensor([1.0, 0.0, 0.37, 0.99] * 3)[:batch]


def oracle(x0: Tensor, alpha_bar: Tensor, seed: int, offset: int = 0) -> Tensor:
    shape = (-1, *(1,) * (x0.dim() - 1))
    signal, sigma = (a.double().view(shape).sqrt() for a in (alpha_bar, 1 - alpha_bar))
    return signal * x0.double() + sigma * noise_like(x0, seed, offset) if x0.numel() else x0.double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(shape, dtype):
    x0, alpha_bar = make(*shape, dtype=dtype), levels(shape[0])
    expected = oracle(x0, alpha_bar, 42, 6)
    for backend in (None, "torch"):
        out = add_noise(x0, alpha_bar, 42, 6, backend=backend)
        assert out.dtype == dtype
        if dtype == torch.float64:  # the noise itself is float32
            torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        else:
            assert_within(out, expected, ulps=32 if dtype == torch.float32 else 2)


def test_no_noise_and_no_signal():
    x0 = make(2, 50)
    out = add_noise(x0, torch.tensor([1.0, 0.0]), 1)
    assert_same(out[0], x0[0])
    assert_same(out[1], add_noise(torch.zeros(2, 50), torch.zeros(2), 1)[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient(dtype):
    x0, alpha_bar = make(4, 3, 5, dtype=dtype).requires_grad_(), levels(4)
    grad = torch.randn(4, 5, 3).mT.to(dtype)
    add_noise(x0, alpha_bar, 3).backward(grad)
    assert x0.grad is not None
    # alpha_bar, and with it the factor, is float32 whatever x0 is.
    expected = grad.double() * alpha_bar.sqrt().double().view(-1, 1, 1)
    assert_within(x0.grad, expected, ulps=2)


def test_gradcheck():
    x0 = make(3, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: add_noise(x, levels(3), 3), x0)


def test_splitting_the_batch_changes_nothing():
    x0, alpha_bar = make(5, 12), torch.full((5,), 0.3)
    parts = [add_noise(x0[a:b], alpha_bar[a:b], 9, 100 + a) for a, b in ((0, 1), (1, 4), (4, 5))]
    assert_same(add_noise(x0, alpha_bar, 9, 100), torch.cat(parts))


def test_noise_of_a_sample_has_a_prefix():
    """Element e is keyed by e: a longer sample begins with the same noise."""
    short, long = (add_noise(torch.zeros(1, n), torch.zeros(1), 7) for n in (10, 23))
    assert_same(long[:, :10], short)


def test_seeds_offsets_and_elements_differ():
    zeros = torch.zeros(2, 64), torch.zeros(2)
    rows = torch.cat([add_noise(*zeros, 0), add_noise(*zeros, 1), add_noise(*zeros, 0, 2)])
    assert len({float(v) for v in rows.flatten()}) == rows.numel()


def test_tensor_seed_is_the_same_seed():
    x0, alpha_bar = make(2, 9), levels(2)
    assert_same(add_noise(x0, alpha_bar, torch.tensor(5)), add_noise(x0, alpha_bar, 5))


def test_strided():
    x0 = make(3, 8, 6).mT
    out = add_noise(x0, levels(3), 2)
    assert_same(out, add_noise(x0.contiguous(), levels(3), 2))


def test_autocast_changes_nothing():
    with torch.autocast("cpu", torch.bfloat16):
        out = add_noise(make(3, 8), levels(3), 2)
    assert_same(out, add_noise(make(3, 8), levels(3), 2))


def test_opcheck():
    x0 = make(3, 4, 6).requires_grad_()
    torch.library.opcheck(_add_noise, (x0, levels(3), torch.tensor(4), 2))
    torch.library.opcheck(_add_noise_backward, (make(3, 6, 4).mT, levels(3)))


def test_compile():
    def loss(x0, seed):
        return add_noise(x0, levels(3), seed, 2).square().sum()

    x0 = make(3, 8).requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for seed in (torch.tensor(5), torch.tensor(6)):
        assert_same(*(torch.autograd.grad(f(x0, seed), x0)[0] for f in (compiled, loss)))


def test_export():
    class Noise(torch.nn.Module):
        def forward(self, x0, seed):
            return add_noise(x0, levels(3), seed)

    exported = torch.export.export(Noise(), (make(3, 8), torch.tensor(0))).module()
    assert_same(exported(make(3, 8), torch.tensor(5)), add_noise(make(3, 8), levels(3), 5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x0": torch.zeros(3, 4, dtype=torch.uint8)}, r"x0=uint8\[3, 4\]"),
        ({"x0": torch.zeros(())}, r"x0=float32\[\]"),
        ({"alpha_bar": torch.zeros(2)}, r"alpha_bar=float32\[2\] on cpu: must be float32 \[B\] with B=3"),
        ({"alpha_bar": torch.zeros(3, dtype=torch.float64)}, r"alpha_bar=float64"),
        ({"alpha_bar": torch.tensor([0.0, 1.5, 0.0])}, r"alpha_bar=values in \[0.0, 1.5\]: must be in \[0, 1\]"),
        ({"alpha_bar": torch.tensor([0.0, float("nan"), 0.0])}, r"alpha_bar=values in \[nan, nan\]"),
        (
            {"alpha_bar": torch.zeros(3, requires_grad=True)},
            r"alpha_bar=a tensor that requires a gradient: must be detached",
        ),
        ({"seed": 2**63}, r"seed=9223372036854775808"),
        ({"offset": -1}, r"offset=-1"),
        ({"backend": "triton"}, r"backend='triton'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input(change, message):
    args = {"x0": torch.zeros(3, 4), "alpha_bar": torch.zeros(3), "seed": 0} | change
    with pytest.raises(ValueError, match=message):
        add_noise(**args)
