"""Checkpoints: folders of safetensors and JSON, written whole or not at all, with checksums, the newest N kept.

A checkpoint `step-XXXXXXXX` holds

    shard-*.safetensors   parameters, optimiser state and counters, by `torch.distributed.checkpoint`
    state.json            where the run is (step, samples seen), which clips were bad, the optimisers' settings
    config.yaml           the resolved config
    checksums.json        size and SHA-256 of each of these files

Everything else (data order, masks, noise, schedules) is a function of the config and the step, so resuming needs
nothing more. Nothing that is read is unpickled, as it would be in torch's default format, whose metadata can hold code.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from diffmavil.config import Config
from diffmavil.config.errors import RunError
from diffmavil.config.files import CONFIG_FILE, config_to_yaml
from diffmavil.data.durable import digest_of, sync_folder, write_whole
from diffmavil.model.weights import unshared
from diffmavil.training.distributed import World
from diffmavil.training.optim import LR_SCALE

_NAME = re.compile(r"step-(\d{8,})")
_STATE_FILE, _CHECKSUMS_FILE = "state.json", "checksums.json"


def checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoints of a run, oldest first, damaged ones included. Copies under other names are not among them."""
    found = (path for path in (run_dir / "checkpoints").glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir())
    return sorted(found, key=checkpoint_step)


def checkpoint_step(path: Path) -> int:
    """The number of steps done."""
    return int(path.name.removeprefix("step-"))


_BY_CONFIG = ("weight_decay", "betas", "ns_steps", LR_SCALE)
"""What the config says of a group of parameters. A checkpoint has it of the config that it was saved with, which may
not be that of the run that goes on."""


@dataclass(frozen=True)
class Progress:
    """Where a run is.

    Attributes:
        step: steps done.
        position: samples seen: the place in the stream of the next one.
        clips: `Tally.as_json`: the clips tried so far, and which of them were bad.
    """

    step: int = 0
    position: int = 0
    clips: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainState:
    """What a checkpoint holds beside config and progress."""

    model: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    counters: dict[str, torch.Tensor]

    def tree(self) -> dict[str, dict[str, Any]]:
        with _quietly():
            model, optimizer = get_state_dict(self.model, self.optimizers)
        return {"model": model, "optimizer": optimizer, "counters": dict(self.counters)}


def save_checkpoint(run_dir: Path, progress: Progress, state: TrainState, config: Config, world: World) -> Path:
    """Write `checkpoints/step-XXXXXXXX`: to a hidden folder, flushed to disk, then renamed. Every rank calls it."""
    final = run_dir / "checkpoints" / f"step-{progress.step:08d}"
    partial = final.with_name(f".{final.name}.partial")
    if world.main:
        for left in final.parent.glob(".step-*.partial"):  # by a kill, and not always at this step
            shutil.rmtree(left, ignore_errors=True)
        partial.mkdir(parents=True)
    world.barrier()
    tensors, others = _split(state.tree())
    with _quietly():
        save(unshared(tensors), storage_writer=HuggingFaceStorageWriter(str(partial), save_distributed=True))
    world.barrier()
    if world.main:
        where = {"step": progress.step, "position": progress.position, "clips": progress.clips}
        (partial / _STATE_FILE).write_text(json.dumps({**where, "others": others}))
        (partial / CONFIG_FILE).write_text(config_to_yaml(config))
        files = sorted(partial.iterdir())
        for file in files:
            _flush(file)
        sums = {file.name: [file.stat().st_size, digest_of(file)] for file in files}
        write_whole(partial / _CHECKSUMS_FILE, json.dumps(sums, indent=1).encode())
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        sync_folder(final.parent)
        found = checkpoints(run_dir)
        # What lies behind it is of before the run went back, past damaged ones: it would be taken for newer.
        done = [path for path in found if checkpoint_step(path) <= progress.step]
        for old in {*found}.difference(done[-config.train.keep_checkpoints :]):
            shutil.rmtree(old)
    world.barrier()
    return final


def complaint(path: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None: every byte is what was written."""
    try:
        sums = json.loads((path / _CHECKSUMS_FILE).read_bytes())
        for name, (size, digest) in sums.items():
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size:,} bytes, written were {size:,}"
            if digest_of(file) != digest:
                return f"{name} is not what was written"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"{_CHECKSUMS_FILE} cannot be read: {error}"
    return None if {_STATE_FILE, CONFIG_FILE} <= sums.keys() else f"{_CHECKSUMS_FILE} names too few files"


def newest_whole(run_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is not damaged, and a line on each newer one that is.

    Raises:
        RunError: there are checkpoints, and all of them are damaged.
    """
    damaged = []
    found = checkpoints(run_dir)
    for path in reversed(found):
        wrong = complaint(path)
        if wrong is None:
            return path, damaged
        damaged.append(f"{path.name} is damaged and left out: {wrong}")
    if found:
        raise RunError(f"{run_dir / 'checkpoints'}: no checkpoint is whole:\n" + "\n".join(f"  {x}" for x in damaged))
    return None, []


def read_progress(path: Path) -> Progress:
    """Where the run was at a checkpoint that `complaint` finds nothing wrong with."""
    found = json.loads((path / _STATE_FILE).read_bytes())
    return Progress(found["step"], found["position"], found["clips"])


def load_checkpoint(path: Path, state: TrainState) -> None:
    """Fill `state` in place. Every rank calls it.

    Raises:
        RunError: the checkpoint does not fit the model (another preset?) or is damaged.
    """
    tree = state.tree()
    try:
        tensors, others = _split(tree)
        saved = json.loads((path / _STATE_FILE).read_bytes())["others"]
        if differ := saved.keys() ^ others.keys():
            raise ValueError(f"other optimisers: {', '.join(sorted(differ))}")
        with _quietly():
            load(tensors, storage_reader=HuggingFaceStorageReader(str(path)))
        _fill(tree, tensors, saved)
    except (CheckpointException, SafetensorError, RuntimeError, ValueError, KeyError, OSError, AssertionError) as error:
        raise RunError(f"{path}: cannot be loaded into this model: {error}") from error
    groups = [group for optimizer in state.optimizers for group in optimizer.param_groups]
    asked = [{name: group[name] for name in _BY_CONFIG if name in group} for group in groups]
    set_state_dict(state.model, state.optimizers, model_state_dict=tree["model"], optim_state_dict=tree["optimizer"])
    groups = [group for optimizer in state.optimizers for group in optimizer.param_groups]
    for group, settings in zip(groups, asked, strict=True):
        group.update(settings)
    for name, value in state.counters.items():
        value.copy_(tree["counters"][name])


def load_model(path: Path, model: nn.Module) -> None:
    """Fill a model alone, without its optimisers, from a checkpoint that `complaint` finds nothing wrong with. Each
    rank reads for itself, so one of them may call it alone.

    Raises:
        RunError: the checkpoint does not fit the model.
    """
    tree = {"model": model.state_dict()}
    try:
        tensors, _ = _split(tree)
        with _quietly():
            load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
        _fill(tree, tensors, {})
    except (CheckpointException, SafetensorError, RuntimeError, ValueError, KeyError, OSError, AssertionError) as error:
        raise RunError(f"{path}: cannot be loaded into this model: {error}") from error
    model.load_state_dict(tree["model"])


def _split(tree: Any, prefix: str = "") -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The leaves of nested dicts and lists by their path: tensors, which safetensors holds, and what JSON does.

    Numbers become tensors of one element: a slice of a safetensors file has an axis.
    """
    tensors: dict[str, torch.Tensor] = {}
    others: dict[str, Any] = {}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        path = f"{prefix}{key}"
        if isinstance(value, torch.Tensor):
            tensors[path] = value.reshape(1) if value.dim() == 0 else value
        elif isinstance(value, dict) or (isinstance(value, list) and any(isinstance(x, dict) for x in value)):
            below = _split(value, f"{path}/")
            tensors |= below[0]
            others |= below[1]
        else:
            others[path] = value
    return tensors, others


def _fill(tree: Any, tensors: dict[str, torch.Tensor], others: dict[str, Any], prefix: str = "") -> None:
    """The reverse of `_split`: puts the leaves into `tree`, which has their places."""
    items = list(tree.items() if isinstance(tree, dict) else enumerate(tree))
    for key, value in items:
        path = f"{prefix}{key}"
        if isinstance(value, torch.Tensor):
            tree[key] = tensors[path].reshape(value.shape)
        elif path in others:
            tree[key] = tuple(others[path]) if isinstance(value, tuple) else others[path]
        else:
            _fill(value, tensors, others, f"{path}/")


def _flush(file: Path) -> None:
    with file.open("rb") as data:
        os.fsync(data.fileno())


@contextmanager
def _quietly() -> Iterator[None]:
    """torch warns that a single process saves alone, and that an optimiser without state takes a dry step: as meant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
