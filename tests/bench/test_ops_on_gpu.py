"""On a GPU: every op and its gradients at the shapes of base models against float64, in every dtype."""

from __future__ import annotations

import pytest
import torch

from benchmarks.cases import CASES
from benchmarks.check import complaint, expected
from benchmarks.problems import PROBLEMS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SHAPES = [
    ("base-16-frames", torch.float32),
    ("base-16-frames", torch.bfloat16),
    ("base-16-frames", torch.float16),
    ("base-audio", torch.bfloat16),
    ("image-224", torch.bfloat16),
]


@pytest.mark.parametrize(("case", "dtype"), SHAPES, ids=[f"{case}-{str(dtype)[6:]}" for case, dtype in SHAPES])
@pytest.mark.parametrize("op", PROBLEMS)
def test_ours_is_right_on_a_gpu(op: str, case: str, dtype: torch.dtype):
    batch = 320 if op == "info_nce" else 3
    problem = PROBLEMS[op](CASES[case], batch, torch.device("cuda"), dtype, seed=5)
    assert complaint(problem, lambda p: p.ours(), expected(problem)) is None


@pytest.mark.parametrize("op", [op for op, kind in PROBLEMS.items() if kind.random])
def test_masks_and_noise_are_those_of_the_cpu(op: str):
    outputs = []
    for device in ("cpu", "cuda"):
        problem = PROBLEMS[op](CASES["tiny"], 2, torch.device("cpu"), torch.float32)
        for name, value in vars(problem).items():
            if isinstance(value, torch.Tensor):
                setattr(problem, name, value.detach().to(device))
        out = problem.ours()
        outputs.append(out if isinstance(out, torch.Tensor) else out[0])
    torch.testing.assert_close(outputs[1].cpu(), outputs[0], rtol=1e-4, atol=1e-4)
