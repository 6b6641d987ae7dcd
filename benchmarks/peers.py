"""A full pretraining step of existing masked autoencoders, patched and unpatched: time, memory, loss.

    python benchmarks/peers.py --device cpu                           # ViTMAE and VideoMAE at base size
    python benchmarks/peers.py --device cuda --compile --json results.jsonl
    python benchmarks/peers.py --size tiny --seconds 1                # a smoke test

Both models of a peer have the same weights, inputs and masks; a step is forward, backward and AdamW. What the patch can
save is counted first: the FLOPs of embedding masked patches, and the bytes that it no longer writes or reads. The
speed-up that this allows is printed beside the measured one. Losses that differ by more than rounding are reported, and
the exit code is 1. `README.md` in this folder explains how the numbers are measured and how to read them.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:
    # Run by path: Python puts this folder first in sys.path, where kernels.py would shadow the Hub's package `kernels`.
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), str(here.parent / "kernels"), *(p for p in sys.path if Path(p).resolve() != here)]

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.identity import identity
from benchmarks.kernels import write
from benchmarks.measure import Clock, CpuClock, StepClock, Timing, interleave
from benchmarks.peer_models import counted_flops, load_transformers
from maekernels.integrations import patch, tube_mask

SIZES = {
    "tiny": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
    "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
}
TINY_DECODER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
KEYS = ("peer", "version", "ms", "peak_mib", "speed_up", "gflop", "saved_gflop", "saved_mib", "allowed")
"""The keys of every line, in this order; device, commit, versions, date and those needed to interpret them follow."""
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Largest relative difference of the losses."""


@dataclass(frozen=True)
class Peer:
    """A transformers model, a batch, and how much of it is masked."""

    name: str
    model: Any
    inputs: dict[str, Tensor]
    tokens: int
    masked: int
    patch_dim: int
    decoder_width: int
    given: dict[str, Any]
    """Arguments of `patch`."""

    @property
    def batch(self) -> int:
        return len(self.inputs["pixel_values"])

    def saved_flops(self) -> float:
        """For one sample's step: masked patches are not embedded, nor do they contribute to the weights' gradient."""
        width = self.model.config.hidden_size
        return 2 * 2.0 * self.masked * self.patch_dim * width

    def saved_bytes(self, item: int) -> float:
        """For one sample's forward, at least: each written and read once.

        Embeddings of the masked patches; the target of every patch and, for ViTMAE, the normalised one, in float32; the
        squared difference; for ViTMAE the shuffled tokens before they are restored.
        """
        width = self.model.config.hidden_size
        embedded = self.masked * width * item
        copies = 3 if self.name == "ViTMAE" else 2
        targets = copies * self.tokens * self.patch_dim * 4
        shuffled = self.tokens * self.decoder_width * item if self.name == "ViTMAE" else 0
        return 2.0 * (embedded + targets + shuffled)


def vit_mae(size: str, batch: int) -> Peer:
    transformers = load_transformers()
    settings = {"image_size": 32, "patch_size": 8} | _decoder(TINY_DECODER) if size == "tiny" else {}
    config = transformers.ViTMAEConfig(**SIZES[size], **settings, norm_pix_loss=True)
    torch.manual_seed(0)
    model = transformers.ViTMAEForPreTraining(config)
    tokens = (config.image_size // config.patch_size) ** 2
    inputs = {"pixel_values": torch.randn(batch, 3, config.image_size, config.image_size)}
    inputs["noise"] = torch.rand(batch, tokens)
    masked = tokens - int(tokens * (1 - config.mask_ratio))
    return Peer("ViTMAE", model, inputs, tokens, masked, 3 * config.patch_size**2, config.decoder_hidden_size, {})


def video_mae(size: str, batch: int) -> Peer:
    transformers = load_transformers()
    settings = {"image_size": 32, "patch_size": 8, "num_frames": 4} | _decoder(TINY_DECODER) if size == "tiny" else {}
    config = transformers.VideoMAEConfig(**SIZES[size], **settings)
    torch.manual_seed(0)
    model = transformers.VideoMAEForPreTraining(config)
    frames, patches = config.num_frames // config.tubelet_size, (config.image_size // config.patch_size) ** 2
    mask = tube_mask(batch, frames, patches, 0.9, seed=0)
    clips = torch.randn(batch, config.num_frames, 3, config.image_size, config.image_size)
    masked, dim = int(mask[0].sum()), 3 * config.tubelet_size * config.patch_size**2
    inputs = {"pixel_values": clips, "bool_masked_pos": mask}
    width, given = config.decoder_hidden_size, {"masked": masked}
    return Peer("VideoMAE", model, inputs, frames * patches, masked, dim, width, given)


PEERS = {"ViTMAE": vit_mae, "VideoMAE": video_mae}


def _decoder(settings: dict[str, int]) -> dict[str, int]:
    return {f"decoder_{name}": value for name, value in settings.items()}


def make_step(model: Any, inputs: dict[str, Tensor], dtype: torch.dtype) -> Callable[[], Tensor]:
    """Forward (under autocast for bfloat16), backward and update; returns the loss before the update."""
    device = inputs["pixel_values"].device
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def step() -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def measure(args: argparse.Namespace, peer: Peer, clock: Clock) -> tuple[list[dict[str, Any]], bool]:
    """The lines of one peer, unpatched first, and whether the losses agree."""
    device, dtype = torch.device(args.device), torch.bfloat16 if args.precision == "bf16" else torch.float32
    inputs = {name: x.to(device) for name, x in peer.inputs.items()}
    plain = peer.model.to(device).train()
    models: dict[str, Any] = {"as it is": plain, "patched": patch(copy.deepcopy(plain), **peer.given)}
    with torch.no_grad():
        flops = {name: counted_flops(lambda m=m: m(**inputs).loss, peer.batch) for name, m in models.items()}
    if args.compile:
        models = {name: torch.compile(model) for name, model in models.items()}
    steps = {name: make_step(model, inputs, dtype) for name, model in models.items()}
    losses = {name: float(step()) for name, step in steps.items()}
    peaks = {name: peak_mib(clock, step) for name, step in steps.items()}
    timings = interleave(clock, {name: [step] for name, step in steps.items()}, args.seconds, least=3, most=40)
    first, second = losses.values()
    agree = abs(first - second) <= ROUNDING[dtype] * abs(first)
    rest = {"dtype": args.precision, "batch": peer.batch, "size": args.size, "compiled": args.compile}
    rest |= {"transformers": load_transformers().__version__, "load": os.getloadavg()[0]}
    lines = [
        dict(zip(KEYS, _numbers(peer, name, timings, peaks, flops, dtype), strict=True))
        | identity(device)
        | {"loss": losses[name], "low_ms": timings[name].low_ms, "high_ms": timings[name].high_ms}
        | {"readings": timings[name].readings}
        | rest
        for name in steps
    ]
    return lines, agree


def _numbers(
    peer: Peer,
    name: str,
    timings: dict[str, Timing],
    peaks: dict[str, float | None],
    flops: dict[str, float],
    dtype: torch.dtype,
) -> tuple[object, ...]:
    """The values of KEYS, for one sample except time and memory, which are for the batch."""
    base = timings["as it is"].median_ms
    whole = 3 * flops["as it is"]
    saved = peer.saved_flops()
    ms = timings[name].median_ms
    saved_mib = peer.saved_bytes(dtype.itemsize) / 2**20
    return peer.name, name, ms, peaks[name], base / ms, whole * 1e-9, saved * 1e-9, saved_mib, whole / (whole - saved)


def peak_mib(clock: Clock, step: Callable[[], object]) -> float | None:
    """Of the device; on a CPU the peak of a step's live allocations, as reported by torch's profiler."""
    if not isinstance(clock, CpuClock):
        return clock.peak_mib(step)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        step()
    alive = highest = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            alive += event.nbytes()  # type: ignore[attr-defined]
            highest = max(highest, alive)
    return highest / 2**20


def show(lines: Sequence[dict[str, Any]]) -> Table:
    heading = f"a pretraining step, {lines[0]['dtype']}, {lines[0]['device']}; commit {lines[0]['commit']}"
    shown = Table(title=heading, title_justify="left")
    for name in (
        "peer",
        "batch",
        "",
        "ms",
        "20-80 %",
        "speed-up",
        "peak MiB",
        "GFLOP",
        "saved",
        "MiB saved",
        "allowed",
    ):
        shown.add_column(name, justify="left" if name in ("peer", "") else "right", no_wrap=True)
    for line in lines:
        patched = line["version"] == "patched"
        shown.add_row(
            "" if patched else line["peer"],
            "" if patched else str(line["batch"]),
            line["version"],
            f"{line['ms']:.4g}",
            f"{line['low_ms']:.4g}-{line['high_ms']:.4g}",
            f"x {line['speed_up']:.3f}" if patched else "",
            "" if line["peak_mib"] is None else f"{line['peak_mib']:,.1f}",
            f"{line['gflop']:.3g}" if not patched else "",
            f"{line['saved_gflop']:.3g}" if patched else "",
            f"{line['saved_mib']:.3g}" if patched else "",
            f"x {line['allowed']:.3f}" if patched else "",
        )
    return shown


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/peers.py", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--peer", action="append", choices=PEERS, help="repeat for several; default all")
    add("--size", choices=SIZES, default="base")
    add("--batch", type=int, help="default: 4 on a CPU, 64 on a GPU")
    add("--precision", choices=("bf16", "fp32"), default="bf16")
    add("--threads", type=int, default=2, help="on a CPU (default 2)")
    add("--compile", action="store_true", help="both versions through torch.compile")
    add("--seconds", type=float, default=60.0, help="of measuring each peer, about (default 60)")
    add("--json", type=Path, metavar="FILE", help="append one line of JSON for each version of each peer")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    args.batch = (4 if args.device == "cpu" else 64) if args.batch is None else args.batch
    for name, least in (("batch", 1), ("threads", 1), ("seconds", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name} {getattr(args, name)}: must be at least {least}")
    try:
        load_transformers()
    except ImportError as error:
        parser.error(f"transformers, whose models these are, cannot be used: {error}: pip install 'diffmavil[peers]'")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    console = Console()
    if not console.is_terminal:
        console = Console(width=132)
    clock = StepClock(torch.device("cuda")) if args.device == "cuda" else CpuClock(args.threads)
    lines: list[dict[str, Any]] = []
    status = 0
    for name in args.peer or PEERS:
        peer = PEERS[name](args.size, args.batch)
        found, agree = measure(args, peer, clock)
        lines += found
        for line in found if args.json else ():
            write(args.json, line)
        if not agree:
            console.print(f"{name}: losses {[line['loss'] for line in found]} differ by more than rounding")
            status = 1
    console.print(show(lines))
    return status


if __name__ == "__main__":
    sys.exit(main())
