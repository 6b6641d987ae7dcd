"""Lines of results: one JSON object each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; none if it does not exist.

    Raises:
        ValueError: a line that is no JSON, as a full disk leaves it; with its number.
    """
    found = []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: must be JSON ({error})") from None
    return found
