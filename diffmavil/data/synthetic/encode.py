"""One synthetic clip to a file: H.264 and AAC in mp4, the same bytes each time."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

# Cheap to decode: no CABAC, no in-loop filter, no B frames. The same bytes each time: one thread; and no macroblock
# tree, with which x264 (build 165, AVX-512, frames of 7 x 7 macroblocks) codes the last macroblock of a frame
# differently now and then.
_X264 = {
    "preset": "veryfast",
    "tune": "fastdecode",
    "crf": "33",
    "bf": "0",
    "threads": "1",
    "mbtree": "0",
    "rc-lookahead": "0",
}
_AAC = {"aac_coder": "fast", "cutoff": "8000"}
_GOP = 16
_AUDIO_BITS = 32_000


def encode_clip(path: Path, video: np.ndarray, fps: int, wave: np.ndarray, rate: int) -> None:
    """Write uint8 frames `[T, H, W, 3]` at `fps` and a float32 mono waveform `[S]` at `rate` as mp4."""
    with av.open(str(path), "w", format="mp4") as container:
        picture = container.add_stream("libx264", rate=fps, options=_X264)
        picture.height, picture.width = video.shape[1:3]
        picture.pix_fmt = "yuv420p"
        picture.gop_size = _GOP
        sound = container.add_stream("aac", rate=rate, layout="mono", options=_AAC)
        sound.bit_rate = _AUDIO_BITS
        for index, pixels in enumerate(video):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        samples = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        samples.sample_rate, samples.pts, samples.time_base = rate, 0, Fraction(1, rate)
        container.mux(sound.encode(samples))
        container.mux(sound.encode(None))
