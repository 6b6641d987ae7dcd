"""Locks that processes hold on a folder, on any machines that see it; the kernel lets go of those of a killed one."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from diffmavil.config.errors import CannotWrite

_UNKNOWN = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What file systems without such locks answer."""


class Held(Exception):
    """Another process holds the lock; its text says which."""


@contextmanager
def hold(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock of a file, which is made; gives False where the file system knows no locks: nothing is held then.

    Args:
        wait: for another process that holds it, as long as that takes.

    Raises:
        Held: another process holds it; without `wait`.
        CannotWrite: the file cannot be opened or locked.
    """
    try:
        lock = path.open("a+b", buffering=0)
    except OSError as error:
        raise CannotWrite(f"{path}: {error.strerror}") from error
    with lock:
        yield _take(lock, path, wait)


def _take(lock: BinaryIO, path: Path, wait: bool) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise Held(lock.read(200).decode(errors="replace") or "of an older version") from None
    except OSError as error:
        if error.errno in _UNKNOWN:
            return False
        raise CannotWrite(f"{path}: cannot be locked: {error.strerror}") from error
    with suppress(OSError):  # a full disk: it is for messages alone
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
    return True
