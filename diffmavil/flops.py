"""Cost of a forward pass: `python -m diffmavil.flops [PRESET] [--json | --presets]`.

`diffmavil.model.flops` says what is counted. In the second stage the teacher is taken to be as large as the student.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace

from rich import box
from rich.console import Console
from rich.table import Table

from diffmavil.config import Config
from diffmavil.config.presets import PRESETS, preset
from diffmavil.model.flops import FORWARDS, count_parameters, meta_model, meta_teacher
from diffmavil.training.costs import Cost, optimizer_flops, scheduled_flops, technique_costs, with_teacher

_DEFAULT = "diffmavil-base"


def _technique_table(name: str, costs: list[Cost]) -> Table:
    table = Table(
        title=f"GFLOP of one clip's forward, at the size of {name}",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    table.add_column("technique")
    for views, frames in dict.fromkeys((c.views, c.frames) for c in costs):
        table.add_column(f"{views} view{'s' * (views > 1)}\n{frames} frames", justify="right")
    for technique in dict.fromkeys(c.technique for c in costs):
        row = [c for c in costs if c.technique == technique]
        table.add_row(technique, *(f"{c.gflop:.1f} {_signed_percent(-c.saved):>6}" for c in row))
    return table


def _signed_percent(share: float) -> str:
    return f"{100 * share:+.1f}%" if share else ""


def _part_table(name: str, config: Config) -> Table:
    sized, _ = with_teacher(config)
    model, flops = meta_model(replace(sized, views=1)), scheduled_flops(sized, config.mask)
    views = f"{config.model.views} view(s), {config.model.predicted_views} decoded"
    title = f"{name}: {views}, {config.model.video.frames} frames, mean over its masking schedule"
    table = Table(title=title, show_footer=True, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    modules = [model.video.encoder, model.audio.encoder, model.fusion, model.video.decoder, model.audio.decoder]
    table.add_column("part", "total")
    table.add_column("parameters, M", f"{count_parameters(model) / 1e6:.2f}", justify="right")
    table.add_column("GFLOP", f"{flops.total / 1e9:.2f}", justify="right")
    table.add_column("share", justify="right")
    for part, module, cost in zip(flops._fields, modules, flops, strict=True):
        share = f"{100 * cost / flops.total:.1f} %"
        table.add_row(part.replace("_", " "), f"{count_parameters(module) / 1e6:.2f}", f"{cost / 1e9:.2f}", share)
    return table


def _teacher_lines(config: Config) -> list[str]:
    """Cost of the second stage; empty in the first."""
    model, teacher = with_teacher(config)
    if not teacher:
        return []
    frozen = sum(p.numel() for p in meta_teacher(config.model).parameters())
    step = FORWARDS * scheduled_flops(model, config.mask).total + teacher
    return [
        f"teacher, as large as the student: {frozen / 1e6:.2f} M parameters; {teacher / 1e9:.2f} GFLOP for a clip, "
        "which it sees whole and once",
        f"a step with its backward pass: {step / 1e9:.2f} GFLOP for a clip, {teacher / step:.1%} of them the teacher's",
    ]


def _optimizer_lines(config: Config) -> list[str]:
    """Cost of Muon; empty for other optimisers."""
    flop = optimizer_flops(config.model, config.optim)
    if not flop:
        return []
    clips = FORWARDS * scheduled_flops(with_teacher(config)[0], config.mask).total * config.train.batch_size
    return [
        f"Muon's {config.optim.muon_steps} iterations: {flop / 1e9:,.2f} GFLOP a step for any batch, "
        f"{flop / clips:.1%} of what {config.train.batch_size} clips with their backward pass take"
    ]


def _preset_table() -> Table:
    title = "presets: one clip's forward with all views, mean over the masking schedule"
    table = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in ("preset", "parameters, M", "GFLOP", "teacher's GFLOP"):
        table.add_column(column, justify="left" if column == "preset" else "right")
    for name, config in PRESETS.items():
        model, teacher = with_teacher(config)
        parameters = count_parameters(meta_model(replace(model, views=1)))
        gflop = scheduled_flops(model, config.mask).total / 1e9
        table.add_row(name, f"{parameters / 1e6:.1f}", f"{gflop:.1f}", f"{teacher / 1e9:.1f}" if teacher else "")
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; an unknown preset prints the list of names and exits with code 2."""
    parser = argparse.ArgumentParser(prog="python -m diffmavil.flops", description="What a forward pass costs.")
    parser.add_argument("preset", nargs="?", default=_DEFAULT, help=f"default {_DEFAULT}")
    parser.add_argument("--json", action="store_true", help="the table of techniques as a list of objects")
    parser.add_argument("--presets", action="store_true", help="parameters and GFLOP of every preset")
    args = parser.parse_args(argv)
    try:
        config = preset(args.preset)
    except ValueError as error:
        parser.error(str(error))
    if args.json:
        print(json.dumps([cost._asdict() for cost in technique_costs(config.model)], indent=1))
        return
    console = Console()
    if args.presets:
        console.print(_preset_table())
        return
    console.print(_technique_table(args.preset, technique_costs(config.model)))
    console.print()
    console.print(_part_table(args.preset, config))
    for line in [*_teacher_lines(config), *_optimizer_lines(config)]:
        console.print(line, soft_wrap=True)


if __name__ == "__main__":
    main()
