"""Pages about what weights make of clips, and about several runs: what stands there, and what is said to be missing."""

from __future__ import annotations

import base64
import io
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from diffmavil.config import Config
from diffmavil.config.errors import RunError, UsageError
from diffmavil.config.files import CONFIG_FILE, save_config
from diffmavil.config.presets import FINETUNE_PRESETS
from diffmavil.report import main
from diffmavil.reporting import alignment, galleries, page, pictures
from diffmavil.reporting.media import Budget, encode
from diffmavil.reporting.page import write_comparison
from diffmavil.reporting.runs import difference_section, open_runs
from diffmavil.reporting.study import Study, open_study
from tests.reporting.some_runs import write_run
from tests.runs import very_small

LOOKED_AT = ["Reconstructions", "Where the sound is", "Nearest neighbours", "Retrieval", "Map of held-out clips"]
WAYS = ["Masking ratios", "Timesteps", "Sampling steps", "With and without un-normalising"]


@pytest.fixture(scope="module")
def config(cache: Path) -> Config:
    small = very_small(cache)
    return replace(small, train=replace(small.train, steps=3))


@pytest.fixture(scope="module")
def run(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "one", config)


@pytest.fixture(autouse=True)
def _one_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips are coded for each."""
    monkeypatch.setattr(galleries, "_QUERIES", 1)


@pytest.fixture(autouse=True)
def _without_a_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """scikit-learn is an extra, and a map takes seconds: one test has it."""
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)


def headings(text: str, level: int) -> list[str]:
    return re.findall(rf"<h{level}>(.*?)</h{level}>", text)


def notes(text: str) -> dict[str, str]:
    """Heading -> the sentence below it."""
    return dict(re.findall(r'<h[23]>(.*?)</h[23]>\s*<p class="note">(.*?)</p>', text))


def test_one_run_is_looked_at(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(run), "--clips", "10"])
    assert capsys.readouterr().out.endswith(f"report: {run / 'report.html'}\n")
    path = run / "report.html"
    text = path.read_text()
    assert path.stat().st_size < page.LARGEST
    assert headings(text, 2)[-6:] == [*LOOKED_AT, "Config"]
    assert [title for title in headings(text, 3) if title in WAYS] == WAYS
    assert all(source.startswith("data:") for source in re.findall(r'(?:src|poster)="([^"]*)', text))
    assert len(re.findall("<video ", text)) == 5 + 4 + 5  # neighbours, and from sound, and from picture
    assert len(re.findall("<audio ", text)) == 1
    assert "pip install" in notes(text)["Map of held-out clips"]
    labels = re.findall(r"<span>(video, .*?)</span>", text)
    for label in ("50% hidden, visible", "t = 1000, x_t", "8 steps, reconstruction", "as predicted, reconstruction"):
        assert f"video, {label}" in labels


@pytest.mark.parametrize("modalities", ["audio", "video"])
def test_a_run_of_one_modality_says_what_it_cannot_show(config: Config, tmp_path: Path, modalities: str) -> None:
    alone = replace(config, model=replace(config.model, modalities=modalities))
    text = write_comparison([write_run(tmp_path / "run", alone)], tmp_path / "page.html", most=6).read_text()
    said = notes(text)
    assert "one modality alone" in said["Where the sound is"]
    assert "one modality alone" in said["Retrieval"]
    assert f"cosine of their {modalities} features" in said["Nearest neighbours"]
    assert bool(re.search("<video ", text)) == (modalities == "video")
    assert bool(re.search("<audio ", text)) == (modalities == "audio")


def test_what_is_missing_is_said(config: Config, tmp_path: Path) -> None:
    unfinished = write_run(tmp_path / "unfinished", config)
    (unfinished / "model.safetensors").unlink()
    gone = write_run(tmp_path / "gone", config)
    save_config(replace(config, data=replace(config.data, root=str(tmp_path / "nowhere"))), gone / CONFIG_FILE)
    bare = write_run(tmp_path / "bare", config)
    for name in ("model.safetensors", "metrics.jsonl"):
        (bare / name).unlink()
    text = write_comparison([unfinished, gone, bare], tmp_path / "page.html", most=6).read_text()
    found = re.findall(r'<h3>What the model makes of clips</h3>\s*<p class="note">(.*?)</p>', text)
    assert "it is written when training ends" in found[0]
    assert "nowhere" in found[1]
    assert "it is written when training ends" in found[2]
    assert text.count("is not evaluated yet") == 3


def test_runs_are_compared(run: Path, config: Config, tmp_path: Path) -> None:
    """Of pretraining with another learning rate, and of fine-tuning; the two tasks have panels of their own."""
    other = write_run(tmp_path / "one", replace(config, optim=replace(config.optim, lr=3e-4)))
    (other / "model.safetensors").unlink()
    tuned = tmp_path / "tuned"
    shutil.copytree(other, tuned)
    save_config(FINETUNE_PRESETS["finetune-tiny"], tuned / CONFIG_FILE)
    assert [view.name for view in open_runs([run, other])] == [f"{run.parent.name}/one", f"{tmp_path.name}/one"]
    main([str(other), str(tuned), "--out", str(tmp_path / "both.html")])
    text = (tmp_path / "both.html").read_text()
    assert headings(text, 2)[:4] == ["Runs", "Settings that differ", "What the features know", "Scores"]
    assert "<td>optim.lr</td><td>0.0003</td><td>0.001</td>" in text
    assert headings(text, 2)[-3:] == ["one", "tuned", "Config"]
    assert "No scores yet" in text
    two = write_comparison([run, other], tmp_path / "two.html", most=6).read_text()
    (total,) = re.findall(r'<svg role="img" aria-label="(Losses: total.*?)"', two)
    assert f"{run.parent.name}/one from 2 to 0.6667; {tmp_path.name}/one from 2 to 0.6667" in total
    assert 'class="part"' in two, "all but the first part of each section is folded"


def test_settings_that_differ_where_they_are_cut_short_are_told(run: Path, config: Config, tmp_path: Path) -> None:
    long = tuple(f"/data/sets/a-long-name-of-a-set-{i}" for i in range(3))
    folders = []
    for name in ("vggsound", "kinetics"):
        data = replace(config.data, more=(*long, name), weights=(1.0,) * 5)
        folders.append(write_run(tmp_path / name, replace(config, data=data)))
    text = difference_section(open_runs(folders)).table
    assert text is not None
    (row,) = (row.cells for row in text.rows if row.cells[0] == "data.more")
    assert "vggsound" in row[1]
    assert "kinetics" in row[2]


def test_clips_stay_within_the_budget(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "LARGEST", 500_000)
    monkeypatch.setattr(page, "_TEXT", 200_000)
    path = write_comparison([run], tmp_path / "page.html", most=6)
    assert path.stat().st_size < 500_000
    said = notes(path.read_text())
    assert "did not fit: the page stays below its size" in said["Nearest neighbours"] + said["Retrieval"]
    monkeypatch.setattr(page, "LARGEST", 100_000)
    with pytest.raises(RunError, match="compare fewer runs"):
        write_comparison([run], tmp_path / "page.html", most=6)


def test_a_map_has_a_mark_for_each_class(run: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sklearn", raising=False)
    monkeypatch.delitem(sys.modules, "sklearn.manifold", raising=False)
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: the extra `report`")
    from diffmavil.reporting import feature_map

    section = feature_map.section(open_study("one", run, config, 16, Budget(10**6), None))
    assert len(section.panels) == 3
    assert len(section.classes) == 16, "each of 16 clips of a set of 24 has a class of its own"
    assert "var(--c1)" in section.panels[0]


# Where the sound is


def test_the_place_that_is_like_the_sound_is_the_hottest(
    run: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study("one", run, config, 6, Budget(10**6), None)
    t, h, w = config.model.video.grid
    real = study.model.features

    def planted(*inputs):
        """Clip i sounds as its i-th place in the second pair of frames looks."""
        found = real(*inputs)
        tokens = found.video_tokens.clone()
        for i in range(len(tokens)):
            tokens[i, h * w + i] = found.audio[i] * 7
        return found._replace(video_tokens=tokens)

    monkeypatch.setattr(study.model, "features", planted)
    cosine = alignment.similarity(study)
    assert cosine.shape == (4, 4, t, h, w)
    for i in range(4):
        assert cosine[i, i].argmax() == h * w + i
        assert cosine[i, i].max() == pytest.approx(1, abs=1e-5)
    section = alignment.section(study)
    assert [strip.label for strip in section.parts[0].strips][:2] == ["frames", "its own sound"]


def picture_of(found) -> np.ndarray:
    data = base64.b64decode(found.src.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.int16)


def test_pictures_show_what_they_are_given() -> None:
    video = np.zeros((4, 32, 32, 3), np.uint8)
    video[3] = (200, 40, 40)
    strip = pictures.frame_strip(video, "four frames")
    assert (strip.width, strip.height, strip.sharp) == (4 * 34 - 2, 32, True)
    shown = picture_of(strip)
    assert abs(shown[16, -16] - (200, 40, 40)).max() < 12
    assert shown[16, 16].max() < 12
    heat = np.zeros((2, 4, 4))
    heat[1, 3, 3] = 1
    hot = picture_of(pictures.heat_strip(video[:2].repeat(2, axis=0), heat, 0, 1, "heat"))
    assert hot[30, -3].sum() > hot[3, -30].sum() + 100, "below on the right, in the second half"
    assert hot[30, 30].sum() < 100
    spec = np.zeros((40, 8))
    spec[:, 7] = 1
    sound = picture_of(pictures.spectrogram(spec, "a high tone", 0, 1))
    assert sound.shape[:2] == (8, 40)
    assert sound[0].sum() > sound[7].sum(), "high sounds are above"


def test_an_encoded_clip_has_both_tracks_and_its_length() -> None:
    video = np.random.default_rng(0).integers(0, 255, (16, 64, 64, 3), np.uint8)
    wave = np.sin(np.arange(32_000) / 20).astype(np.float32)
    with av.open(io.BytesIO(encode(video, 8.0, wave)), "r") as container:
        assert container.streams.video[0].frames == 16
        assert container.streams.audio[0].rate == 16_000
        assert container.duration is not None
        assert container.duration / 1e6 == pytest.approx(2.0, abs=0.15)
    with av.open(io.BytesIO(encode(None, 0, wave)), "r") as container:
        assert not container.streams.video


# The command


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "RUN: none given"),
        (["absent"], "RUN absent: holds no run"),
        (["one", "absent"], "RUN absent: holds no run"),
        (["one", "--out", "."], "--out .: is a folder"),
    ],
    ids=["nothing", "no folder", "one of two", "out is a folder"],
)
def test_bad_input(run: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str) -> None:
    monkeypatch.chdir(run.parent)
    with pytest.raises(UsageError) as error:
        main(arguments)
    assert said in str(error.value)


def test_the_old_way_to_name_a_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[Path], Path]] = []
    monkeypatch.setattr(
        "diffmavil.report.write_comparison", lambda runs, path, most, console: asked.append((runs, path))
    )
    main(["--run-dir", str(run)])
    assert asked == [([run], run / "report.html")]


def test_clips_are_drawn_that_can_be(config: Config, run: Path) -> None:
    study: Study = open_study("one", run, config, 6, Budget(10**6), None)
    assert len(study.drawn) == 4
    assert torch.equal(study.drawn.video, open_study("one", run, config, 6, Budget(1), None).drawn.video)
