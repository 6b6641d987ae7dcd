"""Locks that processes hold on a folder, on any machines that see it; the kernel lets go of those of a killed one."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from diffmavil.config.errors import CannotWrite

_UNKNOWN = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What file systems without such locks answer."""


class Held(Exception):
    """Another process holds the lock.

    Attributes:
        holder: that process, as text.
        part: of `hold_part`: the part that it does, i of n.
    """

    def __init__(self, holder: str, part: tuple[int, int] = (0, 1)) -> None:
        super().__init__(holder)
        self.holder, self.part = holder, part


@contextmanager
def hold_part(folder: Path, name: str, part: int, parts: int) -> Iterator[bool]:
    """Hold the lock of a part of some work: of its pieces p those with p % parts == part. False: as of `hold`.

    Raises:
        Held: another process does a part that has pieces in common with this one, by the same or another division.
        CannotWrite: a lock cannot be had.
    """
    with ExitStack() as held:
        with hold(folder / f"{name}s.lock", wait=True):  # of two that look at once, both would give up, or neither see
            for lock in folder.glob(f"{name}-*-of-*.lock"):
                other, of = map(int, lock.stem.removeprefix(f"{name}-").split("-of-"))
                if (other - part) % math.gcd(of, parts) == 0:
                    try:
                        with hold(lock, wait=False):
                            pass
                    except Held as error:
                        raise Held(error.holder, (other, of)) from None
            locked = held.enter_context(hold(folder / f"{name}-{part}-of-{parts}.lock", wait=False))
        yield locked


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
