"""Memory of a training process: the C heap on a CPU, and a full GPU."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from diffmavil.config.errors import RunError

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # <malloc.h>
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let the process keep memory that it frees, for its next step, instead of returning it to the kernel.

    glibc returns large blocks as soon as they are freed. A step frees all its activations, and the next one then waits
    for the kernel to clear every page again: 5 to 15 % of a step of `diffmavil-tiny`, measured on two cores.
    Other C libraries are left as they are.

    Returns:
        Whether it was done.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(*setting) for setting in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _LARGEST), (_M_TOP_PAD, 2**28)))


@contextmanager
def full_gpu_told() -> Iterator[None]:
    """Raise `RunError`, which says what to change, instead of torch's error for a full GPU. Also a decorator."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunError(
            "the memory of the GPU is full. Less is taken by a step in several passes (--batch.memory-gib, in "
            "pretraining), by --train.recompute and by a smaller --train.batch-size. torch says: "
            + str(error).partition("\n")[0]
        ) from error
