"""Several crops in time of each clip: their mean, beside the centre crop alone."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from diffmavil.data.sources import split_source
from diffmavil.evaluate import show
from diffmavil.evaluation.evaluate import evaluate
from diffmavil.evaluation.features import extract, untrained_model
from diffmavil.evaluation.vggsounder import Annotations
from diffmavil.model import DiffMAViL


@pytest.mark.parametrize("crops", [2, 3])
def test_features_of_several_crops_are_their_mean_and_the_centre_is_told(config, monkeypatch, crops):
    held_out = split_source(config.data).held_out
    clips = replace(held_out, clips=held_out.clips[:4])
    model = untrained_model(config.model, seed=0)
    seen = []
    features = DiffMAViL.features

    def spy(self, video, spec, heard):
        out = features(self, video, spec, heard)
        seen.append(out.audio.clone())
        return out

    monkeypatch.setattr(DiffMAViL, "features", spy)
    got = extract({"it": model}, config, clips, batch_size=5, crops=crops)
    rows = torch.cat(seen)
    assert rows.shape[0] == 12, "three crops of four clips: with an even number, the centre is decoded besides"
    means = torch.stack([rows[crops * i : crops * (i + 1)].mean(0) for i in range(4)])
    torch.testing.assert_close(got.features["it"]["audio"], means)
    assert got.centre is not None
    torch.testing.assert_close(got.centre.features["it"]["audio"], rows[1::3] if crops == 3 else rows[8:])
    alone = extract({"it": model}, config, clips, batch_size=4)
    torch.testing.assert_close(got.centre.features["it"]["audio"], alone.features["it"]["audio"])
    assert got.centre.paths == alone.paths == got.paths


def test_several_crops_are_judged_beside_the_centre_crop(config):
    split = split_source(config.data)
    train, held_out = (replace(clips, clips=clips.clips[:12]) for clips in split)
    model = untrained_model(config.model, seed=1)
    names = {Path(clip.path).stem: {held_out.classes[clip.labels[0]]: "A"} for clip in held_out.clips}
    found = evaluate(model, config, train, held_out, crops=3, vggsounder=Annotations(names))
    single = evaluate(model, config, train, held_out)
    assert list(found.results) == [
        *("trained", "untrained", "chance", "trained, centre crop", "untrained, centre crop")
    ]
    assert found.results["trained, centre crop"] == pytest.approx(single.results["trained"])
    assert found.intervals["trained, centre crop"] == single.intervals["trained"]
    assert found.results["trained"] != found.results["trained, centre crop"]
    assert found.results["trained"]["vggsounder_audible/hit@1"] == found.results["trained"]["probe/audio"]
    console = Console(width=80, record=True, file=io.StringIO())
    show(found, console)
    printed = console.export_text()
    assert all(printed.count(f"linear probe, {kind}") == 2 for kind in ("audio", "video", "fused"))
    assert "VGGSounder, audible" in printed
    assert "…" not in printed
    row = next(row for row in found.section()["rows"] if row["name"] == "VGGSounder, audible, hit@1")
    assert [bool(cell) for cell in row["cells"]] == [True, False, True, False, False]
    assert found.protocol.crops == 3
    assert found.protocol.sha256 is None
