"""Pretraining: `torchrun --standalone --nproc-per-node N -m diffmavil.train [PRESET] [--dotted.setting VALUE ...]`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from diffmavil.budget import plan_table, resolve_batches
from diffmavil.checkpoint import load_checkpoint, save_checkpoint
from diffmavil.cli import RunError, UsageError, parse_train, run_main
from diffmavil.config import Config
from diffmavil.data.loader import TooManyBadClips, make_loader
from diffmavil.data.sources import ClipSet, Split, split_source
from diffmavil.data.stats import resolve_audio_stats
from diffmavil.distributed import World, world
from diffmavil.export import WEIGHTS_FILE, export_weights
from diffmavil.heap import keep_freed_memory
from diffmavil.planner import Orders, plan, timetable
from diffmavil.report import write_report
from diffmavil.run import Run, StopSignals, open_run, write_run
from diffmavil.step import TrainStep
from diffmavil.telemetry import Telemetry


def main(argv: Sequence[str]) -> None:
    preset, config, options = parse_train(argv)
    with world() as peers:
        if peers.device.type == "cpu":
            keep_freed_memory()
        run = open_run(preset, config, options, peers)
        config, split = peers.main_first(lambda: open_data(config))
        config = plan_batches(config, peers)
        write_run(run, config, peers)
        run = run.noting(f"training: {split.train.note}; held out: {split.held_out.note}")
        finished = train(run, config, split.train, peers)
        if finished and config.train.report and peers.main:
            print(f"report: {write_report(run.folder)}")


def open_data(config: Config) -> tuple[Config, Split]:
    """The config with the audio statistics of the training clips, and the clips."""
    try:
        split = split_source(config.data)
        return resolve_audio_stats(config, split.train), split
    except ValueError as error:
        raise UsageError(str(error)) from error


def plan_batches(config: Config, peers: World) -> Config:
    """The config with its plan of batches; a plan that was made, now or before, is printed."""
    try:
        config = resolve_batches(config, peers)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if peers.main and (config.batch.sizes or config.batch.at_once):
        console = Console()
        # A log has no width of its own; 80 columns would fold the table.
        (console if console.is_terminal else Console(width=120)).print(plan_table(config, peers.size))
    return config


def train(run: Run, config: Config, clips: ClipSet, peers: World) -> bool:
    """Run the remaining steps; False when a signal ended them early."""
    try:
        step = TrainStep(config, peers)
    except ValueError as error:
        raise UsageError(str(error)) from error
    done = load_checkpoint(run.checkpoint, step.state) if run.checkpoint else 0
    steps = timetable(config).steps
    orders = Orders(config, done, peers.rank, peers.size)
    loader = make_loader(config, clips, orders=orders, batch_size=orders.largest, device=peers.device)
    if config.train.compile or config.train.cuda_graph:
        run = run.noting(step.warm_up())
    with StopSignals() as stop, Telemetry(run, config, peers, step, loader, done) as telemetry, loader:
        try:
            for batch in loader:
                now = plan(config, done)
                result = step(batch, now, offset=now.position + peers.rank * (now.batch_size // peers.size))
                done += 1
                last = done == steps
                stopping = peers.any(stop.requested)
                telemetry.after_step(done, now, result, flush=last or stopping)
                if last or stopping or done % config.train.checkpoint_every == 0:
                    save_checkpoint(run.folder, done, step.state, config, peers)
                if stopping:
                    break
        except TooManyBadClips as error:
            raise RunError(str(error)) from error
    if peers.main and done == steps:
        export_weights(step.model, config, run.folder / WEIGHTS_FILE)
    return done == steps


if __name__ == "__main__":
    run_main(main)
