"""Every op on a CUDA device, at the shapes of base models and at odd ones, against float64 on the CPU."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from maekernels import (
    Segments,
    add_noise,
    attention,
    diffuse_patches,
    gather_tokens,
    info_nce,
    masked_mse,
    patchify,
    random_mask,
    scatter_tokens,
)
from maekernels.diffuse_patches import patch_noise
from tests.gpu import DEVICE, THERE, cuda_alone, on_gpu
from tests.ops.mae_oracle import MEAN, STD, assert_same, assert_within, gather, normalised, patches, random_ids

pytestmark = on_gpu

BATCH, SEED, OFFSET = 4, 2**40 + 5, 2**32 - 2
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
NORMS = pytest.mark.parametrize("norm", [False, True, "channel"], ids=["plain", "norm-pix", "norm-channel"])


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

    def clean(self, x: Tensor, norm: bool | str = False) -> Tensor:
        chosen = gather(patches(x, self.patch, *self.normal, self.channels_first), self.ids())
        return normalised(chosen, norm, len(self.normal[0]))

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
    groups = groups.to(DEVICE) if groups is not None else None
    found = random_mask(16, length, keep, seed=SEED, offset=OFFSET, groups=groups, device=DEVICE)
    for ours, ids in zip(found, expected, strict=True):
        assert_same(ours.cpu(), ids)


@EVERY_DTYPE
@EVERY_INPUT
def test_patchify(case, dtype):
    x, ids, (mean, std) = case.make(), case.ids(), case.normal
    out = patchify(x.to(DEVICE), ids.to(DEVICE), case.patch, mean, std, dtype, channels_first=case.channels_first)
    assert out.dtype == dtype
    assert_within(out.cpu(), case.clean(x), ulps=4, scale=6)


@EVERY_DTYPE
@EVERY_INPUT
def test_patchify_gradient(case, dtype):
    x, (mean, std) = case.make(dtype), case.normal
    ours, wide = x.to(DEVICE).requires_grad_(), x.double().requires_grad_()
    out = patchify(ours, case.ids().to(DEVICE), case.patch, mean, std, dtype, channels_first=case.channels_first)
    expected = case.clean(wide)
    grad = torch.randn(expected.shape).to(dtype)
    (found,), (right,) = (
        torch.autograd.grad(out, ours, grad.to(DEVICE)),
        torch.autograd.grad(expected, wide, grad.double()),
    )
    assert_within(found.cpu(), right, ulps=2, scale=0.1)


@NORMS
@EVERY_DTYPE
@EVERY_INPUT
def test_diffuse_patches(case, dtype, norm):
    x, ids, alpha_bar = case.make(), case.ids(), torch.linspace(0, 1, BATCH)
    mean, std = case.normal
    args = (case.patch, mean, std, alpha_bar.to(DEVICE), SEED, OFFSET, norm, dtype)
    out = diffuse_patches(x.to(DEVICE), ids.to(DEVICE), *args, channels_first=case.channels_first).cpu()
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
    ours, wide = x.to(DEVICE).requires_grad_(), x.double().requires_grad_()
    args = (alpha_bar.to(DEVICE), SEED, OFFSET, norm, dtype)
    out = diffuse_patches(ours, case.ids().to(DEVICE), case.patch, *case.normal, *args)
    expected = alpha_bar.double()[:, None, None].sqrt() * case.clean(wide, norm)
    grad = torch.randn(expected.shape).to(dtype)
    (found,), (right,) = (
        torch.autograd.grad(out, ours, grad.to(DEVICE)),
        torch.autograd.grad(expected, wide, grad.double()),
    )
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
    ours, wide = pred.to(DEVICE).requires_grad_(), pred.double().requires_grad_()
    ids, (mean, std) = case.ids().to(DEVICE), case.normal
    loss = masked_mse(ours, x.to(DEVICE), ids, case.patch, mean, std, norm, channels_first=case.channels_first)
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
    full, values, row = (t.to(DEVICE).requires_grad_() for t in (x, x[:, :keep].contiguous(), fill))
    chosen = gather_tokens(full, ids.to(DEVICE))
    assert_same(chosen.cpu(), gather(x, ids))
    placed = scatter_tokens(values, ids.to(DEVICE), length, row)
    expected = fill.expand(BATCH, length, dim).scatter(1, ids.long()[..., None].expand(-1, -1, dim), x[:, :keep])
    assert_same(placed.cpu(), expected)
    (grad_full,) = torch.autograd.grad(chosen, full, x[:, :keep].to(DEVICE))
    zeros = torch.zeros_like(x).scatter(1, ids.long()[..., None].expand(-1, -1, dim), x[:, :keep])
    assert_same(grad_full.cpu(), zeros)
    grad_values, grad_row = torch.autograd.grad(placed, (values, row), x.to(DEVICE))
    assert_same(grad_values.cpu(), gather(x, ids))
    held = torch.ones(BATCH, length, 1, dtype=torch.float64).scatter(1, ids.long()[..., None], 0.0)
    assert_within(grad_row.cpu(), (held * x.double()).sum((0, 1)), ulps=4, scale=100)


@EVERY_DTYPE
@pytest.mark.parametrize("shape", [(BATCH, 1254, 1536), (BATCH, 1001), (BATCH, 3)], ids=str)
def test_add_noise(shape, dtype):
    x0, alpha_bar = torch.randn(shape).to(dtype), torch.linspace(0, 1, BATCH)
    ours = x0.to(DEVICE).requires_grad_()
    out = add_noise(ours, alpha_bar.to(DEVICE), SEED, OFFSET)
    expected = add_noise(x0.double(), alpha_bar, SEED, OFFSET)
    slack = 0.0 if dtype == torch.float32 else 1e-3 / torch.finfo(dtype).eps
    assert_within(out.detach().cpu(), expected, ulps=64 if dtype == torch.float32 else 2, scale=1 + slack)
    (grad,) = torch.autograd.grad(out, ours, x0.to(DEVICE))
    signal = alpha_bar.double().sqrt().view(-1, *(1,) * (len(shape) - 1))
    assert_within(grad.cpu(), signal * x0.double(), ulps=4)


@EVERY_DTYPE
@pytest.mark.parametrize(("batch", "dim"), [(512, 768), (1100, 512), (64, 100), (3, 16)], ids=str)
def test_info_nce(batch, dim, dtype):
    a = torch.randn(batch, dim)
    rows = [x.to(dtype) for x in (a, a + torch.randn(batch, dim))]
    ours, wide = ([convert(x).requires_grad_() for x in rows] for convert in (lambda x: x.to(DEVICE), Tensor.double))
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
    x = torch.randint(0, 256, (BATCH, 224, 224, 3), dtype=torch.uint8, device=DEVICE)
    pred = torch.randn(BATCH, 147, 768, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    return x, pred, torch.full((BATCH,), 0.5, device=DEVICE)


@cuda_alone
def test_cuda_graph_with_a_changing_seed():
    inputs, seed = step_inputs(), torch.zeros((), dtype=torch.int64, device=DEVICE)
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
        for found, expected in zip(captured, training_step(*inputs, torch.tensor(value, device=DEVICE)), strict=True):
            assert_same(found, expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled():
    inputs, seed = step_inputs(), torch.tensor(3, device=DEVICE)
    compiled = torch.compile(training_step, fullgraph=True)
    losses = [step(*inputs, seed)[0] for step in (training_step, compiled)]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, inputs[1])[0] for loss in losses))


def test_deterministic():
    inputs, seed = step_inputs(), torch.tensor(3, device=DEVICE)
    runs = [training_step(*inputs, seed)[0] for _ in range(3)]
    for loss in runs[1:]:
        assert_same(loss, runs[0])


@cuda_alone
def test_the_reference_runs_there_too():
    """The baseline of the benchmark."""
    x, _, alpha_bar = step_inputs()
    ids = random_mask(BATCH, 196, 49, seed=1, device=DEVICE).ids_mask
    args = (x, ids, (16, 16), MEAN, STD)
    torch.testing.assert_close(patchify(*args, backend="torch"), patchify(*args, backend="triton"))
    ours, plain = (diffuse_patches(*args, alpha_bar, 7, backend=b) for b in (None, "torch"))
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


@cuda_alone
def test_float64_is_refused():
    x, ids = (
        torch.zeros(1, 8, 8, device=DEVICE, dtype=torch.float64),
        torch.zeros(1, 1, device=DEVICE, dtype=torch.int32),
    )
    with pytest.raises(ValueError, match=r"x=float64.*for the CUDA kernels"):
        patchify(x, ids, (4, 4), (0.0,), (1.0,))


@cuda_alone
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_runs_on_the_device_of_its_inputs():
    x, ids = torch.randn(2, 9, 8, device="cuda:1"), random_ids(2, 9, 4).to("cuda:1")
    assert torch.cuda.current_device() == 0
    assert_same(gather_tokens(x, ids).cpu(), gather(x.cpu(), ids.cpu()))


@cuda_alone
def test_more_elements_than_an_int32_counts():
    x = torch.empty(3, 2**20, 768, dtype=torch.bfloat16, device="cuda").normal_()
    ids = torch.tensor([[2**20 - 1, 0], [7, 2**20 - 2], [2**20 - 1, 2**19]], device="cuda", dtype=torch.int32)
    chosen = gather_tokens(x, ids)
    assert_same(chosen, torch.stack([clip[place] for clip, place in zip(x, ids.long(), strict=True)]))
    placed = scatter_tokens(chosen, ids, 2**20, 3.0)
    assert_same(placed[2, 2**20 - 1], x[2, 2**20 - 1])
    assert placed[2, 2**20 - 2].eq(3).all()
    noisy = add_noise(x, torch.ones(3, device="cuda"), SEED)
    assert_same(noisy[2, -1000:], x[2, -1000:])


@EVERY_DTYPE
@pytest.mark.parametrize("backend", ["auto", "sdpa", "math", "flash", "xformers"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_attention(packed, backend, dtype):
    """Heads of 64 and 32 as in encoders and decoders; cross-attention with other numbers of keys."""
    lengths = ([157, 157, 79, 1], [20, 20, 33, 64]) if packed else ([157] * 3, [33] * 3)
    segments = [Segments.of(counts, DEVICE) for counts in lengths]
    for heads, dim in ((12, 64), (16, 32)):
        inputs = [torch.randn(sum(lengths[i > 0]), heads, dim).to(dtype) for i in range(3)]
        ours, wide = ([convert(x).requires_grad_() for x in inputs] for convert in (on_device, Tensor.double))
        try:
            if packed:
                out = attention(*ours, *segments, backend=backend)
            else:
                out = attention(*(x.unflatten(0, (3, -1)) for x in ours), backend=backend).flatten(0, 1)
        except ValueError as error:
            pytest.skip(str(error))
        expected = attention(*wide, *(Segments.of(counts) for counts in lengths), backend="math")
        assert (out.dtype, out.device.type) == (dtype, DEVICE.type)
        grad = torch.randn(out.shape).to(dtype)
        found = torch.autograd.grad(out, ours, grad.to(DEVICE))
        right = torch.autograd.grad(expected, wide, grad.double())
        for mine, exact in zip((out, *found), (expected, *right), strict=True):
            error = (mine.detach().cpu().double() - exact).norm() / exact.norm()
            assert error < {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}[dtype]


def on_device(x: Tensor) -> Tensor:
    return x.to(DEVICE)


def registered_calls() -> dict[str, tuple[Any, tuple[object, ...]]]:
    """Every op as it is registered, forward and backward, with arguments."""
    ids, alpha_bar = random_ids(2, 12, 5).to(DEVICE), torch.tensor([0.3, 0.9], device=DEVICE)
    seed, rows = torch.tensor(3, device=DEVICE), torch.rand(6, device=DEVICE)
    x, spec = torch.randn(2, 12, 8, device=DEVICE), torch.randn(2, 12, 16, device=DEVICE)
    values, patches = torch.randn(2, 5, 8, device=DEVICE), torch.randn(2, 5, 16, device=DEVICE)
    unit, layout = x[0, :6], ([4, 4], [0.1], [0.5])
    pixels, chosen = (spec, ids, *layout), (spec.clone().requires_grad_(), ids, *layout)
    module = {name: importlib.import_module(f"maekernels.{name}") for name in OPS}
    return {
        "random_mask": (module["random_mask"]._random_mask, (2, 12, 5, seed, 1, None)),
        "random_mask, groups": (module["random_mask"]._random_mask, (2, 12, 5, seed, 1, ids.new_zeros(2, 12))),
        "patchify": (module["patchify"]._patchify, (*chosen, torch.float32, False)),
        "patchify backward": (module["patchify"]._patchify_backward, (patches, spec, ids, [4, 4], [0.5], False)),
        "gather_tokens": (module["gather_tokens"]._gather_tokens, (x.clone().requires_grad_(), ids)),
        "scatter_tokens": (
            module["scatter_tokens"]._scatter_tokens,
            (values.clone().requires_grad_(), ids, 12, 0.0, unit[0].clone().requires_grad_()),
        ),
        "scatter_tokens, number": (module["scatter_tokens"]._scatter_tokens, (values, ids, 12, 1.0, None)),
        "scatter_tokens fill": (module["scatter_tokens"]._fill_grad, (x, ids)),
        "add_noise": (module["add_noise"]._add_noise, (x.clone().requires_grad_(), alpha_bar, seed, 2)),
        "add_noise backward": (module["add_noise"]._add_noise_backward, (x.mT, alpha_bar)),
        "diffuse_patches": (
            module["diffuse_patches"]._diffuse_patches,
            (*chosen, alpha_bar, seed, 1, True, torch.float32, False),
        ),
        "diffuse_patches backward": (
            module["diffuse_patches"]._diffuse_patches_backward,
            (patches, *pixels, alpha_bar, True, False),
        ),
        "masked_mse": (module["masked_mse"]._masked_mse, (patches.clone().requires_grad_(), *pixels, True, False)),
        "masked_mse backward": (
            module["masked_mse"]._masked_mse_backward,
            (torch.tensor(2.0, device=DEVICE), patches, *pixels, False, False),
        ),
        "unit_rows": (module["info_nce"]._unit_rows, (unit.clone().requires_grad_(),)),
        "unit_rows backward": (module["info_nce"]._unit_rows_backward, (unit.flip(0), unit, rows)),
        "contrast": (
            module["info_nce"]._contrast,
            (unit.clone().requires_grad_(), unit.flip(0).requires_grad_(), 0, 0.5, True),
        ),
        "contrast backward": (
            module["info_nce"]._contrast_backward,
            (torch.tensor(1.0, device=DEVICE), unit, unit.flip(0), rows, rows, 0, 0.5, True),
        ),
    }


OPS = ("random_mask", "patchify", "gather_tokens", "scatter_tokens", "add_noise", "diffuse_patches", "masked_mse",
       "info_nce")  # fmt: skip
REGISTERED = registered_calls() if DEVICE.type != "cuda" or THERE else {}


@pytest.mark.parametrize("name", REGISTERED)
def test_opcheck(name):
    op, args = REGISTERED[name]
    torch.library.opcheck(op, args)
