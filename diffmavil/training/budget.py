"""The basis of the batch plan: FLOPs, memory and measured times of each stretch of the curriculum."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch._subclasses.fake_tensor import FakeTensorMode

from diffmavil.config import BatchConfig, Config, ModelConfig, require
from diffmavil.config.folders import expand, writing
from diffmavil.model import DiffMAViL
from diffmavil.model.blocks import Blocks
from diffmavil.model.draws import turns
from diffmavil.model.flops import FORWARDS, meta_model, meta_teacher, mixed_flops, teacher_flops
from diffmavil.model.teacher import Teacher
from diffmavil.training.distributed import World
from diffmavil.training.memory import full_gpu_told
from diffmavil.training.planner import (
    Counts,
    changes,
    check_processes,
    lr_scale,
    passes,
    plan,
    stretch_counts,
    timetable,
)
from diffmavil.training.precision import use_bf16
from diffmavil.training.pretraining import Pretraining, random_clips
from diffmavil.training.second_stage import SecondStage
from diffmavil.training.step import TrainStep

GIB = 2**30
_OF_DEVICE = 0.8
_REPEATS = 3
_REACH = 4
"""Limit, times `train.batch_size`: a line through two measured sizes says nothing about larger ones."""


def resolve_batches(config: Config, peers: World, teacher: ModelConfig | None = None) -> Config:
    """The config with `batch.sizes` and `batch.at_once`, unless the rule needs none or a plan was made before.

    On a GPU, a step that needs more than 80 % of its memory is cut into passes even without `batch.memory_gib`.

    Args:
        teacher: model whose forward is also part of every step; None: there is none.

    Raises:
        ValueError: a budget that no clip fits in or that the GPU does not have, sizes that do not divide over the
            processes, or an unknown budget.
    """
    batch = config.batch
    unlimited = batch.rule == "fixed" and batch.memory_gib is None and peers.device.type != "cuda"
    if not unlimited and not batch.sizes and not batch.at_once:
        adaptive = batch.rule != "fixed"
        multiple = math.lcm(batch.multiple, peers.size) if adaptive else batch.multiple
        require(
            batch.largest >= multiple,
            "batch.largest",
            batch.largest,
            f">= {multiple}, which {peers.size} processes divide",
        )
        config = replace(config, batch=replace(batch, multiple=multiple))
        config = replace(config, batch=peers.from_main(_planned(config, peers, teacher)))
    elif peers.device.type == "cuda" and not batch.at_once and not _limited(batch):
        # Sizes that fitted as a whole may not, on fewer processes or on another GPU.
        at_once = peers.main_only(lambda: _fitting(config, stretch_counts(config), peers.device, teacher))
        at_once = _needed(batch, at_once, [size // peers.size for size in batch.sizes])
        config = replace(config, batch=replace(batch, at_once=at_once))
    check_processes(config, peers.size)
    return config


@full_gpu_told()
def plan_batches(config: Config, peers: World, teacher: ModelConfig | None = None) -> Config:
    """As `resolve_batches`; also print the plan, whether made now or before.

    Raises:
        RunError: a measured pass does not fit on the GPU.
    """
    config = resolve_batches(config, peers, teacher)
    if peers.main and (config.batch.sizes or config.batch.at_once):
        console = Console()
        # A log has no width of its own; 80 columns would wrap the table.
        (console if console.is_terminal else Console(width=120)).print(plan_table(config, peers.size, teacher))
    return config


def _planned(config: Config, peers: World, teacher: ModelConfig | None) -> BatchConfig:
    """Every rank calls it: measurements are made by all of them together."""
    batch, nominal = config.batch, config.train.batch_size
    counts = stretch_counts(config)
    at_once = peers.main_only(lambda: _fitting(config, counts, peers.device, teacher))
    if batch.rule == "fixed":
        return replace(batch, at_once=_needed(batch, at_once, [nominal // peers.size] * len(counts)))
    if batch.rule == "memory":
        wanted = [float(most * peers.size) for most in at_once]
    elif batch.rule == "flops":
        costs = [_step_flops(config, teacher, *keep) for keep in counts]
        budget = batch.gflop * 1e9 if batch.gflop else nominal * max(costs)
        wanted = [budget / cost for cost in costs]
    else:
        wanted = _measured(config, counts, peers, at_once, teacher)
    # Slightly more, so that rounding does not cost the most expensive stretch a whole multiple.
    whole = [int(size * (1 + 1e-9)) // batch.multiple * batch.multiple for size in wanted]
    most = batch.largest // batch.multiple * batch.multiple
    sizes = tuple(min(max(size, batch.multiple), most) for size in whole)
    return replace(batch, sizes=sizes, at_once=_needed(batch, at_once, [size // peers.size for size in sizes]))


def _needed(batch: BatchConfig, at_once: tuple[int, ...], clips: list[int]) -> tuple[int, ...]:
    """`at_once`; empty if no limit was asked for and a process's clips of each stretch fit."""
    return at_once if _limited(batch) or any(size > most for size, most in zip(clips, at_once, strict=False)) else ()


def _step_flops(config: Config, teacher: ModelConfig | None, keep_video: Counts, keep_audio: Counts) -> float:
    """FLOPs of a step, for each of its clips."""
    own = FORWARDS * mixed_flops(meta_model(config.model), keep_video, keep_audio)
    return own + (teacher_flops(meta_teacher(teacher)) if teacher else 0.0)


def _fitting(
    config: Config, counts: list[tuple[Counts, Counts]], device: torch.device, teacher: ModelConfig | None
) -> tuple[int, ...]:
    """Clips that fit in the memory budget in one pass, for each stretch; empty on a CPU without a budget."""
    gib = config.batch.memory_gib
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory / GIB
        gib = _OF_DEVICE * whole if gib is None else gib
        require(
            gib <= whole, "batch.memory_gib", gib, f"at most {whole:.1f}, which the GPU has; its kernels need a fifth"
        )
    elif gib is None:
        require(config.batch.rule != "memory", "batch.memory_gib", None, "given for batch.rule='memory' on a CPU")
        return ()
    found = []
    needs = {
        turn: memory_bytes(config, *turn, device=device, teacher=teacher)
        for turn in dict.fromkeys(turn for keep in counts for turn in _turns(keep))
    }
    for keep in counts:
        # With mixed masking, the turn that needs most: a pass may consist of it alone.
        fixed, clip = max((needs[turn] for turn in _turns(keep)), key=lambda need: need[1])
        fits = int((gib * GIB - fixed) // clip)
        enough = fits >= 1 or not _limited(config.batch)  # an estimate alone is no reason to refuse
        require(enough, "batch.memory_gib", gib, f"{(fixed + clip) / GIB:.2f} or more, which one clip needs")
        found.append(max(fits, 1))
    return tuple(found)


def _limited(batch: BatchConfig) -> bool:
    """Whether a memory limit was requested."""
    return batch.memory_gib is not None or batch.rule == "memory"


def _turns(keep: tuple[Counts, Counts]) -> list[tuple[int, int]]:
    """Visible tokens of video and audio, for each turn of mixed masking."""
    return [(video, audio) for audio, video in turns(keep[1], keep[0])]


def memory_bytes(
    config: Config,
    keep_video: Counts,
    keep_audio: Counts,
    *,
    device: torch.device,
    teacher: ModelConfig | None = None,
) -> tuple[int, int]:
    """Bytes of parameters, gradients and AdamW's moments, and of one clip with everything its backward pass needs.

    An average of the weights counts as those weights; a teacher as its parameters and the targets: the memory of its
    own forward is freed before the student's.

    The second is taken from a forward of fake tensors, which need no memory and no time: every tensor that autograd
    keeps, each storage once. Buffers of single kernels are not included; leave a fifth for them.
    """
    one, two = _kept_bytes(config, keep_video, keep_audio, device, teacher)
    weights = sum(p.numel() for p in meta_model(config.model).parameters())
    frozen = sum(p.numel() for p in meta_teacher(teacher).parameters()) if teacher else 0
    averaged = weights if config.train.ema else 0
    return 16 * weights + 4 * (frozen + averaged) + (one - (two - one)), two - one


def _kept_bytes(
    config: Config, keep_video: Counts, keep_audio: Counts, device: torch.device, teacher: ModelConfig | None
) -> tuple[int, int]:
    """Bytes kept for a batch of one clip, and of two."""
    # On a GPU no kernel keeps attention weights, but the fake tensors are on a CPU.
    attention = "sdpa" if device.type == "cuda" else config.model.attention
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        kept[storage._cdata] = storage  # held, or its address could be reused
        return x

    with FakeTensorMode():
        model = DiffMAViL(replace(config.model, attention=attention, norm="torch"))
        teaches = Teacher(replace(teacher, attention=attention, norm="torch")) if teacher else None
        for module in model.modules():
            if isinstance(module, Blocks):
                module.recompute = config.train.recompute
        own = {p.untyped_storage()._cdata for p in [*model.parameters(), *model.buffers()]}
        found = []
        for clips in (1, 2):
            kept.clear()
            video, spec = random_clips(config, clips, torch.device("cpu"))
            with (
                torch.autocast("cpu", dtype=torch.bfloat16, enabled=use_bf16(config, device)),
                torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
            ):
                key: dict[str, Any] = {"seed": 0, "offset": 0, "keep_video": keep_video, "keep_audio": keep_audio}
                draws = model.draw(video, spec, **key)
                draws = teaches.targets(draws, video, spec) if teaches else draws
                losses = model(video, spec, **key, draws=draws)
            others = sum(storage.nbytes() for address, storage in kept.items() if address not in own)
            found.append(video.nbytes + spec.nbytes + others)
            del losses
        return found[0], found[1]


def _measured(
    config: Config,
    counts: list[tuple[Counts, Counts]],
    peers: World,
    at_once: tuple[int, ...],
    teacher: ModelConfig | None,
) -> list[float]:
    """Clips of all processes that take as long in each stretch as `train.batch_size` does in the most expensive one.

    Seconds of a process with B clips are fixed + clip * B, from two batch sizes no larger than its part of a batch or
    than what fits in one pass; at most four times `train.batch_size`, however small the time per clip seems. Kept under
    `data.cache` for this device and config.
    """
    device, share = peers.device, config.train.batch_size / peers.size
    many = max(2, min([math.ceil(share), *at_once]))
    path = _cache_file(config, device, many, teacher)
    lines = peers.main_only(lambda: _known_times(config, path))
    if lines is None:
        # Run by all ranks: the contrast of each reads the rows of all.
        lines = peers.from_main(_sweep(config, counts, device, many, teacher))
        peers.main_only(lambda: _keep_times(config, path, lines))
    budget, most = max(fixed + clip * share for fixed, clip in lines), float(_REACH * config.train.batch_size)
    return [min((budget - fixed) / clip * peers.size, most) for fixed, clip in lines]


def _known_times(config: Config, path: Path) -> list[tuple[float, float]] | None:
    """The times measured by an earlier start; if there are none, create the folder for them and return None."""
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        with writing("data.cache", config.data.cache):
            path.parent.mkdir(parents=True, exist_ok=True)
        return None


def _keep_times(config: Config, path: Path, lines: list[tuple[float, float]]) -> None:
    with writing("data.cache", config.data.cache):
        path.write_text(json.dumps(lines))


def _cache_file(config: Config, device: torch.device, many: int, teacher: ModelConfig | None) -> Path:
    """The file, named by everything that the times depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu-{torch.get_num_threads()}"
    train = replace(config.train, steps=1, seed=0)
    facts = repr((name, torch.__version__, config.model, config.mask, train, many, teacher))
    digest = hashlib.sha256(facts.encode()).hexdigest()[:16]
    return expand(config.data.cache) / "plans" / f"{digest}.json"


def _sweep(
    config: Config, counts: list[tuple[Counts, Counts]], device: torch.device, many: int, teacher: ModelConfig | None
) -> list[tuple[float, float]]:
    """(fixed, clip) seconds of a pass of one process, for each stretch; measured with up to `many` clips. With mixed
    masking, the mean over its turns. Every rank calls it.
    """
    known = replace(config.model.audio, mean=config.model.audio.mean or 0.0, std=config.model.audio.std or 1.0)
    alone = replace(config, model=replace(config.model, audio=known))
    task = SecondStage(alone, device, Teacher(teacher).to(device)) if teacher else Pretraining(alone, device)
    step = TrainStep(task, alone, World(rank=0, size=1, device=device))
    few = max(1, many // 4)
    found: dict[tuple[int, int], tuple[float, float]] = {}
    for keep in counts:
        for turn in _turns(keep):
            if turn not in found:
                short, long = (_seconds(step, clips, turn, device) for clips in (few, many))
                clip = max((long - short) / (many - few), 1e-9)
                found[turn] = (max(long - clip * many, 0.0), clip)
    of_turns = [[found[turn] for turn in _turns(keep)] for keep in counts]
    return [
        (statistics.fmean(fixed), statistics.fmean(clip)) for fixed, clip in (zip(*of, strict=True) for of in of_turns)
    ]


def _seconds(step: TrainStep, clips: int, keep: tuple[int, int], device: torch.device) -> float:
    now = plan(step.config, step.config.batch.begin[0])._replace(keep_video=keep[0], keep_audio=keep[1], at_once=0)
    inputs = step.task.random_inputs(clips)
    times = []
    for _ in range(1 + _REPEATS):
        _wait(device)
        begin = time.perf_counter()
        step.one_pass(inputs, now, 0, 1.0)
        step.drop_gradients()
        _wait(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def plan_table(config: Config, processes: int, teacher: ModelConfig | None = None) -> Table:
    """The plan, a row for each stretch."""
    table = Table(
        title=f"plan: {timetable(config).samples:,} clips in {timetable(config).steps:,} steps, "
        f"batch.rule={config.batch.rule}, batch.lr_rule={config.batch.lr_rule}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    for name in ("from step", "from clip", "visible video", "audio", "clips a step", "each process", "TFLOP", "lr"):
        table.add_column(name, justify="right")
    for step, now in changes(config):
        local = now.batch_size // processes
        rounds = len(passes(local, now.at_once))
        table.add_row(
            f"{step:,}",
            f"{now.position:,}",
            _shown(now.keep_video),
            _shown(now.keep_audio),
            f"{now.batch_size:,}",
            f"{local:,}" if rounds == 1 else f"{local:,} in {rounds} passes",
            f"{now.batch_size * _step_flops(config, teacher, now.keep_video, now.keep_audio) / 1e12:.3g}",
            f"x {lr_scale(config, now.batch_size):.2f}",
        )
    return table


def _shown(keep: Counts) -> str:
    return ", ".join(map(str, keep)) if isinstance(keep, tuple) else str(keep)
