"""Pretraining: `torchrun --standalone --nproc-per-node N -m diffmavil.train [PRESET] [--dotted.setting VALUE ...]`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from diffmavil.config.cli import parse_train, run_main
from diffmavil.config.errors import usage_errors
from diffmavil.data.stats import open_data
from diffmavil.evaluation.beginning import begin_with, check_beginning
from diffmavil.evaluation.monitor import FeatureMonitor
from diffmavil.evaluation.teachers import find_teacher, load_teacher, teacher_note
from diffmavil.model.weights import EMA_FILE, WEIGHTS_FILE, export_weights
from diffmavil.reporting.page import write_report
from diffmavil.training.budget import plan_batches
from diffmavil.training.distributed import world
from diffmavil.training.engine import fit
from diffmavil.training.memory import keep_freed_memory
from diffmavil.training.planner import mix_notes
from diffmavil.training.pretraining import Pretraining
from diffmavil.training.run import open_run, with_sound_of_main, write_run
from diffmavil.training.second_stage import SecondStage


def main(argv: Sequence[str]) -> None:
    preset, config, options = parse_train(argv)
    with world() as peers:
        if peers.device.type == "cpu":
            keep_freed_memory()
        with usage_errors():
            config, teacher = peers.main_first(partial(find_teacher, config))
        run, config = open_run(preset, config, options, peers)
        init = config.train.init if run.checkpoint is None else None
        with usage_errors():
            if init:  # before the data, which may take long
                config = peers.main_first(partial(check_beginning, config))
            config, split = peers.main_first(lambda: open_data(config))
            config = with_sound_of_main(config, peers)
            config = plan_batches(config, peers, teacher)
        run = write_run(run, config, peers)
        run = run.noting(f"training: {split.train.note}; held out: {split.held_out.note}")
        for note in mix_notes(config):
            run = run.noting(note)
        if idle := config.model.diffusion.idle:
            names = ", ".join(f"model.diffusion.{name}" for name in idle)
            run = run.noting(f"{names}: without effect, since mask tokens stand at the masked patches of this model")
        with usage_errors():
            if teacher is None:
                task = Pretraining(config, peers.device, sets=split.train.sets)
            else:
                frozen = load_teacher(config, teacher, peers.device)
                task = SecondStage(config, peers.device, frozen, sets=split.train.sets)
            said = peers.main_first(partial(begin_with, task.model, init)).lines() if init else []
        if isinstance(task, SecondStage):
            task.begin()  # an averaged teacher starts from the student's initial weights
            run = run.noting(teacher_note(config))
        for note in [*([task.note] if task.note else []), *said]:
            run = run.noting(note)
        monitor = FeatureMonitor(task.model, config, split, run.folder) if config.train.probe_every else None
        finished = fit(task, run, config, split.train, peers, monitor)
        if finished and peers.main:
            export_weights(task.model, config, run.folder / WEIGHTS_FILE)
            for averaged in task.averages.models.values():
                export_weights(averaged.module, config, run.folder / EMA_FILE)
            if config.train.report:
                print(f"report: {write_report(run.folder)}")


if __name__ == "__main__":
    run_main(main)
