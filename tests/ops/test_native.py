"""The kernels of csrc/cpu beyond what each op's own test asks of them.

Every test of this folder runs on them where they were built, and holds them to the reference; here: that neither the
number of threads nor the instruction set changes a bit, the noise, the 16-bit types, and the switches.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import maekernels
from maekernels import _native, philox
from maekernels._pixels import norm_mode
from maekernels.diffuse_patches import _diffuse_patches_backward
from tests.ops.mae_oracle import PIXELS, Pixels, assert_same, assert_within, random_ids

ROOT, PACKAGE = Path(__file__).parents[2], Path(maekernels.__file__).parents[1]
SEED, OFFSET = 2**62 + 3, 2**32 - 2
built = pytest.mark.skipif(bool(_native.ABSENT), reason=_native.ABSENT)


def pixel_results(case: Pixels, dtype: torch.dtype, backend: str | None) -> Iterator[Tensor]:
    x, ids = case.make(), case.ids()
    args = (x, ids, case.patch, *case.normal)
    options = {"channels_first": case.channels_first, "backend": backend}
    alpha_bar = torch.tensor([0.6, 0.0, 1.0])[: len(x)]
    clean = maekernels.patchify(*args, dtype, **options)
    yield clean
    for norm in (False, True, "channel"):
        yield maekernels.diffuse_patches(*args, alpha_bar, SEED, OFFSET, norm, dtype, **options)
        pred = (clean * 0.5).requires_grad_()
        loss = maekernels.masked_mse(pred, *args, norm, **options)
        yield from (loss.detach(), torch.autograd.grad(loss, pred)[0])
        pixels = (list(case.patch), *(list(v) for v in case.normal))
        if backend is None:
            yield _diffuse_patches_backward(clean, x, ids, *pixels, alpha_bar, norm_mode(norm), case.channels_first)
    if x.is_floating_point():
        leaf = x.detach().requires_grad_()
        out = maekernels.patchify(leaf, *args[1:], dtype, **options)
        yield torch.autograd.grad(out, leaf, clean)[0]


def token_results(dtype: torch.dtype, backend: str | None) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(5)
    for batch, length, keep, dim in ((3, 200, 77, 130), (1, 5, 5, 1), (2, 9, 0, 7), (0, 9, 3, 7)):
        groups = torch.stack([torch.arange(length) // 3, torch.arange(length) % 7 % length])
        for labels in (None, groups):
            yield from maekernels.random_mask(
                batch, length, keep, seed=SEED, offset=OFFSET, groups=labels, backend=backend
            )
        ids = random_ids(batch, length, keep)
        x = torch.randn(batch, length, dim, generator=generator).to(dtype).requires_grad_()
        row = torch.randn(dim, generator=generator).to(dtype).requires_grad_()
        chosen = maekernels.gather_tokens(x, ids, backend=backend)
        placed = maekernels.scatter_tokens(chosen, ids, length, row, backend=backend)
        yield from (chosen.detach(), placed.detach())
        yield from torch.autograd.grad(placed, (x, row), torch.ones_like(placed) * 0.3)
        yield maekernels.scatter_tokens(chosen.detach(), ids, length, -1.7, backend=backend)
        noisy = maekernels.add_noise(x, torch.full((batch,), 0.3), SEED, OFFSET, backend=backend)
        yield from (noisy.detach(), torch.autograd.grad(noisy, x, x.detach())[0])


def all_results(backend: str | None = None) -> list[Tensor]:
    found = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for case in PIXELS:
            found += pixel_results(case, dtype, backend)
        found += token_results(dtype, backend)
    return found


def large_results() -> list[Tensor]:
    """Enough work that several threads share it."""
    x = torch.randint(0, 256, (2, 4, 96, 112, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    keep, masked = maekernels.random_mask(2, 84, 20, seed=1)
    args = ((2, 16, 16), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    noisy = maekernels.diffuse_patches(x, masked, *args, torch.tensor([0.3, 0.8]), 7, norm_pix=True).requires_grad_()
    loss = maekernels.masked_mse(noisy, x, masked, *args)
    clean = maekernels.patchify(x, keep, *args).requires_grad_()
    row = torch.randn(1536, generator=torch.Generator().manual_seed(3)).requires_grad_()
    placed = maekernels.scatter_tokens(clean, keep, 84, row)
    back = maekernels.gather_tokens(placed, masked)
    added = maekernels.add_noise(placed, torch.tensor([0.3, 0.8]), 9)
    masks = maekernels.random_mask(200, 1568, 314, seed=4, groups=torch.arange(1568) % 196)
    grads = torch.autograd.grad(loss, noisy) + torch.autograd.grad(added.sum() + back.square().sum(), (clean, row))
    pixels = torch.rand(2, 4, 96, 112, 3, generator=torch.Generator().manual_seed(6)).requires_grad_()
    patches = maekernels.patchify(pixels, keep, *args)
    grads += torch.autograd.grad(patches, pixels, clean.detach())
    return [t.detach() for t in (noisy, loss, clean, placed, back, added, *masks, *grads, patches)]


def digest(results: list[Tensor]) -> str:
    found = hashlib.sha256()
    for tensor in results:
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": f"{PACKAGE}{os.pathsep}{ROOT}"} | environment
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd="/", check=False)


@built
def test_they_agree_with_the_reference():
    for i, (found, expected) in enumerate(zip(all_results("native"), all_results("torch"), strict=True)):
        assert found.dtype == expected.dtype
        if not expected.is_floating_point():
            assert_same(found, expected)
            continue
        scale = float(expected.double().abs().max()) if expected.numel() else 0.0
        bound = {torch.float64: 2.0**-20, torch.float32: 2.0**-20}.get(expected.dtype, torch.finfo(expected.dtype).eps)
        error = (found.double() - expected.double()).abs().max().item() if expected.numel() else 0.0
        assert error <= 2 * bound * scale, f"result {i}, {expected.dtype}{list(expected.shape)}"


@built
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = large_results()
        torch.set_num_threads(threads)
        shared = large_results()
    finally:
        torch.set_num_threads(before)
    for found, expected in zip(shared, alone, strict=True):
        assert_same(found, expected)


@built
def test_instruction_sets_change_nothing():
    """The plain one is what a machine without AVX2 runs."""
    refused = run_python("import maekernels", **isa("none"))
    names = re.findall(r"avx512|avx2|baseline", refused.stderr.partition("must be one of")[2])
    assert "baseline" in names, refused.stderr
    expected = digest(all_results() + large_results())
    for name in names:
        code = "from tests.ops import test_native as t; print(t.digest(t.all_results() + t.large_results()))"
        done = run_python(code, **isa(name))
        assert done.stdout.strip() == expected, f"{name}: {done.stderr}"


def isa(name: str) -> dict[str, str]:
    return {"MAEKERNELS_CPU_ISA": name, "MAEKERNELS_NATIVE": "1"}


@built
def test_noise_is_box_muller_to_float_rounding():
    count = 1 << 16
    found = maekernels.add_noise(torch.zeros(4, count), torch.zeros(4), SEED, OFFSET)
    samples = torch.arange(OFFSET, OFFSET + 4)
    words = philox.uint32(SEED, count, samples=samples, stream=philox.NOISE).double().view(4, -1, 2)
    radius = (-2 * (words[..., 0].float().double() * 2.0**-32 + 2.0**-33).log()).clamp(min=0).sqrt()
    angle = words[..., 1] * (2 * torch.pi / 2**32)
    expected = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(1)
    assert_within(found, expected, ulps=4)


@built
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_16_bit_number_is_read_and_rounded_as_torch_does(dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    same = maekernels.add_noise(every[None], torch.ones(1), 0)[0]
    # Noise times zero is added: of the zeros only the sign can change.
    torch.testing.assert_close(same, every, rtol=0, atol=0, equal_nan=True)
    ids = torch.zeros(1, 1, dtype=torch.int32)
    wide = torch.randint(-(2**31), 2**31, (256, 256), dtype=torch.int64).to(torch.int32).view(torch.float32)
    halves = (every.float()[:-1] + every.float()[1:]) / 2  # the ties
    wide[:, 0] = halves[:256]
    wide.view(-1)[: len(halves)] = halves
    rounded = maekernels.patchify(wide[None], ids, (256, 256), (0.0,), (1.0,), dtype).flatten()
    torch.testing.assert_close(rounded, wide.flatten().to(dtype), rtol=0, atol=0, equal_nan=True)


@built
def test_an_explicit_request_is_met():
    ids = maekernels.random_mask(2, 12, 5, seed=1, backend="native").ids_keep
    assert_same(ids, maekernels.random_mask(2, 12, 5, seed=1, backend="torch").ids_keep)
    with pytest.raises(ValueError, match=r"backend='native': must be None or one of \['torch'\]"):
        maekernels.info_nce(torch.ones(2, 3), torch.ones(2, 3), 0.1, backend="native")


def test_switched_off_the_reference_runs_and_a_request_is_refused():
    code = """
import torch, maekernels
ids = maekernels.random_mask(2, 12, 5, seed=1).ids_keep
assert torch.equal(ids, maekernels.random_mask(2, 12, 5, seed=1, backend="torch").ids_keep)
maekernels.random_mask(2, 12, 5, seed=1, backend="native")
"""
    said = run_python(code, MAEKERNELS_NATIVE="0").stderr
    assert "ValueError: backend='native': must be None or one of ['torch'] on cpu (MAEKERNELS_NATIVE=0" in said


@built
def test_an_id_that_comes_twice_gets_no_wrong_gradient():
    """Torch alone adds up what its places get; the kernels write each place once, and refuse it."""
    ids = torch.tensor([[0, 1, 2], [3, 5, 3]])
    x = torch.randn(2, 6, 4, requires_grad=True)
    told = "ids=3 twice in sample 1: must be unique within a sample"
    with pytest.raises(ValueError, match=told):
        maekernels.gather_tokens(x, ids).sum().backward()
    with pytest.raises(ValueError, match=told):
        maekernels.scatter_tokens(torch.zeros(2, 3, 4), ids, 6, 0.0)
    (grad,) = torch.autograd.grad(maekernels.gather_tokens(x, ids, backend="torch").sum(), x)
    assert grad[1, :, 0].tolist() == [0, 0, 0, 2, 0, 1]
    pixels = torch.rand(2, 8, 12, 3, requires_grad=True)
    with pytest.raises(ValueError, match=told):
        maekernels.patchify(pixels, ids, (4, 4), (0.0,) * 3, (1.0,) * 3, torch.float32).sum().backward()
