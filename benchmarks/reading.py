"""Which features of a pretrained encoder to read: after which block, and pooled how. Linear probes, beside baselines.

    python benchmarks/reading.py runs/grid
    python benchmarks/reading.py runs/grid-0 runs/grid-1 runs/grid-2 --json reading.jsonl
    python benchmarks/reading.py table --json reading.jsonl

Each run's own training clips fit the probes and its own held-out clips score them; --data-root and --eval-root name
others, as in `diffmavil.evaluate`. Clips whose features are not finite are left out. Of each modality: the output of
every block and of the last LayerNorm, as the mean over tokens, as CLS, as both side by side, and what a learnt
attention over the last tokens makes of them; the same of the model untrained; and what needs no model, the mean and
deviation over time of the log-mel, and a mean frame of 8 x 8 pixels.
A line of JSON for each number.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:
    # Run by path: Python puts this folder first, where kernels.py would hide the package `kernels` of the Hub.
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), str(here.parent / "kernels"), *(p for p in sys.path if Path(p).resolve() != here)]

import torch
from einops import rearrange
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from benchmarks.attentive import attentive_accuracy
from benchmarks.identity import identity
from benchmarks.kernels import write
from benchmarks.lines import read
from diffmavil.config import Config
from diffmavil.config.errors import RunError, UsageError
from diffmavil.data.audio import frames_in, make_log_mel
from diffmavil.data.clips import ClipSet
from diffmavil.data.loader import eval_batches
from diffmavil.data.sources import split_source
from diffmavil.evaluation.features import untrained_model
from diffmavil.evaluation.labels import make_targets, score
from diffmavil.evaluation.probe import fit_probe
from diffmavil.model import DiffMAViL
from diffmavil.model.branch import Branch
from diffmavil.model.contrast import pool
from diffmavil.model.embed import all_ids
from diffmavil.model.weights import WEIGHTS_FILE, load_weights
from diffmavil.training.precision import use_bf16

Result = dict[str, Any]
Place = tuple[str, str, str, str]
PLACE = ("model", "modality", "block", "pooling")
"""Names of what a `Place` holds; a model is "trained", "untrained" or "none"."""
NORM = "norm"
PIXELS = 8


class Read(NamedTuple):
    """Every clip of a set, read in every way, nothing masked."""

    features: dict[Place, Tensor]
    """float32 `[N, D]`."""
    tokens: dict[tuple[str, str], tuple[Tensor, Tensor]]
    """Model and modality -> last tokens with CLS, float32 `[N, T, D]`, and which are not padding, bool `[N, T]`."""
    clips: Tensor
    """int64 `[N]`: those that could be decoded."""


@torch.inference_mode()
def read_set(config: Config, models: dict[str, DiffMAViL], clips: ClipSet, batch_size: int) -> Read:
    log_mel = make_log_mel(config.model)
    features, tokens, rows = defaultdict(list), defaultdict(list), []
    bf16 = use_bf16(config, torch.device("cpu"))
    with eval_batches(config, clips, batch_size, 1, torch.device("cpu")) as loader:
        for batch in loader:
            spec = log_mel(batch.wave, batch.wave_valid)
            heard = frames_in(batch.wave_valid, config.model.audio.sample_rate)
            inputs = {"audio": spec, "video": batch.video}
            rows.append(batch.position)
            for name, x in baselines(config, inputs, heard).items():
                features["none", name, "input", "mean"].append(x)
            with torch.autocast("cpu", torch.bfloat16, bf16):
                for model, network in models.items():
                    for name, branch in network.branches.items():
                        real = branch.reached(heard) if name == "audio" else None
                        pooled, last = read_branch(branch, inputs[name], real)
                        for (block, how), x in pooled.items():
                            features[model, name, block, how].append(x)
                        tokens[model, name].append(last)
    whole = {place: torch.cat(parts) for place, parts in features.items()}
    return Read(whole, {key: _joined(parts) for key, parts in tokens.items()}, torch.cat(rows))


def _joined(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([tokens for tokens, _ in parts]), torch.cat([real for _, real in parts])


def read_branch(
    branch: Branch, x: Tensor, real: Tensor | None
) -> tuple[dict[tuple[str, str], Tensor], tuple[Tensor, Tensor]]:
    """Block, numbered from 1 or `NORM`, and pooling -> `[B, D]`; and the last tokens, as in `Read`."""
    ids, cls = all_ids(len(x), 1, branch.tokens, x.device), branch.encoder.cls
    outputs = [y for (y,) in branch.encoder.each_block([branch.patches(x, ids)], [rearrange(ids, "b 1 n -> b n")])]
    last = branch.encoder.norm(outputs[-1])
    named = {**{str(number): y for number, y in enumerate(outputs, 1)}, NORM: last}
    found = {(block, how): pooled for block, y in named.items() for how, pooled in poolings(y, real, cls).items()}
    some = torch.ones(last.shape[:2], dtype=torch.bool)
    if real is not None:
        some[:, int(cls) :] = real
    return found, (last.float(), some)


def poolings(x: Tensor, real: Tensor | None, cls: bool) -> dict[str, Tensor]:
    """Tokens `[B, 1 + N, D]` -> float32 `[B, D]`, or `[B, 2D]` of both."""
    mean = pool(x, real, cls=cls).float()
    if not cls:
        return {"mean": mean}
    first = x[:, 0].float()
    return {"mean": mean, "CLS": first, "mean and CLS": torch.cat([mean, first], dim=1)}


def baselines(config: Config, inputs: dict[str, Tensor], heard: Tensor) -> dict[str, Tensor]:
    """What needs no model: `[B, 2M]` of the log-mel, over the frames that are sound; `[B, 192]` of the pixels."""
    found = {}
    if config.model.hears:
        spec = inputs["audio"].float()
        real = (torch.arange(spec.shape[1]) < rearrange(heard, "b -> b 1")).float().unsqueeze(-1)
        count = real.sum(dim=1).clamp(min=1)
        mean = (spec * real).sum(dim=1) / count
        variance = ((spec - mean[:, None]).square() * real).sum(dim=1) / count
        found["audio"] = torch.cat([mean, variance.sqrt()], dim=1)
    if config.model.sees:
        frame = rearrange(inputs["video"].float().mean(dim=1), "b h w c -> b c h w")
        found["video"] = F.adaptive_avg_pool2d(frame, PIXELS).flatten(1)
    return found


def numbers(run: Path, data: str | None, heldout: str | None, batch_size: int) -> Iterator[Result]:
    """The lines of one run.

    Raises:
        UsageError: clips without labels, or with several.
        RunError: no finite features of the clips that have labels.
    """
    model, config = load_weights(run / WEIGHTS_FILE)
    own = config.data if data is None else replace(config.data, root=data, eval_root=None)
    own = replace(own, eval_root=heldout or own.eval_root, workers=0)
    config, split = replace(config, data=own), split_source(own, config.model.modalities)
    models = {"trained": model.eval(), "untrained": untrained_model(config.model, config.train.seed)}
    learnt, judged = (read_set(config, models, clips, batch_size) for clips in (split.train, split.held_out))
    labels = [split.train.clips[i].labels for i in learnt.clips.tolist()]
    asked = [split.held_out.clips[i].labels for i in judged.clips.tolist()]
    targets = make_targets(labels, split.train.classes, asked, split.held_out.classes)
    if targets.missing or targets.score != "accuracy":
        raise UsageError(f"{run}: needs one label for each clip: {targets.missing or 'some have several'}")
    fit, test = targets.train.any(dim=1) & finite(learnt), targets.heldout.any(dim=1) & finite(judged)
    if not (fit.any() and test.any()):
        raise RunError(f"{run}: the model gives no finite features of the clips that have labels")
    line = {
        "run": run.name,
        "set": "/".join(Path(config.data.root).parts[-2:]),
        "classes": len(split.train.classes),
        "seed": config.train.seed,
        "samples": config.train.steps * config.train.batch_size,
        "clips": {"train": int(fit.sum()), "heldout": int(test.sum())},
        **identity(torch.device("cpu")),
    }
    for place, x in learnt.features.items():
        probe = fit_probe(x[fit], targets.train[fit], "accuracy", seed=config.train.seed)
        top1 = score(probe(judged.features[place][test]), targets.heldout[test], "accuracy")
        yield {**dict(zip(PLACE, place, strict=True)), "top1": top1, **line}
    for key, (tokens, real) in learnt.tokens.items():
        others, other_real = judged.tokens[key]
        top1 = attentive_accuracy(
            (tokens[fit], real[fit]),
            targets.train[fit],
            (others[test], other_real[test]),
            targets.heldout[test],
            seed=config.train.seed,
        )
        yield {**dict(zip(PLACE, (*key, NORM, "attentive"), strict=True)), "top1": top1, **line}


def finite(found: Read) -> Tensor:
    """Bool `[N]`: clips of which every feature is a number."""
    return torch.stack([x.isfinite().all(dim=1) for x in found.features.values()]).all(dim=0)


def summaries(results: Sequence[Result]) -> list[Table]:
    """One for each set of clips."""
    sets: dict[str | None, list[Result]] = defaultdict(list)
    for row in results:
        sets[row.get("set")].append(row)
    return [summary(rows, name) for name, rows in sets.items()]


def summary(results: Sequence[Result], name: str | None = None) -> Table:
    """Means over the runs, and their deviation: a row for each modality, block and pooling. Of a run that was measured
    again the last lines count.
    """
    title = "linear probes of held-out clips, top-1 in %: mean ± deviation over the runs"
    table = Table(title=f"{name}: {title}" if name else title)
    for head in ("modality", "block", "pooling", "runs", "trained", "untrained"):
        table.add_column(head, justify="right" if head in ("runs", "trained", "untrained") else "left")
    last = {(row["run"], row["seed"], *(row[part] for part in PLACE)): row for row in results}
    values: dict[tuple[str, str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in last.values():
        values[row["modality"], row["block"], row["pooling"]][row["model"]].append(100 * row["top1"])
    for (modality, block, pooling), by_model in values.items():
        if "none" in by_model:
            table.add_row(modality, "no model", "", str(len(by_model["none"])), _mean(by_model["none"]), "")
        else:
            cells = [_mean(by_model[model]) for model in ("trained", "untrained")]
            table.add_row(modality, block, pooling, str(len(by_model["trained"])), *cells)
    return table


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/reading.py", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="folders of pretraining runs; or the word table")
    add("--data-root", metavar="PATH", help="training clips (default: the run's)")
    add("--eval-root", metavar="PATH", help="held-out clips (default: of --data-root, or the run's)")
    add("--batch-size", type=int, default=32)
    add("--json", type=Path, metavar="FILE", help="lines are appended, and all that it holds are summed up")
    args = parser.parse_args(argv)
    if args.runs == ["table"]:
        if args.json is None or not args.json.exists():
            parser.error("table: --json must name the file to be shown")
        args.runs = []
    args.runs = [Path(run) for run in args.runs]
    for run in args.runs:
        if not (run / WEIGHTS_FILE).exists():
            parser.error(f"{run}: must be the folder of a run that has ended, with {WEIGHTS_FILE}")
    if args.batch_size < 1:
        parser.error(f"--batch-size {args.batch_size}: must be >= 1")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    console = Console(width=None if sys.stdout.isatty() else 110)
    results: list[Result] = []
    for run in args.runs:
        try:
            found = list(numbers(run, args.data_root, args.eval_root, args.batch_size))
        except (UsageError, RunError, ValueError) as error:
            console.print(f"error: {error}", markup=False, highlight=False)
            return 2
        for row in found if args.json else []:
            write(args.json, row)
        results += found
    for table in summaries(read(args.json) if args.json else results):
        console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
