"""The same work on a Ray cluster: Ray Data hands out items, each task does them as a process here would."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diffmavil.data.prepare.crew import Crew
from diffmavil.data.prepare.items import Item
from diffmavil.data.prepare.work import Worker

_TOGETHER = 8
"""Items of a task."""


def ray_available() -> str | None:
    """None, or why Ray Data cannot be used."""
    try:
        import ray.data  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        return f"needs Ray Data, pip install 'ray[data]' ({error})"
    return None


def run_on_ray(worker: Worker, items: list[Item], address: str) -> Iterator[Item]:
    """Do all items on the cluster at `address` ("local": started here); gives each when it is done, in any order.

    OUT must be a folder that all machines see. Every task keeps a process of its own for the decoding, so deadlines and
    crashes are treated as on one machine.
    """
    import ray  # pyright: ignore[reportMissingImports]
    import ray.data  # pyright: ignore[reportMissingImports]

    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False, include_dashboard=False)
    by_number = {item.number: item for item in items}

    def do(batch: dict[str, Any]) -> dict[str, Any]:
        with Crew(worker, 1) as crew:
            return {"number": [item.number for item in crew.run(by_number[int(n)] for n in batch["number"])]}

    blocks = max(1, len(items) // _TOGETHER)
    numbers = ray.data.from_items([{"number": n} for n in by_number], override_num_blocks=blocks)
    for row in numbers.map_batches(do, batch_size=_TOGETHER).iter_rows():
        yield by_number[int(row["number"])]
