"""The boundary to the decoding library: whatever PyAV or libav raises for one file is a bad clip, and nothing else is.

For damaged files that is more than `FFmpegError`: a stream that appears in the middle of a file ends PyAV's reading in
an IndexError, a stream without a decoder is an AttributeError, a text that is not UTF-8 a UnicodeDecodeError. So the
line is drawn around the calls, not by the class of the error; a fault of our own outside those calls is not hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import av
import av.logging
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream

# libav writes a line for every damaged packet; what matters reaches the user as BadClip.
av.logging.set_level(None)
av.logging.set_libav_level(av.logging.PANIC)

FFMPEG_9 = int(av.__version__.partition(".")[0]) >= 19
"""Whether the library is FFmpeg 9, which PyAV 19 brings."""

# PyAV 19 reads tags of any bytes, and no longer takes this.
_TAGS: dict[str, Any] = {} if FFMPEG_9 else {"metadata_errors": "replace"}


class BadClip(Exception):
    """A clip that cannot be used, and why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@contextmanager
def library_errors(name: str = "") -> Iterator[None]:
    """Around calls of PyAV: what they raise becomes `BadClip` of the clip `name` ("": whoever knows it puts it in)."""
    try:
        yield
    except BadClip:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadClip(name, f"cannot be decoded: {reason}") from error


def open_container(source: Any, name: str, form: str | None = None) -> InputContainer:
    """Open a path or a file object for reading; `form`: the container's format, None: as its bytes say.

    Raises `BadClip` when it cannot be opened. Tags play no part here, so one that is not UTF-8 does no harm.
    """
    with library_errors(name):
        return cast("InputContainer", av.open(source, "r", format=form, **_TAGS))


def packets_of(container: InputContainer, *streams: Stream) -> Iterator[Packet]:
    """Packets with content of the streams, until the end of the file, or until where it is cut off or damaged."""
    packets = container.demux(*streams)
    while True:
        try:
            packet = next(packets)
        except Exception:
            # The file's end, or whatever the library makes of damage (`StopIteration` is one of them).
            return
        if packet.size:
            yield packet
