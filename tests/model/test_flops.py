"""FLOP counts against torch's own counter, and the table of techniques."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffmavil import flops
from diffmavil.config import ModelConfig, RatioSchedule
from diffmavil.config.presets import PRESETS, preset
from diffmavil.flops import main
from diffmavil.model import DiffMAViL
from diffmavil.model.flops import count_parameters, forward_flops, meta_model
from diffmavil.training.costs import Cost, scheduled_flops

TABLE = {
    "MAViL": 240.6,
    "+ diffusion": 242.7,
    "+ video cross-attn": 185.1,
    "+ ratio 0.9 -> 0.8": 163.6,
    "+ audio cross-attn": 153.0,
    "+ decode half": 110.8,
    "+ decode a quarter": 89.8,
}


@pytest.fixture(scope="module")
def costs() -> list[Cost]:
    return flops.technique_costs(preset("mavil-base").model)


def test_table_of_techniques_for_one_view_and_sixteen_frames(costs: list[Cost]) -> None:
    cells = {c.technique: c for c in costs if (c.views, c.frames) == (1, 16)}
    assert {name: round(c.gflop, 1) for name, c in cells.items()} == TABLE
    assert cells["+ ratio 0.9 -> 0.8"].saved == pytest.approx(0.320, abs=0.0005)  # the paper's headline
    assert cells["+ decode a quarter"].saved == pytest.approx(0.63, abs=0.005)
    assert cells["MAViL"].saved == 0


def test_table_has_every_cell_and_two_views_cost_twice(costs: list[Cost]) -> None:
    by_cell = {(c.technique, c.views, c.frames): c.gflop for c in costs}
    assert len(by_cell) == len(costs) == len(TABLE) * 4
    for name in TABLE:
        for frames in (8, 16):
            assert by_cell[name, 2, frames] == pytest.approx(2 * by_cell[name, 1, frames])
        assert by_cell[name, 1, 8] < by_cell[name, 1, 16]


def test_the_table_does_not_depend_on_the_variant_named(costs: list[Cost]) -> None:
    assert flops.technique_costs(preset("diffmavil-base-fast").model) == costs


@pytest.mark.parametrize("decoded_views", [None, 1, 2])
@pytest.mark.parametrize(
    "name",
    ["mavil-tiny", "diffmavil-tiny", "diffmavil-tiny-fast", "diffmavil-tiny-fast, mix", "mavil-tiny-lean, apart"],
)
def test_agrees_with_torch_on_a_real_forward(name: str, decoded_views: int | None) -> None:
    torch.manual_seed(0)
    config = preset(name.partition(",")[0]).model
    if name.endswith("apart"):
        config = replace(config, contrast=replace(config.contrast, mask_ratio=0.4))
    if name.endswith("mix"):
        decoders = {of: replace(getattr(config, of), reads="mix") for of in ("video_decoder", "audio_decoder")}
        config = replace(config, **decoders)
    if decoded_views:
        config = replace(config, views=2, decoded_views=decoded_views)
    model, size = DiffMAViL(config), config.video.size
    video = torch.randint(0, 256, (2, config.video.frames, size, size, 3), dtype=torch.uint8)
    spec = torch.randn(2, config.audio.frames, config.audio.mels)
    # torch's counter does not know the fused attention for CPU; the unfused one is two matmuls.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(video, spec, seed=0, offset=0, keep_video=23, keep_audio=15)
    assert 2 * forward_flops(model, 23, 15).total == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("name", list(PRESETS))
def test_agrees_with_torch_for_every_preset_and_part(name: str) -> None:
    """The whole forward without memory behind it; the contrast between clips is not counted, so it is off."""
    config = preset(name).model
    config = replace(config, contrast=replace(config.contrast, inter_weight=0.0, intra_weight=0.0))
    model, video, audio = meta_model(config), config.video, config.audio
    clips = (
        torch.empty(2, video.frames, video.size, video.size, 3, dtype=torch.uint8, device="meta"),
        torch.empty(2, audio.frames, audio.mels, device="meta"),
    )
    keep_video, keep_audio = video.tokens // 7, audio.tokens // 6
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        losses = model(*clips, seed=0, offset=0, keep_video=keep_video, keep_audio=keep_audio)
    assert losses.total.shape == ()
    counted = {part: sum(ops.values()) / 2 for part, ops in counter.get_flop_counts().items()}
    ours = forward_flops(model, keep_video, keep_audio)
    assert ours.total == pytest.approx(counted["DiffMAViL"], rel=0.01)
    for part in ("video.encoder", "audio.encoder", "fusion", "video.decoder", "audio.decoder"):
        assert getattr(ours, part.replace(".", "_")) == pytest.approx(counted[f"DiffMAViL.{part}"], rel=0.01), part


def test_schedules_with_different_levels_are_averaged_together() -> None:
    config = preset("diffmavil-tiny")
    video = RatioSchedule(kind="step", start=0.9, end=0.5, levels=2)
    audio = RatioSchedule(kind="linear", start=0.9, end=0.6, levels=3)
    mean = scheduled_flops(config.model, replace(config.mask, video=video, audio=audio))
    model = meta_model(config.model)
    video_tokens, audio_tokens = config.model.video.tokens, config.model.audio.tokens
    corners = [
        forward_flops(model, round((1 - v) * video_tokens), round((1 - a) * audio_tokens))
        for v, a in [(0.9, 0.9), (0.9, 0.9), (0.9, 0.75), (0.5, 0.75), (0.5, 0.6), (0.5, 0.6)]
    ]
    assert mean.total == pytest.approx(sum(c.total for c in corners) / 6)


def test_a_second_view_that_is_not_decoded_costs_an_encoder_alone() -> None:
    base = preset("mavil-base")
    model = replace(base.model, video=replace(base.model.video, frames=8))
    both, one = (scheduled_flops(replace(model, decoded_views=n), base.mask) for n in (2, 1))
    assert (round(both.total / 1e9, 1), round(one.total / 1e9, 1)) == (269.8, 181.0)
    assert one == both._replace(
        fusion=both.fusion / 2, video_decoder=both.video_decoder / 2, audio_decoder=both.audio_decoder / 2
    )


def test_views_of_the_contrast_alone_cost_an_encoder_each() -> None:
    model = replace(preset("mavil-tiny").model, views=2)
    apart = replace(model, contrast=replace(model.contrast, mask_ratio=0.5))
    plain, more = (forward_flops(meta_model(one), 51, 31) for one in (model, apart))
    light = forward_flops(meta_model(replace(model, decoded_views=1)), 128, 52)
    assert (more.video_encoder, more.audio_encoder) == (
        plain.video_encoder + light.video_encoder,
        plain.audio_encoder + light.audio_encoder,
    )
    assert more[2:] == plain[2:]
    unread = replace(apart, contrast=replace(apart.contrast, inter_weight=0.0, intra_weight=0.0))
    assert forward_flops(meta_model(unread), 51, 31) == plain


def test_parameters_are_those_of_the_module() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    model[1].bias.requires_grad_(False)
    assert count_parameters(model) == 3 * 4 + 4 + 4 * 2 + 2, "frozen ones are parameters too"


def test_json_is_a_list_of_cells(capsys: pytest.CaptureFixture[str]) -> None:
    main(["diffmavil-tiny", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == len(TABLE) * 4
    assert list(rows[0]) == ["technique", "views", "frames", "gflop", "saved"]


@pytest.mark.parametrize("flags", [[], ["--presets"]], ids=["tables", "presets"])
def test_tables_are_printed(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["diffmavil-tiny", *flags])
    out = capsys.readouterr().out
    assert ("mavil-large" in out) == bool(flags)
    assert ("video decoder" in out) != bool(flags)


def test_an_unknown_preset_lists_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["diffmavil-huge"])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "diffmavil-huge" in err
    assert all(name in err for name in PRESETS)


def test_the_costs_of_the_parts_belong_to_their_config() -> None:
    """Nothing but fusion pays for fusion blocks."""
    config: ModelConfig = preset("mavil-tiny").model
    deep, shallow = (forward_flops(meta_model(replace(config, fusion_depth=d)), 50, 20) for d in (3, 1))
    assert deep.fusion == pytest.approx(3 * shallow.fusion)
    assert deep._replace(fusion=0) == shallow._replace(fusion=0)
