"""DALI: a batch of coded pictures to pixels on the training device.

One graph for both devices: video decoding is "cpu" or "mixed" (NVDEC), nothing else differs. DALI 2.0.0 is the last
release whose CPU build decodes H.264, so that the graph can be tested without a GPU. It ignores rotation and reads no
AAC: prepared clips are upright, and their sound is decoded elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types  # pyright: ignore[reportMissingImports]

from diffmavil.config import VideoConfig
from diffmavil.data.decoders import Later


class DaliDecoder:
    """Callable: clips -> uint8 `[B, T, size, size, 3]` on `device`, handed over by DLPack without a copy to the host.

    Args:
        most: clips of a batch at most.
        threads: of DALI's own.
    """

    def __init__(self, video: VideoConfig, device: torch.device, most: int, threads: int = 4) -> None:
        self.video = video
        on_gpu = device.type == "cuda"
        build: Any = _graph  # the decorator adds parameters
        self.pipe: Any = build(
            where="mixed" if on_gpu else "cpu",
            size=video.size,
            batch_size=most,
            num_threads=threads,
            device_id=(device.index or 0) if on_gpu else None,
            # Outputs are then buffers of their own, which live as long as the tensor made of them.
            exec_dynamic=True,
            prefetch_queue_depth=1,
        )
        self.pipe.build()

    def __call__(self, clips: Sequence[Later]) -> torch.Tensor:
        corners = [_corners(clip) for clip in clips]
        self.pipe.feed_input("coded", [np.frombuffer(clip.mp4, np.uint8) for clip in clips])
        self.pipe.feed_input("frames", [clip.frames for clip in clips])
        self.pipe.feed_input("start", [start for start, _ in corners])
        self.pipe.feed_input("end", [end for _, end in corners])
        (pictures,) = self.pipe.run()
        return torch.from_dlpack(pictures.as_tensor())


@pipeline_def
def _graph(where: str, size: int) -> Any:
    coded = fn.external_source(name="coded", dtype=types.UINT8, ndim=1)
    frames = fn.external_source(name="frames", dtype=types.INT32, ndim=1)
    start = fn.external_source(name="start", dtype=types.FLOAT, ndim=1)
    end = fn.external_source(name="end", dtype=types.FLOAT, ndim=1)
    pictures = fn.decoders.video(coded, device=where, frames=frames)
    # Nearest to swscale's area averaging: linear to enlarge; to shrink, a Gaussian as wide as the box of source pixels.
    # A triangle is twice as wide and differs by twice as much, Lanczos and cubic ring.
    return fn.resize(
        pictures, size=[size, size], roi_start=start, roi_end=end, antialias=True,
        mag_filter=types.INTERP_LINEAR, min_filter=types.INTERP_GAUSSIAN,
    )  # fmt: skip


def _corners(clip: Later) -> tuple[np.ndarray, np.ndarray]:
    """The kept square as (y, x) of two corners in pixels of the coded picture; a mirrored one has its x swapped."""
    framing = clip.framing
    across, down = clip.width / framing.width, clip.height / framing.height
    left, right = framing.left * across, (framing.left + framing.size) * across
    top, bottom = framing.top * down, (framing.top + framing.size) * down
    if framing.flip:
        left, right = right, left
    return np.array([top, left], np.float32), np.array([bottom, right], np.float32)
