"""torchcodec in the decoding processes; frames are chosen by their exact times, as everywhere."""

from __future__ import annotations

import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

from diffmavil.data.frames import Painter, draw
from diffmavil.data.media import BadClip, Media
from diffmavil.data.shape import UPRIGHT
from diffmavil.data.windows import Span


class TorchcodecPainter(Painter):
    """Decodes with torchcodec, draws as PyAV's painter does."""

    def frames(self, media: Media, packets: list[Packet], window: Span) -> np.ndarray | None:
        try:
            decoder = VideoDecoder(media.coded_picture, dimension_order="NHWC", num_ffmpeg_threads=1)
            metadata = decoder.metadata
            first, end = metadata.begin_stream_seconds or 0.0, metadata.end_stream_seconds or 0.0
            times = np.clip(self.times(window), first, end - 1e-6)
            found = decoder.get_frames_played_at(times.tolist()).data.numpy()
        except (RuntimeError, ValueError, IndexError) as error:
            raise BadClip("", f"torchcodec cannot decode it: {error}") from error
        out = self.canvas(len(found))
        for index, picture in enumerate(found):
            draw(out[index], self.paint(VideoFrame.from_ndarray(picture, format="rgb24"), UPRIGHT))
        return out
