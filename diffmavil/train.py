"""Pretraining: `torchrun --standalone --nproc-per-node N -m diffmavil.train [PRESET] [--dotted.setting VALUE ...]`."""

from __future__ import annotations

from collections.abc import Sequence

from diffmavil.checkpoint import load_checkpoint, save_checkpoint
from diffmavil.cli import parse_train, run_main
from diffmavil.config import Config
from diffmavil.data.loader import make_loader
from diffmavil.data.sources import ClipSet, open_source
from diffmavil.data.stats import resolve_audio_stats
from diffmavil.distributed import World, world
from diffmavil.export import WEIGHTS_FILE, export_weights
from diffmavil.report import write_report
from diffmavil.run import Run, StopSignals, open_run, write_run
from diffmavil.step import TrainStep, plan
from diffmavil.telemetry import Telemetry


def main(argv: Sequence[str]) -> None:
    preset, config, options = parse_train(argv)
    with world() as peers:
        run = open_run(preset, config, options, peers)
        clips = peers.main_first(lambda: open_source(config.data, "train"))
        config = peers.main_first(lambda: resolve_audio_stats(config, clips))
        write_run(run, config, peers)
        finished = train(run, config, clips, peers)
        if finished and config.train.report and peers.main:
            write_report(run.folder)


def train(run: Run, config: Config, clips: ClipSet, peers: World) -> bool:
    """Run the remaining steps; False when a signal ended them early."""
    step = TrainStep(config, peers)
    done = load_checkpoint(run.checkpoint, step.state) if run.checkpoint else 0
    batch_size = config.train.batch_size // peers.size
    loader = make_loader(
        config,
        clips,
        start_position=done * config.train.batch_size,
        rank=peers.rank,
        world=peers.size,
        steps=config.train.steps - done,
        device=peers.device,
    )
    with StopSignals() as stop, Telemetry(run, config, peers, step, loader, done) as telemetry, loader:
        for batch in loader:
            now = plan(config, done)
            result = step(batch, now, offset=now.position + peers.rank * batch_size)
            done += 1
            last = done == config.train.steps
            stopping = peers.any(stop.requested)
            telemetry.after_step(done, now, result, flush=last or stopping)
            if last or stopping or done % config.train.checkpoint_every == 0:
                save_checkpoint(run.folder, done, step.state, config, peers)
            if stopping:
                break
    if peers.main and done == config.train.steps:
        export_weights(step.model, config, run.folder / WEIGHTS_FILE)
    return done == config.train.steps


if __name__ == "__main__":
    run_main(main)
