"""What decodes the picture of a clip: PyAV always, torchcodec or DALI where they are installed.

All of them choose the same frames, by their times, and the same crop. PyAV and torchcodec work in the decoding
processes, one clip at a time. DALI takes whole batches on the training device, so the decoding processes leave it the
coded picture (`Later`) and do the rest. Sound is PyAV's everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from diffmavil.config import DecoderName, Modalities
from diffmavil.data.clips import Clip
from diffmavil.data.frames import Painter
from diffmavil.data.transforms import Framing

if TYPE_CHECKING:
    from av.packet import Packet

    from diffmavil.data.media import Media
    from diffmavil.data.windows import Span

_NEEDS = {"torchcodec": "torchcodec.decoders", "dali": "nvidia.dali"}
_INSTALL = {
    "torchcodec": "pip install torchcodec, of the version that belongs to torch, and FFmpeg's shared libraries",
    "dali": "pip install nvidia-dali-cuda130==2.0.0",
}


@dataclass(frozen=True)
class Later:
    """The picture of a clip, to be decoded with its batch.

    Attributes:
        mp4: the whole coded picture.
        frames: int32 `[T]`, numbers of the frames shown.
        framing: how they are drawn.
        width, height: pixels of the coded picture.
    """

    mp4: bytes
    frames: np.ndarray
    framing: Framing
    width: int
    height: int


def missing(decoder: DecoderName) -> str | None:
    """None, or why a decoder cannot be used here."""
    if decoder == "pyav":
        return None
    try:
        import_module(_NEEDS[decoder])
    except (ImportError, RuntimeError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"{_INSTALL[decoder]} ({reason})"
    return None


def choose_decoder(
    wanted: Literal["pyav", "torchcodec", "dali", "auto"],
    clips: Sequence[Clip],
    device: torch.device,
    modalities: Modalities = "av",
) -> DecoderName:
    """The decoder for these clips on this device; of sound alone always pyav, which decodes all sound.

    Raises:
        ValueError: the one wanted cannot be used here, or the clips are plain files.
    """
    if modalities == "audio":
        return "pyav"
    prepared = all(clip.stored is not None for clip in clips)
    if wanted == "auto":
        if prepared and device.type == "cuda" and missing("dali") is None:
            return "dali"
        return "torchcodec" if prepared and missing("torchcodec") is None else "pyav"
    if wanted != "pyav" and not prepared:
        raise ValueError(f"data.decoder={wanted!r}: must be 'pyav' for clips that are not prepared")
    if why := missing(wanted):
        raise ValueError(f"data.decoder={wanted!r}: needs {why}")
    return wanted


def painter_of(decoder: DecoderName) -> type[Painter]:
    """What draws the frames in a decoding process."""
    if decoder == "torchcodec":
        from diffmavil.data.decoders.torchcodec import TorchcodecPainter

        return TorchcodecPainter
    return LaterPainter if decoder == "dali" else Painter


class LaterPainter(Painter):
    """Leaves the picture coded, and says which frames are shown."""

    def frames(self, media: Media, packets: list[Packet], window: Span) -> Later:  # type: ignore[override]
        stamps = np.array([entry.timestamp for entry in media.video.index_entries]) * float(media.video.time_base or 0)
        shown = np.clip(np.searchsorted(stamps, self.times(window), side="right") - 1, 0, len(stamps) - 1)
        width, height = media.video.width, media.video.height
        return Later(media.coded_picture, shown.astype(np.int32), self.framing(width, height), width, height)
