"""`python -m maekernels`: show versions, which backends run here and why others do not, and check every op.

Exit code 0 if every op agrees with its reference, 1 otherwise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from maekernels import _environment, _selfcheck


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m maekernels", description=(__doc__ or "").partition(": ")[2].strip())
    parser.parse_args(arguments)

    for what, version in _environment.versions():
        print(f"{what:<13}{version}")

    print("\nBackends")
    here = _environment.backends()
    for backend in here:
        print(f"  {backend.name:<13}{f'no: {backend.problem}' if backend.problem else f'yes: {backend.serves}'}")

    wrong = sum(_check(device) for device in _devices())
    print(f"\n{wrong} of these disagree: please report this whole text." if wrong else "\nEvery op agrees.")

    remedies = [backend for backend in here if backend.remedy]
    if remedies:
        print("\nWhat would give more")
        for backend in remedies:
            print(f"  {backend.name:<13}{backend.remedy}\n{'':<15}for {backend.serves}")
    return int(wrong > 0)


def _devices() -> list[torch.device]:
    return [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]


def _check(device: torch.device) -> int:
    """Print a line for every op and backend on a device; returns the number of wrong results."""
    print(f"\nOps on {device.type}: largest difference from the reference in float64, of values and gradients")
    wrong = 0
    for result in _selfcheck.run(device):
        verdict = "" if result.right else f"  DISAGREES: {result.error or f'more than {_selfcheck.TOLERANCE:g}'}"
        print(f"  {result.op:<17}{result.backend:<9}{result.difference:8.1e}{verdict}", flush=True)
        wrong += not result.right
    return wrong


if __name__ == "__main__":
    sys.exit(main())
