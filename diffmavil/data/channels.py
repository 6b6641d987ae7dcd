"""The channels of sound frames as arrays, however many there are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler

from diffmavil.data.library import BadClip, library_errors

_MOST_PLANES = 7
"""PyAV counts the planes of a frame up to a null pointer, and behind the eighth libav has none: reading them there ends
the process. A frame of more planes is packed into one before anybody looks at them."""
LOUDEST = 100.0
"""What a sample may reach where full scale is 1: 40 dB more than any recorder writes."""


def require_sound(wave: np.ndarray) -> None:
    """Raises `BadClip` for float32 samples that are no sound: not finite, or beyond `LOUDEST`.

    Refused, not clipped: it is damage, or numbers of another scale, and what clipping made of it would be noise at full
    level that nobody hears of.
    """
    with np.errstate(invalid="ignore"):
        peak = float(np.abs(wave).max(initial=0.0))
    if not np.isfinite(peak):
        raise BadClip("", f"its sound has {np.count_nonzero(~np.isfinite(wave))} samples that are NaN or infinite")
    if peak > LOUDEST:
        raise BadClip("", f"its sound reaches {peak:.3g} where full scale is 1: at most {LOUDEST:g} is allowed")


class ChannelReader:
    """Frames of one format, as the first, to arrays.

    Attributes:
        dtype: of the arrays: float32, full scale 1; or int16, for the 16 bits of one channel that prepared clips have,
            which become floats all at once.
    """

    def __init__(self, first: AudioFrame) -> None:
        form, count = first.format.name, first.layout.nb_channels
        self.dtype = np.dtype(np.int16 if (form, count) == ("s16", 1) else np.float32)
        wanted = "fltp" if count <= _MOST_PLANES else "flt"
        # libav's own mono is 3 dB louder for two equal channels than for one: only the format is changed.
        self._converter = None if self.dtype == np.int16 or form == wanted else AudioResampler(format=wanted)

    def __call__(self, frame: AudioFrame) -> Iterator[list[np.ndarray]]:
        """Lists of arrays `[n]`, one for each channel, which share the frame's memory where they can."""
        with library_errors():
            pieces = [frame] if self._converter is None else self._converter.resample(frame)
        for piece in pieces:
            if not piece.samples:
                continue
            count = piece.layout.nb_channels
            with library_errors():
                planes = piece.planes
                if piece.format.is_planar or count == 1:
                    # `to_ndarray` makes three arrays and a copy of each frame: a tenth of a short clip's decoding.
                    channels = [np.frombuffer(memoryview(plane), self.dtype, piece.samples) for plane in planes]
                else:
                    whole = np.frombuffer(memoryview(planes[0]), self.dtype, piece.samples * count)
                    channels = list(whole.reshape(-1, count).T)
            yield channels
