"""csrc/cpu on arm64: every source compiles without a warning, and the loops give the bits that they give here.

The loops are built into a program (loops_host.cpp) by this machine's compiler and, where there is one, by a cross
compiler for arm64, whose program runs in qemu. The first is held to the reference, the second to the first.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maekernels import patchify, philox
from maekernels.masked_mse import masked_mse
from maekernels.random_mask import _reference as mask_reference
from tests.ops.mae_oracle import PIXELS, Pixels, assert_same, assert_within

ROOT = Path(__file__).parents[2]
CPU = ROOT / "csrc" / "cpu"
HOST, CROSS = shutil.which("g++") or shutil.which("clang++"), shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
TYPES = [torch.uint8, torch.float32, torch.bfloat16, torch.float16, torch.float64]  # as numbered in loops.h
SEED, SAMPLE = 2**62 + 3, 2**33 + 2**32 - 1
STRICT = ["-Wall", "-Wextra", "-Werror"]

needs_cross = pytest.mark.skipif(CROSS is None, reason="no aarch64-linux-gnu-g++")

Run = Callable[..., bytes]


def setup_flags(name: str) -> list[str]:
    """A list of flags of kernels/setup.py, which is a script and cannot be imported."""
    found = re.search(rf"^{name} = (\[.*?\])", (ROOT / "kernels" / "setup.py").read_text(), re.M | re.S)
    assert found, f"kernels/setup.py has no {name}"
    return ast.literal_eval(found[1])


@needs_cross
@pytest.mark.parametrize("source", sorted(path.name for path in CPU.glob("*.cpp")))
def test_compiles_for_arm64(source, tmp_path):
    """As setup.py compiles it, with warnings as errors. torch's and Python's headers here are those of any 64 bits."""
    torch_headers, python_headers = Path(torch.__file__).parent / "include", sysconfig.get_paths()["include"]
    flags = [*setup_flags("CXX"), *setup_flags("DEFINES"), *STRICT, "-fvisibility=hidden", "-fPIC"]
    flags += ["-DPy_LIMITED_API=0x030b0000", "-isystem", str(torch_headers), "-isystem", python_headers]
    subprocess.run([str(CROSS), "-c", *flags, str(CPU / source), "-o", str(tmp_path / "object.o")], check=True)


def build(compiler: str, target: Path, *flags: str) -> str:
    sources = [str(ROOT / "tests" / "csrc" / "loops_host.cpp"), *(str(p) for p in sorted(CPU.glob("isa_*.cpp")))]
    sources.append(str(CPU / "instruction_set.cpp"))
    flags = (*setup_flags("CXX"), *STRICT, *flags, f"-I{CPU}")
    subprocess.run([compiler, *flags, *sources, "-o", str(target)], check=True)
    return str(target)


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> str:
    if HOST is None:
        pytest.skip("no C++ compiler")
    return build(HOST, tmp_path_factory.mktemp("loops") / "here")


@pytest.fixture(scope="module", params=["here", "arm64"])
def run(request, program, tmp_path_factory) -> Run:
    """run(arguments..., stdin=tensors) -> stdout; on arm64 it has to be that of this machine's program too."""
    commands = [[program]]
    if request.param == "arm64":
        if CROSS is None or EMULATOR is None:
            pytest.skip("no aarch64-linux-gnu-g++" if CROSS is None else "no qemu-aarch64")
        commands.append([EMULATOR, build(CROSS, tmp_path_factory.mktemp("loops") / "arm64", "-static")])

    def call(*arguments: int | str, stdin: tuple[Tensor, ...] = ()) -> bytes:
        sent = b"".join(x.flatten().contiguous().view(torch.uint8).numpy().tobytes() for x in stdin)
        words = [word if isinstance(word, str) else str(int(word)) for word in arguments]
        found = [subprocess.run([*c, *words], input=sent, capture_output=True, check=True).stdout for c in commands]
        assert found[-1] == found[0], "the bits of arm64 are others"
        return found[-1]

    return call


def tensor(data: bytes, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=dtype)


@pytest.mark.parametrize("first", [0, 3, 2**32 - 3], ids=str)
@pytest.mark.parametrize("stream", [philox.NOISE, philox.MASK, philox.MASK_GROUPS + 2], ids=str)
def test_words_are_philox(run, stream, first):
    found = tensor(run("words", SEED, stream, SAMPLE, first, 37), torch.uint32).long()
    blocks = (torch.arange(37) + first) % 2**32
    expected = torch.stack(philox.words(torch.tensor(SEED), torch.tensor(SAMPLE), blocks, stream), dim=-1)
    assert_same(found, expected.flatten())


def test_normals_are_box_muller(run):
    found = tensor(run("normals", SEED, SAMPLE, 0, 1031), torch.float32)
    words = philox.uint32(SEED, 4 * 1031, samples=torch.tensor([SAMPLE]), stream=philox.NOISE).view(-1, 2)
    radius = (-2 * (words[:, 0].float().double() * 2.0**-32 + 2.0**-33).log()).sqrt()
    angle = words[:, 1].double() * (2 * torch.pi / 2**32)
    assert_within(found, torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(), ulps=4)


@pytest.mark.parametrize("kind", ["plain", "tube", "time-frequency"])
@pytest.mark.parametrize("length", [1, 2, 5, 37, 784, 1568], ids=str)
def test_masks_are_the_reference(run, length, kind):
    n = torch.arange(length)
    tube, crossed = (n % -(-length // 8))[None], torch.stack([n // 8, n % min(8, length)])
    labels = {"plain": torch.empty(0, length, dtype=torch.int64), "tube": tube, "time-frequency": crossed}[kind]
    for keep in sorted({0, 1, length // 5, length - 1, length}):
        expected = mask_reference(1, length, keep, torch.tensor(SEED), SAMPLE, labels if len(labels) else None)
        found = tensor(run("mask", length, keep, SEED, SAMPLE, len(labels), stdin=(labels,)), torch.int32)
        assert_same(found, torch.cat(expected, dim=1)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_numbers_are_rounded_and_read_as_torch_does(run, dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    generator = torch.Generator().manual_seed(0)
    wide = torch.randint(-(2**31), 2**31, (4096,), generator=generator).to(torch.int32).view(torch.float32)
    values = torch.cat([every, (every[:-1] + every[1:]) / 2, wide])
    data = run("convert", TYPES.index(dtype), len(values), stdin=(values,))
    written, read = tensor(data[: 2 * len(values)], dtype), tensor(data[2 * len(values) :], torch.float32)
    torch.testing.assert_close(written, values.to(dtype), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(read, written.float(), rtol=0, atol=0, equal_nan=True)


def layout(case: Pixels, x: Tensor, ids: Tensor) -> tuple[list[int], list[Tensor]]:
    """The arguments of a patch and its place, and the first pixel of each token, scale and shift, for loops_host."""
    video = x.movedim(1, -1) if case.channels_first else x
    if x.dim() == 3:
        video = x[:, None, :, :, None]
    elif x.dim() == 4:
        video = video[:, None]
    pt, ph, pw = (1, *case.patch)[-3:]
    sb, st, sh, sw, sc = video.stride()
    channels = video.shape[-1]
    rows, columns = video.shape[2] // ph, video.shape[3] // pw
    t, h, w = ids // (rows * columns), ids // columns % rows, ids % columns
    first = torch.arange(len(x))[:, None] * sb + t * pt * st + h * ph * sh + w * pw * sw
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in case.normal)
    scale, shift = 1 / ((255 if x.dtype == torch.uint8 else 1) * std), -mean / std
    packed = sw == channels and (channels == 1 or sc == 1)
    arguments = [pt, ph, pw, channels, st, sh, sw, sc, packed, ids.numel()]
    return arguments, [first.long(), *(v.float().repeat(pw) for v in (scale, shift))]


def memory(x: Tensor) -> Tensor:
    """All elements behind a view, in their order in memory."""
    return x.as_strided((x.untyped_storage().nbytes() // x.itemsize,), (1,), 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", PIXELS, ids=str)
def test_patches_are_the_reference(run, case, dtype):
    x, ids = case.make(), case.ids()
    arguments, sent = layout(case, x, ids.long())
    sent[0] += x.storage_offset()
    data = run("patches", TYPES.index(x.dtype), TYPES.index(dtype), 0, *arguments, stdin=(*sent, memory(x)))
    options: Any = {"channels_first": case.channels_first, "backend": "torch"}
    expected = patchify(x, ids, case.patch, *case.normal, dtype=dtype, **options)
    assert_same(tensor(data, dtype).view_as(expected), expected)


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm-pix"])
@pytest.mark.parametrize("case", PIXELS, ids=str)
def test_loss_and_gradient_are_the_reference(run, case, norm):
    x, ids = case.make(), case.ids()
    arguments, sent = layout(case, x, ids.long())
    sent[0] += x.storage_offset()
    options: Any = {"channels_first": case.channels_first, "backend": "torch"}
    shape = patchify(x, ids, case.patch, *case.normal, **options).shape
    pred = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    data = run("mse", TYPES.index(x.dtype), 1, norm, *arguments, stdin=(*sent, pred.detach(), memory(x)))
    distances, gradients = tensor(data, torch.float32).split([ids.numel(), pred.numel()])
    loss = masked_mse(pred, x, ids, case.patch, *case.normal, norm_pix=norm, **options)
    torch.testing.assert_close(distances.double().sum() / pred.numel(), loss.detach().double(), rtol=2.0**-20, atol=0)
    (expected,) = torch.autograd.grad(loss, pred)
    slack = 2.0**-20 * float(expected.abs().max())
    torch.testing.assert_close(gradients.view_as(expected), expected, rtol=0, atol=slack)
