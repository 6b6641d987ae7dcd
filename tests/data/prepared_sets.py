"""Small prepared sets, made in this process, for the tests of preparing and of shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from clip_files import numbered, write_clip

from diffmavil.data.prepare.items import read_catalog
from diffmavil.data.prepare.layout import Layout, unfinished
from diffmavil.data.prepare.pack import finish, pack_shard
from diffmavil.data.prepare.settings import Settings
from diffmavil.data.prepare.work import Worker
from diffmavil.data.shards.index import Description

DEADLINE = 60.0


def layout_of(src: Path, out: Path, *, table: Path | None = None, **settings) -> Layout:
    wanted = Settings(**settings)
    layout = Layout(out, read_catalog(src, table, modalities=wanted.modalities), wanted)
    layout.claim()
    return layout


def work_through(layout: Layout) -> Description:
    """What the command does, one item after the other."""
    worker = Worker(layout.settings, layout.state, DEADLINE)
    for shard in list(unfinished(layout, 0, 1)):
        for item in layout.items(shard):
            if not worker.done(item).exists():
                worker(item)
        pack_shard(layout, shard)
    return finish(layout)


def prepare_here(src: Path, out: Path, **settings) -> Description:
    return work_through(layout_of(src, out, **settings))


def write_clips(root: Path, count: int, seconds: float = 1.2, longer: int = 800) -> Path:
    """Clips that differ in sound and picture, in two classes; their sound is `longer` samples longer."""
    rng = np.random.default_rng(0)
    for index in range(count):
        path = root / f"class{index % 2}" / f"{index:02}.mkv"
        path.parent.mkdir(parents=True, exist_ok=True)
        sound = 0.1 * rng.standard_normal(round(16_000 * seconds) + longer)
        paint = numbered(48, 48)  # square: a centre crop shows the whole number
        write_clip(
            path, paint=lambda i, k=index, p=paint: p(i + 20 * k), seconds=seconds, sound=sound,
            codecs=("libx264", "flac"),
        )  # fmt: skip
    return root


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a prepared set; the folder of states may differ in its locks alone."""
    files = [path for path in out.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}
