"""Launch every kernel a few times at small shapes, for compute-sanitizer to watch: nothing is compared here.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python tests/ops/launch_once.py

Without torch's caching every tensor has an allocation of its own, and one element past its end is an error. Shapes are
odd on purpose. `--device cpu` goes through the same calls on a CPU.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

if not __package__:
    root = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(root), str(root / "kernels")]

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

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def calls(device: torch.device) -> Iterator[tuple[str, Callable[[], Tensor], list[Tensor]]]:
    """Name, what launches the forward pass, and what it is then differentiated by."""
    seed = torch.tensor(2**40 + 5, device=device)
    alpha_bar = torch.tensor([0.0, 0.4, 1.0], device=device)
    backends = (None, "triton" if device.type == "cuda" else "torch")
    for length, keep in ((1, 1), (53, 11), (784, 157)):
        groups = (torch.arange(length, device=device) % -(-length // 4))[None]
        for labels, backend in itertools.product((None, groups), backends):
            yield (
                f"random_mask {length} {backend}",
                lambda n=length, k=keep, g=labels, b=backend: random_mask(
                    3, n, k, seed=seed, offset=2**32 - 2, groups=g, backend=b
                ).ids_keep.float(),
                [],
            )
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        for shape, patch in (((3, 4, 24, 36, 3), (2, 8, 12)), ((3, 21, 35), (7, 5)), ((3, 30, 42, 3), (10, 14))):
            mean, std = (MEAN, STD) if shape[-1] == 3 else (MEAN[:1], STD[:1])
            pixels = torch.rand(shape, device=device)
            stored = (pixels * 255).to(torch.uint8) if shape[-1] == 3 else pixels
            wanted = pixels.to(dtype).requires_grad_()
            tokens = patchify_tokens(shape, patch)
            ids = random_mask(3, tokens, tokens // 2, seed=seed).ids_mask
            layout = (patch, mean, std)
            pred = torch.randn(*ids.shape, pixels[0].numel() // tokens, device=device).to(dtype).requires_grad_()
            yield f"patchify {name} {shape}", lambda a=(wanted, ids, *layout, dtype): patchify(*a), [wanted]
            for norm in (False, True, "channel"):
                yield (
                    f"diffuse_patches {name} {shape}",
                    lambda a=(wanted, ids, *layout, alpha_bar, seed, 2**32 - 2, norm, dtype): diffuse_patches(*a),
                    [wanted],
                )
                yield (
                    f"masked_mse {name} {shape}",
                    lambda a=(pred, stored, ids, *layout, norm): masked_mse(*a),
                    [pred],
                )
        for length, keep, dim in ((37, 9, 100), (53, 11, 96), (5, 1, 1)):
            x = torch.randn(3, length, dim, device=device).to(dtype).requires_grad_()
            row = torch.randn(dim, device=device).to(dtype).requires_grad_()
            ids = random_mask(3, length, keep, seed=seed).ids_keep
            yield f"gather_tokens {name} {dim}", lambda a=(x, ids): gather_tokens(*a), [x]
            few = x.detach()[:, :keep].clone().requires_grad_()
            yield f"scatter_tokens {name} {dim}", lambda a=(few, ids, length, row): scatter_tokens(*a), [few, row]
            yield f"add_noise {name} {dim}", lambda a=(x, alpha_bar, seed, 7): add_noise(*a), [x]
        for rows, dim in ((3, 7), (70, 100), (130, 64)):
            a, b = (torch.randn(rows, dim, device=device).to(dtype).requires_grad_() for _ in range(2))
            yield f"info_nce {name} {rows}", lambda a=a, b=b: info_nce(a, b, 0.1), [a, b]


def patchify_tokens(shape: tuple[int, ...], patch: tuple[int, ...]) -> int:
    tokens = 1
    for size, cut in zip(shape[1:], patch, strict=False):
        tokens *= size // cut
    return tokens


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    device = torch.device(parser.parse_args().device)
    count = 0
    for _, forward, leaves in calls(device):
        out = forward()
        if leaves:
            torch.autograd.grad(out, leaves, torch.ones_like(out))
        count += 1
    if device.type == "cuda":
        torch.cuda.synchronize()
    print(f"{count} calls made on {device}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
