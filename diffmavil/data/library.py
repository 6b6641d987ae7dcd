"""The boundary to the decoding library: whatever PyAV or libav raises for one file is a bad clip, and nothing else is.

For damaged files that is more than `FFmpegError`: a stream that appears in the middle of a file ends PyAV's reading in
an IndexError, a stream without a decoder is an AttributeError, a text that is not UTF-8 a UnicodeDecodeError. So the
line is drawn around the calls, not by the class of the error; a fault of our own outside those calls is not hidden.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import av
import av.error
import av.logging
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream

from diffmavil.data.awake import awake_seconds

# libav writes a line for every damaged packet; what matters reaches the user as BadClip.
av.logging.set_level(None)
av.logging.set_libav_level(av.logging.PANIC)

FFMPEG_9 = int(av.__version__.partition(".")[0]) >= 19
"""Whether the library is FFmpeg 9, which PyAV 19 brings."""

# PyAV 19 reads tags of any bytes, and no longer takes this.
_TAGS: dict[str, Any] = {} if FFMPEG_9 else {"metadata_errors": "replace"}

UNREADABLE = "cannot be read"
"""How the reason begins for a clip whose storage fails: the clip itself may be fine."""
_STORAGE = (errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EREMOTEIO)
"""What a mount says when its server or disk is gone; libav says none of these of its own."""
_CHUNK = 1 << 20


class BadClip(Exception):
    """A clip that cannot be used, and why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Deadline:
    """Seconds that a clip may take, while the process runs; looked at between packets and between frames."""

    def __init__(self, seconds: float, name: str) -> None:
        self.seconds = seconds
        self.name = name
        self._end = awake_seconds() + seconds

    @property
    def left(self) -> float:
        """Seconds until it is over; negative: since then."""
        return self._end - awake_seconds()

    def check(self) -> None:
        """Raises `BadClip` when it is over."""
        if self.left < 0:
            raise BadClip(self.name, f"not decoded within the deadline of {self.seconds:g} s")


class Paused(Exception):
    """The library gave up reading, by a clock that went on while the process was suspended: read it again."""


def reason_of(error: Exception, path: str) -> str:
    """Why the file `path` cannot be used, by what was raised for it ("": it lies in memory)."""
    why = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"{UNREADABLE if _storage_fails(error, path) else 'cannot be decoded'}: {why}"


def _storage_fails(error: Exception, path: str) -> bool:
    code = getattr(error, "errno", None)
    if code != errno.EIO:
        return code in _STORAGE
    # libav says this of a Matroska file cut off in its header too. Whether the disk says it, reading tells.
    try:
        with open(path, "rb", buffering=0) as file:
            while file.read(_CHUNK):
                pass
    except OSError as found:
        return found.errno == errno.EIO or found.errno in _STORAGE
    return False


@contextmanager
def library_errors(name: str = "", path: str = "") -> Iterator[None]:
    """Around calls of PyAV: what they raise becomes `BadClip` of the clip `name` ("": whoever knows it puts it in).

    `path`: the file that is read; "": none is.
    """
    try:
        yield
    except BadClip:
        raise
    except Exception as error:
        raise BadClip(name, reason_of(error, path)) from error


def open_container(source: Any, deadline: Deadline, form: str | None = None) -> InputContainer:
    """Open a path or a file object for reading; `form`: the container's format, None: as its bytes say.

    Of a path, the opening may take what is left of the deadline, and so may each packet. Tags play no part here, so one
    that is not UTF-8 does no harm.

    Raises:
        BadClip: it cannot be opened, or not by the deadline.
    """
    if not isinstance(source, str):  # what lies in memory keeps nobody waiting
        with library_errors(deadline.name):
            return cast("InputContainer", av.open(source, "r", format=form, **_TAGS))
    while True:
        deadline.check()
        begin, left = time.monotonic(), max(0.0, deadline.left)
        with library_errors(deadline.name, source), suppress(av.error.ExitError):
            container = av.open(source, "r", format=form, timeout=(left, left), **_TAGS)
            if time.monotonic() - begin < left:
                return cast("InputContainer", container)
            container.close()  # its search for streams may have been cut short, of which nothing is said


def packets_of(container: InputContainer, deadline: Deadline, *streams: Stream) -> Iterator[Packet]:
    """Packets with content of the streams, until the end of the file, or until where it is cut off or damaged.

    Raises:
        BadClip: the storage fails, or the deadline is over.
        Paused: the process was suspended.
    """
    packets = container.demux(*streams)
    while True:
        try:
            packet = next(packets)
        except av.error.ExitError:
            deadline.check()
            raise Paused from None
        except Exception as error:
            if (reason := reason_of(error, container.name)).startswith(UNREADABLE):
                raise BadClip(deadline.name, reason) from error
            # The file's end, or whatever the library makes of damage (`StopIteration` is one of them).
            return
        deadline.check()
        if packet.size:
            yield packet
