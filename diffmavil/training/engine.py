"""The training loop, for any task: resume, steps, records, checkpoints, a clean end on a signal."""

from __future__ import annotations

from diffmavil.config import Config
from diffmavil.config.errors import usage_errors
from diffmavil.data.clips import ClipSet, signature
from diffmavil.data.loader import make_loader
from diffmavil.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from diffmavil.training.distributed import World
from diffmavil.training.memory import full_gpu_told
from diffmavil.training.planner import Orders, plan, timetable
from diffmavil.training.run import Run, StopSignals
from diffmavil.training.step import TrainStep
from diffmavil.training.task import Task
from diffmavil.training.telemetry import Monitor, Telemetry


@full_gpu_told()
def fit(task: Task, run: Run, config: Config, clips: ClipSet, peers: World, monitor: Monitor | None = None) -> bool:
    """Run the remaining steps of `run`; False when a signal ended them early, after a checkpoint.

    monitor: called every `train.probe_every` steps and after the last; its results go into that step's record.

    Raises:
        UsageError: an optimiser, kernels or a CUDA graph not available here, or processes with different data.
        RunError: too many bad clips, a run that has diverged, a checkpoint that does not fit, or a full GPU.
    """
    # Machines may have their own copies of a set: a file missing on one of them would shift all that follow.
    peers.check_alike("the training clips", lambda: signature(clips))
    with usage_errors():
        step = TrainStep(task, config, peers)
    if run.checkpoint:
        load_checkpoint(run.checkpoint, step.state)
    done, steps = run.progress.step, timetable(config).steps
    orders = Orders(config, done, peers.rank, peers.size)
    with usage_errors():
        loader = make_loader(config, clips, orders=orders, batch_size=orders.largest, device=peers.device)
    loader.tally.add(run.progress.clips)
    run = run.noting(loader.note) if loader.note else run
    if config.train.compile or config.train.cuda_graph:
        run = run.noting(step.warm_up())
    with StopSignals() as stop, Telemetry(run, config, peers, step, loader, done, monitor) as telemetry, loader:
        for batch in loader:
            now = plan(config, done)
            result = step(batch, now, offset=now.position + peers.rank * (now.batch_size // peers.size))
            done += 1
            task.after_step(done)
            last = done == steps
            stopping = peers.any(stop.requested)
            telemetry.after_step(done, now, result, flush=last or stopping)
            if last or stopping or done % config.train.checkpoint_every == 0:
                for counted in peers.gather(loader.tally.as_json()):
                    loader.tally.add(counted)
                progress = Progress(done, now.position + now.batch_size, loader.tally.as_json())
                save_checkpoint(run.folder, progress, step.state, config, peers)
            if stopping and not last:
                telemetry.say(f"stopped by a signal after step {done} of {steps}; --resume goes on from there")
                break
    return done == steps
