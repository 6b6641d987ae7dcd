"""Write features of a set into files: `python -m diffmavil.extract SRC OUT --from RUN`, or with `--scores` the class
scores of a fine-tuned model. `diffmavil.read_features(OUT)` reads them.

SRC is anything that `data.root` accepts in training: a folder, a CSV, a prepared set or its URL. The command can be
stopped at any time: run again, it resumes. Several GPUs: `torchrun --standalone --nproc-per-node N -m diffmavil.extract
...`; several machines that see the same folders: `--shard i/n`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from rich.table import Table
from tyro.conf import Positional, arg

from diffmavil.config import Config, FinetuneConfig, Modalities, require
from diffmavil.config.cli import parse_flags, run_main
from diffmavil.config.errors import CannotWrite, RunError, usage_errors
from diffmavil.config.folders import check_writable
from diffmavil.config.progress import open_console
from diffmavil.data.dataset import make_reader
from diffmavil.data.sources import read_set
from diffmavil.evaluation.embed import Embedder, load
from diffmavil.evaluation.extraction import Extraction, Wanted, pooled_kinds
from diffmavil.evaluation.feature_files import BAD_FILE, PREDICTIONS_FILE, parquet_missing
from diffmavil.evaluation.pretrained import fingerprint
from diffmavil.training.distributed import World, world

_PRECISIONS = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Options:
    """Write the features of every clip of a set into files, or a classifier's scores."""

    src: Positional[Annotated[str | None, arg(metavar="SRC")]] = None
    """Folder of videos or audio files, CSV (path,start,duration,labels), prepared folder or its URL."""
    out: Positional[Annotated[Path | None, arg(metavar="OUT")]] = None
    """Folder for the features: new, empty, or begun earlier."""
    source: Annotated[str | None, arg(name="from", metavar="RUN")] = None
    """Required. Model to use: a run folder, its weights or a checkpoint, or owner/name on the Hugging Face Hub."""
    modalities: Literal["auto", "av", "audio", "video"] = "auto"
    """Modalities to use. auto: those that the model was trained on; audio, video: that encoder alone."""
    scores: bool = False
    """For a fine-tuned model: write class scores instead of features, and a table, predictions.csv."""
    windows: int | None = None
    """Number of the model's windows (of some seconds), evenly spread over a clip. Default: 1, the centre; with --scores
    as many as the run was scored with (head.crops)."""
    hop: float | None = None
    """Seconds between windows from a clip's start to its end, instead of --windows."""
    kinds: tuple[Literal["audio", "video", "fused"], ...] = ()
    """Pooled features to keep. Default: all available."""
    layers: tuple[str, ...] = ()
    """Encoder blocks to read as well: numbers from 0, negative from the end, or all."""
    tokens: bool = False
    """Also keep every token, not only means: a thousand times as much data."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type in which Linear layers and attention compute. auto: as in training."""
    saved: Literal["float32", "float16", "bfloat16"] = "float32"
    """Data type of the features in the files."""
    format: Literal["safetensors", "parquet"] = "safetensors"
    """File format of the parts; parquet needs pyarrow. `diffmavil.read_features` reads both."""
    part: int = 256
    """Clips per file, which is written when all of them are done: a killed command loses one or two files' work."""
    batch_size: int = 32
    """Windows per forward pass."""
    workers: int = 2
    """Decoding processes per GPU; 0: decode in the main process."""
    shard: str = "0/1"
    """i/n: only shard i of n, counted from 0; for n machines that see the same folders."""
    retry_bad: bool = False
    """Retry the clips that could not be used, such as files downloaded or fixed since."""
    max_bad_share: float | None = None
    """Stop when more than this fraction of the clips tried could not be used. Default: the run's data.max_bad_share."""
    device: str | None = None
    """Device. Default: a GPU for each process, or else the CPU."""

    def __post_init__(self) -> None:
        given = {"SRC": self.src, "OUT": self.out, "--from": self.source}
        missing = [name for name, value in given.items() if value is None]
        if missing:
            use = "python -m diffmavil.extract SRC OUT --from RUN"
            raise ValueError(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} needed: {use}")
        require(self.part >= 1, "--part", self.part, ">= 1")
        require(self.batch_size >= 1, "--batch-size", self.batch_size, ">= 1")
        require(self.workers >= 0, "--workers", self.workers, ">= 0")
        share = self.max_bad_share
        require(share is None or 0 <= share <= 1, "--max-bad-share", share, "in [0, 1]")
        told = {"--kinds": self.kinds, "--layers": self.layers, "--tokens": self.tokens}
        for name, value in told.items():
            require(not self.scores or not value, name, value, "left out beside --scores, which keeps no features")
        ranked = not self.scores or self.saved != "bfloat16"
        require(ranked, "--saved", self.saved, "float32 or float16 with --scores: many would be equal")
        plain = self.format == "safetensors" or self.saved != "bfloat16"
        require(plain, "--saved", self.saved, "float32 or float16 in parquet")
        _ = self.place

    @property
    def place(self) -> tuple[int, int]:
        """(i, n) of `shard`."""
        first, _, second = self.shard.partition("/")
        ok = first.isdigit() and second.isdigit() and int(first) < int(second)
        require(ok, "--shard", self.shard, "i/n with 0 <= i < n")
        return int(first), int(second)

    @property
    def blocks(self) -> tuple[int, ...] | Literal["all"]:
        """`layers` in the form that `Embedder.blocks` takes."""
        if self.layers == ("all",):
            return "all"
        numbers = [text for text in self.layers if not text.removeprefix("-").isdigit()]
        require(not numbers, "--layers", " ".join(self.layers), "numbers of encoder blocks, or all")
        return tuple(int(text) for text in self.layers)


def main(argv: Sequence[str]) -> None:
    console = open_console()
    with usage_errors():
        options = parse_flags(Options, argv, prog="python -m diffmavil.extract")
    try:
        with world() as peers:
            with usage_errors():
                model = peers.main_first(lambda: open_embedder(options, peers))
                job = peers.main_first(lambda: prepare(options, model, peers))
            if peers.main:
                console.print(f"{job.clips.note}: {len(job.missing)} of {job.parts} parts to do")
            reader = make_reader(narrowed(model, job.wanted.modalities))
            job.run(model, reader, options.batch_size, options.workers, console if peers.main else None)
            peers.barrier()
            if peers.main:
                finish(job, model, options)
    except CannotWrite as error:
        raise RunError(f"cannot write {error}; nothing done is lost, the same command goes on") from error
    except KeyboardInterrupt:
        raise RunError("stopped; the parts that are done are kept, the same command goes on") from None


def open_embedder(options: Options, peers: World) -> Embedder:
    """Load the model. Raises `ValueError` for missing weights, and formats or data types not available here."""
    why = parquet_missing() if options.format == "parquet" else None
    if why:
        raise ValueError(f"--format=parquet: {why}")
    assert options.source is not None
    device = options.device or peers.device
    return load(options.source, device=device, dtype=_PRECISIONS[options.precision])


def prepare(options: Options, model: Embedder, peers: World) -> Extraction:
    """The work to do, and a folder for it. Raises `ValueError` for options that do not fit model, set or folder."""
    assert options.src is not None
    assert options.out is not None
    modalities = model.modalities if options.modalities == "auto" else options.modalities
    there = f"{model.modalities}: the model has nothing else"
    require(model.modalities in ("av", modalities), "--modalities", modalities, there)
    if options.scores:
        require(isinstance(model.config, FinetuneConfig), "--scores", str(model.weights), "asked of a fine-tuned model")
        all_of_it = f"{model.modalities}: a classifier needs all that it was trained on"
        require(modalities == model.modalities, "--modalities", modalities, all_of_it)
    wanted = Wanted(
        modalities=modalities,
        kinds=() if options.scores else pooled_kinds(modalities, options.kinds),
        windows=_windows(options, model.config),
        hop=options.hop,
        layers=model.blocks(options.blocks),
        tokens=options.tokens,
        precision=str(model.dtype).removeprefix("torch."),
        saved=options.saved,
        format=options.format,
        part_clips=options.part,
        scores=options.scores,
    )
    _ = wanted.look  # runs its checks
    clips = read_set(narrowed(model, modalities), options.src, "SRC", "--modalities")
    share = model.config.data.max_bad_share if options.max_bad_share is None else options.max_bad_share
    part, of = options.place
    check_writable("OUT", options.out)
    job = Extraction(
        options.out,
        clips,
        wanted,
        fingerprint(model.weights),
        share,
        # Splits only the parts of this shard, so that shards may have different numbers of processes.
        part=part + of * peers.rank,
        of=of * peers.size,
        retry_bad=options.retry_bad,
        answers=tuple(model.config.head.classes) if isinstance(model.config, FinetuneConfig) else (),
    )
    job.claim()
    return job


def _windows(options: Options, config: Config) -> int:
    if options.windows is not None:
        return options.windows
    crops = options.scores and options.hop is None and isinstance(config, FinetuneConfig)
    return config.head.crops if crops else 1  # type: ignore[attr-defined]  # of a FinetuneConfig


def narrowed(model: Embedder, modalities: Modalities) -> Config:
    """The model's config, for reading only these modalities of the data."""
    return replace(model.config, model=replace(model.config.model, modalities=modalities))


def finish(job: Extraction, model: Embedder, options: Options) -> None:
    """Print a summary of the set, if no other shard is missing. Raises `RunError` when no clip could be used."""
    console = open_console()
    if job.missing:
        console.print(f"share {options.shard} is done; {len(job.missing)} of {job.parts} parts are left to others")
        return
    facts, width = job.finish(), model.config.model.encoder.width
    kept = ", ".join(f"{kind} {width * (1 + (kind == 'fused'))}" for kind in job.wanted.kinds)
    if job.wanted.scores:
        kept = f"{len(job.answers)} classes, the most likely ones in {PREDICTIONS_FILE}"
    table = Table(title=str(job.out), show_header=False)
    rows = {
        "clips": f"{facts['used']:,} of {len(job.clips):,}",
        "bad": f"{facts['bad']:,}, named in {BAD_FILE}" if facts["bad"] else "0",
        "windows": f"{facts['rows']:,}",
        "scores" if job.wanted.scores else "features": kept,
        "bytes": f"{facts['bytes']:,} in {job.parts:,} parts",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    if not facts["used"]:
        raise RunError(f"no clip could be used; {job.out / BAD_FILE} says why")


if __name__ == "__main__":
    run_main(main)
