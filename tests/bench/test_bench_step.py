"""The table of training steps: its baseline does the same job, and its rows say what they should."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import eager, step
from benchmarks.mavil_eager import EagerMAViL
from diffmavil.config import AudioConfig, EncoderConfig, ModelConfig, VideoConfig
from diffmavil.config.presets import preset
from diffmavil.training.costs import scheduled_flops, techniques

SEED, OFFSET, KEEP_VIDEO, KEEP_AUDIO, BATCH = 3, 5, 6, 7, 4


def small_mavil() -> ModelConfig:
    tiny = preset("mavil-tiny").model
    decoder = replace(tiny.video_decoder, depth=1, width=32, heads=2)
    return replace(
        tiny,
        video=VideoConfig(frames=4, size=32, patch=(2, 8, 8)),
        audio=AudioConfig(frames=64, mels=32, patch=(8, 8)),
        encoder=EncoderConfig(depth=2, width=48, heads=3),
        video_decoder=decoder,
        audio_decoder=decoder,
        views=2,
    )


@pytest.mark.parametrize("gather_first", [False, True], ids=["embeds-all", "gathers-first"])
def test_the_baseline_has_the_loss_and_gradients_of_our_model(gather_first: bool, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    baseline = EagerMAViL(small_mavil(), gather_first=gather_first)
    model = baseline.model
    video = torch.randint(256, (BATCH, 4, 32, 32, 3), dtype=torch.uint8)
    spec = torch.randn(BATCH, 64, 32)
    turns = [
        (branch, keep, view)
        for view in range(2)
        for branch, keep in ((model.audio, KEEP_AUDIO), (model.video, KEEP_VIDEO))
    ]

    def our_masks(batch: int, length: int, keep: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        branch, wanted, view = turns.pop(0)
        assert (length, keep) == (branch.tokens, wanted)
        ids = branch.mask_view(batch, keep, view, SEED, OFFSET, device)
        mask = torch.ones(batch, length).scatter_(1, ids.ids_keep.long(), 0.0)
        return ids.ids_keep.long(), mask, torch.cat(ids, dim=1).argsort(dim=1)

    monkeypatch.setattr(eager, "random_mask", our_masks)
    theirs = baseline(video, spec, keep_video=KEEP_VIDEO, keep_audio=KEEP_AUDIO)
    theirs.backward()
    assert not turns
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    ours = model(video, spec, seed=SEED, offset=OFFSET, keep_video=KEEP_VIDEO, keep_audio=KEEP_AUDIO).total
    ours.backward()
    torch.testing.assert_close(theirs, ours)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], msg=name, rtol=1e-3, atol=1e-5)


def test_rows_are_written_with_the_flops_of_the_real_modules(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    results, picture = tmp_path / "new" / "step.jsonl", tmp_path / "step.png"
    quick = ["--device", "cpu", "--views", "1", "--batch", "2", "--levels", "1", "--seconds", "0", "--no-peers"]
    assert step.main([*quick, "--json", str(results), "--plot", str(picture)]) == 0
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    names = [row["row"] for row in rows]
    assert names[0] == "MAViL as AudioMAE writes it"
    assert names.index(step.MAVIL) < names.index("+ ratio 0.9 -> 0.8") < names.index("+ decode a quarter")
    out = capsys.readouterr().out
    assert all(name in out for name in names)
    assert picture.stat().st_size > 10_000
    by_name = {row["row"]: row for row in rows}
    for row in rows:  # numbers are rounded to four digits
        assert tuple(row)[: len(step.KEYS)] == step.KEYS
        assert {"device", "commit", "versions", "date"} <= set(row)
        assert row["readings"] >= 7
        assert row["clips_per_s"] == pytest.approx(1e3 / row["ms_per_clip"], rel=2e-3)
        assert row["mfu"] == pytest.approx(
            3 * row["gflop_per_clip"] / row["ms_per_clip"] / row["matmul_tflops"], rel=3e-3
        )
    for name, model, mask in techniques(preset("mavil-tiny").model):
        mine = step.MAVIL if name == "MAViL" else name
        if mine in by_name and mask.video.kind == "constant":
            assert by_name[mine]["gflop_per_clip"] == pytest.approx(scheduled_flops(model, mask).total * 1e-9, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--batch", "0"), "--batch 0: must be at least 1"),
        (("--size", "giant"), "tiny"),
        (("--views", "3"), "1, 2"),
    ],
    ids=["no-clips", "unknown-size", "three-views"],
)
def test_a_wrong_argument_says_what_is_allowed(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as exit_:
        step.main(["--device", "cpu", *arguments])
    assert exit_.value.code == 2
    assert says in capsys.readouterr().err
