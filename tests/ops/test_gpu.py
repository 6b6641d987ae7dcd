"""Every kernel on a CUDA device at the shapes of the base model, against float64 on the CPU."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from maekernels import (
    add_noise,
    diffuse_patches,
    gather_tokens,
    info_nce,
    masked_mse,
    patchify,
    random_mask,
    scatter_tokens,
)
from maekernels.diffuse_patches import patch_noise
from tests.ops.mae_oracle import MEAN, STD, assert_same, assert_within, gather, norm_pix, patches, random_ids

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

BATCH, SEED, OFFSET = 4, 2**40 + 5, 2**32 - 2
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
NORMS = pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm-pix"])


@dataclass(frozen=True)
class Input:
    """A base-model input: shape, patch, tokens, and how many of them are masked and decoded."""

    name: str
    shape: tuple[int, ...]
    patch: tuple[int, ...]
    tokens: int
    dtype: torch.dtype = torch.uint8
    channels_first: bool = False

    @property
    def normal(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return (MEAN, STD) if self.tokens != 512 else ((-0.2,), (1.3,))

    def make(self, dtype: torch.dtype | None = None) -> Tensor:
        dtype, generator = dtype or self.dtype, torch.Generator().manual_seed(0)
        if dtype == torch.uint8:
            return torch.randint(0, 256, self.shape, dtype=dtype, generator=generator)
        return torch.rand(self.shape, generator=generator).to(dtype)

    def ids(self) -> Tensor:
        return random_mask(BATCH, self.tokens, self.tokens // 5, seed=3).ids_mask

    def clean(self, x: Tensor, norm: bool = False) -> Tensor:
        chosen = gather(patches(x, self.patch, *self.normal, self.channels_first), self.ids())
        return norm_pix(chosen) if norm else chosen

    def __str__(self) -> str:
        return self.name


INPUTS = [
    Input("video-16-frames", (BATCH, 16, 224, 224, 3), (2, 16, 16), 1568),
    Input("video-channels-first", (BATCH, 3, 8, 224, 224), (2, 16, 16), 784, channels_first=True),
    Input("spectrogram", (BATCH, 1024, 128), (16, 16), 512, torch.float32),
    Input("image-patch-14", (BATCH, 224, 224, 3), (14, 14), 256),
    Input("image-float", (BATCH, 3, 224, 224), (16, 16), 196, torch.float32, True),
]
EVERY_INPUT = pytest.mark.parametrize("case", INPUTS, ids=str)


@pytest.mark.parametrize("grouped", [False, True], ids=["plain", "grouped"])
@pytest.mark.parametrize(("length", "keep"), [(1568, 314), (512, 51), (196, 49), (8192, 1000), (1, 1)], ids=str)
def test_random_mask(length, keep, grouped):
    groups = torch.stack([torch.arange(length) // 8, torch.arange(length) % 8]) if grouped else None
    expected = random_mask(16, length, keep, seed=SEED, offset=OFFSET, groups=groups)
    groups = groups.cuda() if groups is not None else None
    found = random_mask(16, length, keep, seed=SEED, offset=OFFSET, groups=groups, device="cuda")
    for ours, ids in zip(found, expected, strict=True):
        assert_same(ours.cpu(), ids)


@EVERY_DTYPE
@EVERY_INPUT
def test_patchify(case, dtype):
    x, ids, (mean, std) = case.make(), case.ids(), case.normal
    out = patchify(x.cuda(), ids.cuda(), case.patch, mean, std, dtype, channels_first=case.channels_first)
    assert out.dtype == dtype
    assert_within(out.cpu(), case.clean(x), ulps=4, scale=6)


@EVERY_DTYPE
@EVERY_INPUT
def test_patchify_gradient(case, dtype):
    x, (mean, std) = case.make(dtype), case.normal
    ours, wide = x.cuda().requires_grad_(), x.double().requires_grad_()
    out = patchify(ours, case.ids().cuda(), case.patch, mean, std, dtype, channels_first=case.channels_first)
    expected = case.clean(wide)
    grad = torch.randn(expected.shape).to(dtype)
    (found,), (right,) = torch.autograd.grad(out, ours, grad.cuda()), torch.autograd.grad(expected, wide, grad.double())
    assert_within(found.cpu(), right, ulps=2, scale=0.1)


@NORMS
@EVERY_DTYPE
@EVERY_INPUT
def test_diffuse_patches(case, dtype, norm):
    x, ids, alpha_bar = case.make(), case.ids(), torch.linspace(0, 1, BATCH)
    mean, std = case.normal
    args = (case.patch, mean, std, alpha_bar.cuda(), SEED, OFFSET, norm, dtype)
    out = diffuse_patches(x.cuda(), ids.cuda(), *args, channels_first=case.channels_first).cpu()
    clean = case.clean(x, norm)
    noise = patch_noise(torch.tensor(SEED), ids, clean.shape[2], OFFSET).double()
    signal, sigma = alpha_bar.double()[:, None, None].sqrt(), (1 - alpha_bar).double()[:, None, None].sqrt()
    # 16-bit results take the hardware's logarithm, whose error shows where the noise's radius is near 0.
    slack = 0.0 if dtype == torch.float32 else 1e-3 / torch.finfo(dtype).eps
    assert_within(out, signal * clean + sigma * noise, ulps=64 if dtype == torch.float32 else 2, scale=1 + slack)


@NORMS
@EVERY_DTYPE
def test_diffuse_patches_gradient(dtype, norm):
    case = INPUTS[2]
    x, alpha_bar = case.make(), torch.linspace(0, 1, BATCH)
    ours, wide = x.cuda().requires_grad_(), x.double().requires_grad_()
    args = (alpha_bar.cuda(), SEED, OFFSET, norm, dtype)
    out = diffuse_patches(ours, case.ids().cuda(), case.patch, *case.normal, *args)
    expected = alpha_bar.double()[:, None, None].sqrt() * case.clean(wide, norm)
    grad = torch.randn(expected.shape).to(dtype)
    (found,), (right,) = torch.autograd.grad(out, ours, grad.cuda()), torch.autograd.grad(expected, wide, grad.double())
    # The gradient of the patches is rounded to the type of the result.
    bound = (64 if dtype == torch.float32 else 4) * torch.finfo(dtype).eps
    torch.testing.assert_close(found.cpu().double(), right, rtol=bound, atol=bound * right.abs().max().item())


@NORMS
@EVERY_DTYPE
@EVERY_INPUT
def test_masked_mse(case, dtype, norm):
    x = case.make()
    clean = case.clean(x, norm)
    pred = torch.randn(clean.shape).to(dtype)
    ours, wide = pred.cuda().requires_grad_(), pred.double().requires_grad_()
    ids, (mean, std) = case.ids().cuda(), case.normal
    loss = masked_mse(ours, x.cuda(), ids, case.patch, mean, std, norm, channels_first=case.channels_first)
    expected = (wide - clean).square().mean()
    assert loss.dtype == torch.float32
    assert_within(loss.detach().cpu(), expected.detach(), ulps=64)
    (found,), (right,) = torch.autograd.grad(3 * loss, ours), torch.autograd.grad(3 * expected, wide)
    tiny = 2.0**-24 / torch.finfo(dtype).eps if dtype == torch.float16 else 0
    assert_within(found.cpu(), right, ulps=64 if dtype == torch.float32 else 2, scale=6 / pred.numel() + tiny)


@EVERY_DTYPE
@pytest.mark.parametrize(("length", "keep", "dim"), [(1568, 314, 768), (512, 103, 512), (77, 10, 100)], ids=str)
def test_tokens(length, keep, dim, dtype):
    ids = random_ids(BATCH, length, keep)
    x, fill = torch.randn(BATCH, length, dim).to(dtype), torch.randn(dim).to(dtype)
    full, values, row = (t.cuda().requires_grad_() for t in (x, x[:, :keep].contiguous(), fill))
    chosen = gather_tokens(full, ids.cuda())
    assert_same(chosen.cpu(), gather(x, ids))
    placed = scatter_tokens(values, ids.cuda(), length, row)
    expected = fill.expand(BATCH, length, dim).scatter(1, ids.long()[..., None].expand(-1, -1, dim), x[:, :keep])
    assert_same(placed.cpu(), expected)
    (grad_full,) = torch.autograd.grad(chosen, full, x[:, :keep].cuda())
    zeros = torch.zeros_like(x).scatter(1, ids.long()[..., None].expand(-1, -1, dim), x[:, :keep])
    assert_same(grad_full.cpu(), zeros)
    grad_values, grad_row = torch.autograd.grad(placed, (values, row), x.cuda())
    assert_same(grad_values.cpu(), gather(x, ids))
    held = torch.ones(BATCH, length, 1, dtype=torch.float64).scatter(1, ids.long()[..., None], 0.0)
    assert_within(grad_row.cpu(), (held * x.double()).sum((0, 1)), ulps=4, scale=100)


@EVERY_DTYPE
@pytest.mark.parametrize("shape", [(BATCH, 1254, 1536), (BATCH, 1001), (BATCH, 3)], ids=str)
def test_add_noise(shape, dtype):
    x0, alpha_bar = torch.randn(shape).to(dtype), torch.linspace(0, 1, BATCH)
    ours = x0.cuda().requires_grad_()
    out = add_noise(ours, alpha_bar.cuda(), SEED, OFFSET)
    expected = add_noise(x0.double(), alpha_bar, SEED, OFFSET)
    slack = 0.0 if dtype == torch.float32 else 1e-3 / torch.finfo(dtype).eps
    assert_within(out.detach().cpu(), expected, ulps=64 if dtype == torch.float32 else 2, scale=1 + slack)
    (grad,) = torch.autograd.grad(out, ours, x0.cuda())
    signal = alpha_bar.double().sqrt().view(-1, *(1,) * (len(shape) - 1))
    assert_within(grad.cpu(), signal * x0.double(), ulps=4)


@EVERY_DTYPE
@pytest.mark.parametrize(("batch", "dim"), [(512, 768), (1100, 512), (64, 100), (3, 16)], ids=str)
def test_info_nce(batch, dim, dtype):
    a = torch.randn(batch, dim)
    rows = [x.to(dtype) for x in (a, a + torch.randn(batch, dim))]
    ours, wide = ([convert(x).requires_grad_() for x in rows] for convert in (Tensor.cuda, Tensor.double))
    loss, expected = info_nce(ours[0], ours[1], 0.1), info_nce(wide[0], wide[1], 0.1)
    # The unit rows and the softmax weights are rounded to the type of the input; a temperature of 0.1 multiplies that.
    bound = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}[dtype]
    torch.testing.assert_close(loss.cpu().double(), expected, rtol=bound, atol=bound)
    size = 1 / (0.1 * batch * min(x.float().norm(dim=1).min().item() for x in rows))
    for found, right in zip(torch.autograd.grad(loss, ours), torch.autograd.grad(expected, wide), strict=True):
        torch.testing.assert_close(found.cpu().double(), right, rtol=0, atol=bound * size)


def training_step(x: Tensor, pred: Tensor, alpha_bar: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    """Mask, diffuse, loss: what changes from step to step comes in tensors."""
    ids = random_mask(len(x), 196, 49, seed=seed).ids_mask
    x_t = diffuse_patches(x, ids, (16, 16), MEAN, STD, alpha_bar, seed, dtype=torch.bfloat16)
    return masked_mse(pred * x_t, x, ids, (16, 16), MEAN, STD), x_t


def step_inputs() -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randint(0, 256, (BATCH, 224, 224, 3), dtype=torch.uint8, device="cuda")
    pred = torch.randn(BATCH, 147, 768, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    return x, pred, torch.full((BATCH,), 0.5, device="cuda")


def test_cuda_graph_with_a_changing_seed():
    inputs, seed = step_inputs(), torch.zeros((), dtype=torch.int64, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        training_step(*inputs, seed)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = training_step(*inputs, seed)
    for value in (3, 4):
        seed.fill_(value)
        graph.replay()
        for found, expected in zip(captured, training_step(*inputs, torch.tensor(value, device="cuda")), strict=True):
            assert_same(found, expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled():
    inputs, seed = step_inputs(), torch.tensor(3, device="cuda")
    compiled = torch.compile(training_step, fullgraph=True)
    losses = [step(*inputs, seed)[0] for step in (training_step, compiled)]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, inputs[1])[0] for loss in losses))


def test_deterministic():
    inputs, seed = step_inputs(), torch.tensor(3, device="cuda")
    runs = [training_step(*inputs, seed)[0] for _ in range(3)]
    for loss in runs[1:]:
        assert_same(loss, runs[0])


def test_the_reference_runs_there_too():
    """The baseline of the benchmark."""
    x, _, alpha_bar = step_inputs()
    ids = random_mask(BATCH, 196, 49, seed=1, device="cuda").ids_mask
    args = (x, ids, (16, 16), MEAN, STD)
    torch.testing.assert_close(patchify(*args, backend="torch"), patchify(*args, backend="triton"))
    ours, plain = (diffuse_patches(*args, alpha_bar, 7, backend=b) for b in (None, "torch"))
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


def test_float64_is_refused():
    x, ids = (
        torch.zeros(1, 8, 8, device="cuda", dtype=torch.float64),
        torch.zeros(1, 1, device="cuda", dtype=torch.int32),
    )
    with pytest.raises(ValueError, match=r"x=float64.*for the CUDA kernels"):
        patchify(x, ids, (4, 4), (0.0,), (1.0,))
