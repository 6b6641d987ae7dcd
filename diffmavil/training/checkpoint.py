"""Checkpoints: `torch.distributed.checkpoint` folders, written whole or not at all, the newest N kept.

A checkpoint holds parameters, optimiser state, counters and the resolved config. Everything else (data order, masks,
noise, schedules) is a function of the config and the step, so resuming needs nothing more.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from diffmavil.config import Config
from diffmavil.config.errors import RunError
from diffmavil.config.files import config_to_yaml
from diffmavil.data.durable import sync_folder
from diffmavil.training.distributed import World

_PREFIX = "step-"


def checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted((run_dir / "checkpoints").glob(f"{_PREFIX}*"))


def checkpoint_step(path: Path) -> int:
    return int(path.name.removeprefix(_PREFIX))


@dataclass(frozen=True)
class TrainState:
    """What a checkpoint holds beside the config."""

    model: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    counters: dict[str, torch.Tensor]

    def tree(self) -> dict[str, dict[str, Any]]:
        with _quietly():
            model, optimizer = get_state_dict(self.model, self.optimizers)
        return {"model": model, "optimizer": optimizer, "counters": dict(self.counters)}


def save_checkpoint(run_dir: Path, step: int, state: TrainState, config: Config, world: World) -> Path:
    """Write `checkpoints/step-XXXXXXXX` after `step` steps: to a hidden folder, flushed to disk, then renamed."""
    final = run_dir / "checkpoints" / f"{_PREFIX}{step:08d}"
    partial = final.with_name(f".{final.name}.partial")
    if world.main:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    world.barrier()
    with _quietly():
        save(state.tree(), storage_writer=FileSystemWriter(partial, sync_files=True))
    if world.main:
        (partial / "config.yaml").write_text(config_to_yaml(config))
        sync_folder(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        sync_folder(final.parent)
        for old in checkpoints(run_dir)[: -config.train.keep_checkpoints]:
            shutil.rmtree(old)
    world.barrier()
    return final


def load_checkpoint(path: Path, state: TrainState) -> int:
    """Fill `state` in place; return the number of steps done.

    Raises:
        RunError: the checkpoint does not fit the model (another preset?) or is damaged.
    """
    tree = state.tree()
    try:
        with _quietly():
            load(tree, checkpoint_id=path)
    except (CheckpointException, RuntimeError, ValueError, KeyError, OSError) as error:
        raise RunError(f"{path}: cannot be loaded into this model: {error}") from error
    set_state_dict(state.model, state.optimizers, model_state_dict=tree["model"], optim_state_dict=tree["optimizer"])
    for name, value in state.counters.items():
        value.copy_(tree["counters"][name])
    return checkpoint_step(path)


@contextmanager
def _quietly() -> Iterator[None]:
    """torch warns that a single process saves alone, and that an optimiser without state takes a dry step: as meant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
