"""Whether the storage of the clips fails: then a preparation ends, and does not call thousands of them bad."""

from __future__ import annotations

import json
from pathlib import Path

from diffmavil.config.errors import RunError
from diffmavil.data.library import UNREADABLE

_MOST = 8
"""Files in a row that may fail: a disk has bad places, and one that is lost gives no file at all."""


class Storage:
    """Counts files in a row that cannot be read."""

    def __init__(self) -> None:
        self._failed: set[str] = set()

    def look(self, path: str, outcome: Path) -> None:
        """Count the file `path` of an item by what came of it, as `Worker.leave` writes it.

        Raises:
            RunError: too many in a row.
        """
        reasons = [reason for reason in json.loads(outcome.read_bytes())["bad"] if reason.startswith(UNREADABLE)]
        if not reasons:
            self._failed.clear()
            return
        self._failed.add(path)
        if len(self._failed) >= _MOST:
            raise RunError(
                f"{len(self._failed)} files in a row cannot be read, the last of them {path} ({reasons[0]}); nothing "
                "done is lost: once they can be read, the same command with --retry-bad goes on"
            )
