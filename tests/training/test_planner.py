"""Adaptive batches: every step follows from (config, step), and the samples of a run are seen once, in order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rich.console import Console

from diffmavil.config import BatchConfig, Config, MaskConfig, RatioSchedule
from diffmavil.config.files import load_config
from diffmavil.config.presets import PRESETS
from diffmavil.data.dataset import Batch
from diffmavil.model.draws import spans
from diffmavil.model.flops import meta_model, mixed_flops
from diffmavil.training.budget import memory_bytes, plan_table, resolve_batches
from diffmavil.training.distributed import World
from diffmavil.training.planner import (
    Orders,
    changes,
    check_processes,
    continued,
    passes,
    plan,
    shapes,
    stretch_counts,
    timetable,
)
from diffmavil.training.pretraining import Pretraining, random_clips
from diffmavil.training.step import TrainStep

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
TINY = PRESETS["diffmavil-tiny"]
FALLING, RISING = RatioSchedule("linear", 0.9, 0.6, levels=4), RatioSchedule("step", 0.7, 0.8, levels=2)
FLAT = RatioSchedule("constant", 0.7)


def adaptive(steps: int = 50, batch_size: int = 16, **batch: object) -> Config:
    config = replace(TINY, train=replace(TINY.train, steps=steps, batch_size=batch_size))
    return replace(config, mask=MaskConfig(video=FALLING, audio=RISING), batch=BatchConfig(**batch))  # type: ignore[arg-type]


def test_fixed_batches_are_the_schedules_of_steps_to_the_last_bit():
    config = TINY
    for step in (0, 1, 99, 100, 333, 799):
        now = plan(config, step)
        assert now.position == step * 32
        assert now.progress == step / config.train.steps
        assert (now.batch_size, now.at_once) == (32, 0)
    assert timetable(config).steps == config.train.steps


@pytest.mark.parametrize("sizes", [(48, 40, 24, 16), (16, 16, 32, 8), (8, 800, 8, 8)], ids=str)
def test_steps_follow_one_another_and_end_with_the_samples(sizes):
    config = adaptive(rule="flops", sizes=sizes)
    table, position = timetable(config), 0
    for step in range(table.steps):
        now = plan(config, step)
        assert now.position == position < table.samples == 800
        assert now.batch_size in sizes
        assert now.keep_video in {keep for keep, _ in stretch_counts(config)}
        position += now.batch_size
    assert table.samples <= position < table.samples + max(sizes)
    assert plan(config, table.steps).progress == 1


def test_the_batch_belongs_to_the_stretch_where_a_step_begins():
    config = adaptive(rule="flops", sizes=(48, 40, 24, 16))
    seen = {now.keep_video: now.batch_size for now in (plan(config, s) for s in range(timetable(config).steps))}
    assert list(seen.values()) == [48, 40, 24, 16]
    assert list(seen) == [keep for keep, _ in stretch_counts(config)]


def test_one_position_is_seen_once_by_any_number_of_processes():
    config = adaptive(rule="flops", sizes=(48, 40, 24, 16))
    alone = [list(order) for order in Orders(config, 3, rank=0, processes=1)]
    ranks = [list(Orders(config, 3, rank=rank, processes=4)) for rank in range(4)]
    assert [[i for part in step for i in part] for step in zip(*ranks, strict=True)] == alone
    assert alone[0][0] == plan(config, 3).position
    assert Orders(config, 0, 0, 4).largest == 12


def test_flops_a_step_stay_within_the_budget_and_fill_it():
    config = resolve_batches(adaptive(batch_size=64, rule="flops", multiple=2), ALONE)
    model = meta_model(config.model)
    costs = [mixed_flops(model, *keep) for keep in stretch_counts(config)]
    budget = 64 * max(costs)
    for size, cost in zip(config.batch.sizes, costs, strict=True):
        assert size * cost <= budget * (1 + 1e-6) < (size + 2) * cost
    assert min(config.batch.sizes) == 64
    assert resolve_batches(config, ALONE) is config  # a plan that is there is kept


@pytest.mark.parametrize(("rule", "power"), [("none", 0.0), ("linear", 1.0), ("sqrt", 0.5)])
def test_the_learning_rate_follows_the_batch(rule, power):
    sizes = (64, 32, 32, 16)
    scaled = adaptive(rule="flops", sizes=sizes, lr_rule=rule)
    plain = adaptive(rule="flops", sizes=sizes)
    for step in (0, 5, 20, timetable(plain).steps - 1):
        ours, base = plan(scaled, step), plan(plain, step)
        assert ours.lr == pytest.approx(base.lr * (base.batch_size / 16) ** power)


@pytest.mark.parametrize(("clips", "at_once", "count"), [(16, 0, 1), (16, 16, 1), (17, 16, 2), (10, 3, 4)])
def test_passes_cover_the_clips_once_and_none_is_too_large(clips, at_once, count):
    parts = passes(clips, at_once)
    assert [i for part in parts for i in range(clips)[part]] == list(range(clips))
    assert len(parts) == count
    assert not at_once or max(p.stop - p.start for p in parts) <= at_once


@pytest.mark.parametrize(
    ("views", "decoded_views", "apart"), [(1, 2, None), (2, 2, None), (2, 1, None), (2, 1, 0.25), (1, 1, 0.5)]
)
@pytest.mark.parametrize("mix", [(), (-0.1, 0.05)], ids=["plain", "mixed"])
def test_several_passes_give_the_losses_and_the_gradient_of_one(views, decoded_views, apart, mix):
    """The contrast knows the clips of all passes, however many the memory allows at once."""
    contrast = replace(TINY.model.contrast, inter_weight=1.0, intra_weight=0.5, mask_ratio=apart)
    audio = replace(TINY.model.audio, mean=0.0, std=1.0)
    model = replace(TINY.model, contrast=contrast, audio=audio, views=views, decoded_views=decoded_views)
    config = replace(TINY, model=model, train=replace(TINY.train, precision="fp32"), mask=replace(TINY.mask, mix=mix))
    found = []
    for at_once in (0, 3, 1):
        step = TrainStep(Pretraining(config, ALONE.device), config, ALONE)
        video, _ = step.task.random_inputs(8)
        wave = torch.randn(8, model.audio.samples, generator=torch.Generator().manual_seed(0))
        batch = Batch(video, wave, torch.full((8,), wave.shape[1]), [()] * 8, torch.arange(8), [""] * 8)
        losses = step.gradients(batch, plan(config, 0)._replace(at_once=at_once), 7)
        found.append((losses, [p.grad for p in step.model.parameters()]))
    (losses, whole), *others = found
    assert losses[3] > 1.5  # of 8 clips: ln 8 is 2.1, and of a clip alone it would be 0
    assert losses[4] > 1.5 or views == 1
    for parts_losses, parts in others:
        torch.testing.assert_close(parts_losses, losses, rtol=1e-4, atol=1e-5)
        for one, other in zip(parts, whole, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-6)


def test_memory_of_a_clip_is_what_autograd_keeps():
    """Fake tensors tell what a real forward keeps, and recomputing blocks keeps far less."""
    config = replace(TINY, train=replace(TINY.train, precision="fp32"))
    fixed, clip = memory_bytes(config, 40, 20, device=ALONE.device)
    averaged = replace(config, train=replace(config.train, ema=0.9))
    weights = sum(p.numel() for p in meta_model(config.model).parameters())
    assert memory_bytes(averaged, 40, 20, device=ALONE.device) == (fixed + 4 * weights, clip)
    kept: dict[int, torch.Tensor] = {}
    counts = []
    for clips in (1, 2):
        torch.manual_seed(0)
        model = meta_model.__wrapped__(config.model).to_empty(device="cpu")
        own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
        kept.clear()

        def pack(x: torch.Tensor, own: set[int] = own) -> torch.Tensor:
            if x.untyped_storage().data_ptr() not in own:
                kept[x.untyped_storage().data_ptr()] = x
            return x

        video, spec = random_clips(config, clips, ALONE.device)
        for parameter in model.parameters():
            torch.nn.init.zeros_(parameter)
        for name, buffer in model.named_buffers():
            buffer.fill_(0.5 if name.endswith("alpha_bar") else 0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            losses = model(video, spec, seed=0, offset=0, keep_video=40, keep_audio=20)
        counts.append(video.nbytes + spec.nbytes + sum(x.untyped_storage().nbytes() for x in kept.values()))
        del losses
    assert clip == pytest.approx(counts[1] - counts[0], rel=0.02)
    recomputed = replace(config, train=replace(config.train, recompute=True))
    assert memory_bytes(recomputed, 40, 20, device=ALONE.device)[1] < 0.5 * clip


def test_a_memory_budget_cuts_a_step_into_passes_and_sizes_a_batch(monkeypatch):
    config, gib = adaptive(), (100 + 10.5 * 7) / 2**30
    counts = [keep[0] for keep in stretch_counts(config)]
    monkeypatch.setattr(
        "diffmavil.training.budget.memory_bytes",
        lambda config, keep_video, keep_audio, device, teacher: (100, 7 * (1 + counts.index(keep_video))),
    )
    cut = resolve_batches(adaptive(memory_gib=gib), ALONE)
    assert cut.batch.sizes == ()
    assert cut.batch.at_once == (10, 5, 3, 2)
    filled = resolve_batches(adaptive(rule="memory", memory_gib=gib, multiple=2), ALONE)
    assert filled.batch.sizes == (10, 4, 2, 2)
    assert filled.batch.at_once == (10, 5, 3, 2)
    with pytest.raises(ValueError, match=r"batch\.memory_gib=1e-07: must be .* or more, which one clip needs"):
        resolve_batches(adaptive(memory_gib=1e-7), ALONE)
    with pytest.raises(ValueError, match=r"batch\.memory_gib=None: must be given for batch\.rule='memory' on a CPU"):
        resolve_batches(adaptive(rule="memory"), ALONE)


def test_of_mixed_masking_the_turn_that_needs_most_has_to_fit():
    """A pass may be of that turn alone; which comes first changes nothing."""
    mixes = [(-0.2, 0.0, 0.2), (0.2, 0.0, -0.2), (-0.2,)]
    needed = memory_bytes(adaptive(), *plain_counts(-0.2), device=ALONE.device)
    gib = (needed[0] + 9.5 * needed[1]) / 2**30
    found = []
    for mix in mixes:
        config = adaptive(memory_gib=gib)
        config = replace(config, mask=replace(config.mask, mix=mix))
        found.append(resolve_batches(config, ALONE).batch.at_once)
    assert found[0] == found[1] == found[2]
    assert found[0][-1] == 9


def plain_counts(shift: float) -> tuple[int, int]:
    """Of the last stretch, every sample so much less masked."""
    config = adaptive()
    video, audio = stretch_counts(replace(config, mask=replace(config.mask, mix=(shift,))))[-1]
    assert isinstance(video, tuple)
    assert isinstance(audio, tuple)
    return video[0], audio[0]


def test_mixed_masking_has_a_shape_for_each_place_in_the_turns():
    config = adaptive(batch_size=20)
    config = replace(config, mask=MaskConfig(video=FLAT, audio=FLAT, mix=(-0.1, 0.0, 0.1)))
    found = shapes(config)
    assert sorted(now.position % 24 for now in found) == [0, 4, 8, 12, 16, 20]
    cut = [tuple(span.samples for span in spans(20, now.position, now.keep_audio, now.keep_video)) for now in found]
    assert len(set(cut)) > 1
    whole = shapes(replace(config, train=replace(config.train, batch_size=48)))
    assert len(whole) == 1
    one = shapes(replace(config, mask=MaskConfig(video=FLAT, audio=FLAT, mix=(0.1,))))
    assert sorted(now.position % 8 for now in one) == [0, 4]  # runs of eight are cut also where all keep the same


@pytest.mark.slow
def test_several_processes_measure_together(train, tmp_path):
    """The contrast of each reads the rows of all: none can measure alone."""
    folder = tmp_path / "run"
    train(folder, "--batch.rule", "measured", "--batch.multiple", "2", nproc=2)
    config = load_config(folder / "config.yaml")
    assert len(config.batch.sizes) == len(stretch_counts(config)) > 1
    assert all(size >= 2 and size % 2 == 0 for size in config.batch.sizes)


def test_a_measured_plan_is_kept_and_read_again(tmp_path, monkeypatch):
    config = adaptive(batch_size=8, rule="measured", multiple=1)
    config = replace(config, data=replace(config.data, cache=str(tmp_path)))
    swept = []

    def sweep(config, counts, device, many, teacher):
        swept.append(counts)
        return [(0.1, 0.01 * (i + 1)) for i in range(len(counts))]

    monkeypatch.setattr("diffmavil.training.budget._sweep", sweep)
    plans = [resolve_batches(config, ALONE).batch.sizes for _ in range(2)]
    assert plans[0] == plans[1] == (32, 16, 10, 8)  # each takes 0.1 + 0.04 * 8 seconds
    assert len(swept) == 1
    other = replace(config, model=replace(config.model, fusion_depth=2))
    resolve_batches(other, ALONE)
    assert len(swept) == 2


def test_a_process_is_measured_with_its_share_of_a_step_and_what_fits_at_once(tmp_path, monkeypatch):
    from diffmavil.training import budget

    measured = []

    def sweep(config, counts, device, many, teacher):
        measured.append(many)
        return [(0.1, 0.01 * (i + 1)) for i in range(len(counts))]

    monkeypatch.setattr(budget, "_sweep", sweep)
    config = adaptive(batch_size=32, rule="measured")
    config = replace(config, data=replace(config.data, cache=str(tmp_path)))
    four = World(rank=0, size=4, device=ALONE.device)
    counts = stretch_counts(config)
    # Each takes 0.1 + 0.04 * 8 seconds, with a quarter of the clips on each of four processes.
    assert budget._measured(config, counts, four, (), None) == pytest.approx([128, 64, 128 / 3, 32])
    budget._measured(config, counts, four, (9, 7, 6, 5), None)
    assert measured == [8, 5]
    budget._measured(config, counts, four, (1, 7, 6, 5), None)
    assert measured[2:] == [2], "two sizes tell the fixed part from that of a clip"


def test_a_plan_does_not_reach_far_beyond_what_was_measured(tmp_path, monkeypatch):
    """Where the larger batch took no longer, by chance or since the device was idle, a clip seems to cost nothing."""
    times = [(0.3, 0.01), (0.4, 1e-9), (0.3, 0.02), (0.2, 1e-9)]
    monkeypatch.setattr("diffmavil.training.budget._sweep", lambda *arguments: times)
    config = adaptive(batch_size=8, rule="measured", multiple=1)
    config = replace(config, data=replace(config.data, cache=str(tmp_path)))
    assert resolve_batches(config, ALONE).batch.sizes == (16, 32, 8, 32)


def test_the_sweep_measures_every_stretch():
    from diffmavil.training.budget import _sweep

    config = adaptive(batch_size=4)
    config = replace(config, mask=MaskConfig(video=replace(FALLING, levels=2), audio=RISING))
    lines = _sweep(config, stretch_counts(config), ALONE.device, 4, None)
    assert len(lines) == 2
    assert all(fixed >= 0 and clip > 0 for fixed, clip in lines)


def test_the_table_shows_every_change(capsys):
    config = resolve_batches(adaptive(batch_size=64, rule="flops"), ALONE)
    Console(width=150).print(plan_table(config, 2))
    out = capsys.readouterr().out
    for step, now in changes(config):
        assert f"{step:,}" in out
        assert str(now.batch_size) in out
    assert len(shapes(config)) == len(changes(config)) == 4


@pytest.mark.parametrize(
    ("batch", "processes", "message"),
    [
        ({"rule": "flops", "sizes": (24, 24, 12, 12)}, 8, r"batch\.sizes=12: must be a multiple of the 8 processes"),
        ({"rule": "flops", "sizes": (16, 16)}, 1, r"batch\.sizes=\(16, 16\): must be 4 numbers"),
        ({}, 3, r"train\.batch_size=16: must be a multiple of the 3 processes"),
    ],
    ids=["sizes", "stretches", "fixed"],
)
def test_plans_that_do_not_fit_are_named(batch, processes, message):
    with pytest.raises(ValueError, match=message):
        check_processes(adaptive(**batch), processes)


def test_sizes_divide_over_processes_that_the_multiple_does_not():
    config = resolve_batches(adaptive(batch_size=48, rule="flops"), World(rank=0, size=3, device=ALONE.device))
    assert config.batch.multiple == 24
    assert len(set(config.batch.sizes)) > 1
    assert all(size % 24 == 0 for size in config.batch.sizes)


def test_too_many_processes_for_the_largest_batch_are_named():
    with pytest.raises(ValueError, match=r"batch\.largest=16: must be >= 24, which 3 processes divide"):
        resolve_batches(adaptive(rule="flops", largest=16), World(rank=0, size=3, device=ALONE.device))


@pytest.mark.parametrize("batch", [{}, {"sizes": (16, 20, 24, 28)}], ids=["fixed", "planned"])
def test_a_run_goes_on_at_its_place_with_another_batch_size(batch):
    old = adaptive(**batch)
    new = continued(old, replace(old, train=replace(old.train, batch_size=40)), 17, plan(old, 17).position)
    position = plan(old, 17).position
    assert new.batch.begin == (17, position)
    assert new.batch.sizes == ()  # a plan for 16 is none for 40
    assert timetable(new).samples == timetable(old).samples == 800
    seen = [i for order in Orders(new, 17, 0, 1) for i in order]
    assert seen[0] == position
    assert seen == list(range(position, position + len(seen)))
    assert 800 <= seen[-1] + 1 < 800 + 40
    assert plan(new, 17).progress == position / 800
    assert {step for step, _ in changes(new)} <= set(range(17, timetable(new).steps))
    with pytest.raises(ValueError, match="step=16: must be >= 17"):
        plan(new, 16)


def test_a_run_that_goes_on_as_it_was_has_nothing_to_remember():
    old = adaptive(sizes=(16, 20, 24, 28))
    assert continued(old, old, 17, plan(old, 17).position) == old
    longer = replace(adaptive(), train=replace(old.train, steps=80))
    assert continued(adaptive(), longer, 17, plan(adaptive(), 17).position) == longer
    slower = replace(old, optim=replace(old.optim, lr=1e-5))
    assert continued(old, slower, 17, plan(old, 17).position) == slower


def test_a_longer_run_of_planned_batches_goes_on_at_its_place():
    old = adaptive(sizes=(16, 20, 24, 28))
    new = continued(old, replace(old, train=replace(old.train, steps=80)), 30, plan(old, 30).position)
    assert plan(new, 30).position == plan(old, 30).position
    assert timetable(new).samples == 80 * 16


def test_a_finished_run_stays_finished():
    old = adaptive()
    new = continued(old, replace(old, train=replace(old.train, batch_size=40)), 50, plan(old, 50).position)
    assert list(Orders(new, 50, 0, 1)) == []
    assert Orders(new, 50, 0, 1).largest == 40
    assert changes(new) == []
    assert (plan(new, 50).progress, timetable(new).steps) == (1.0, 50)


@pytest.mark.parametrize("rule", ["flops", "fixed"])
def test_a_run_goes_on_at_its_place_with_another_rule(rule):
    """A plan that is still to be made, or that another rule has made, must not move the run in the stream."""
    fixed, planned = adaptive(), resolve_batches(adaptive(rule="flops", multiple=2), ALONE)
    old, wanted = (fixed, planned) if rule == "flops" else (planned, fixed)
    position = plan(old, 17).position
    batch = replace(wanted.batch, sizes=old.batch.sizes)  # what is resumed has the plan of before
    new = resolve_batches(continued(old, replace(old, batch=batch), 17, plan(old, 17).position), ALONE)
    assert plan(new, 17).position == position
    assert (new.batch.sizes != ()) == (rule == "flops")
    assert next(iter(Orders(new, 17, 0, 1))).start == position


def test_another_masking_schedule_has_another_plan():
    old = resolve_batches(adaptive(rule="flops", multiple=2), ALONE)
    mask = replace(old.mask, video=replace(old.mask.video, levels=8))
    new = resolve_batches(continued(old, replace(old, mask=mask), 17, plan(old, 17).position), ALONE)
    assert len(new.batch.sizes) == 8
    assert plan(new, 17).position == plan(old, 17).position
