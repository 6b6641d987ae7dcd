"""The doctor of a run: what is wrong is found, the worst first, and a run as it should be has nothing to say."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffmavil.config import Config, FinetuneConfig
from diffmavil.config.cli import run_main
from diffmavil.config.errors import UsageError
from diffmavil.config.files import CONFIG_FILE, flat_settings, save_config
from diffmavil.config.presets import FINETUNE_PRESETS, preset
from diffmavil.data.clips import ClipSet
from diffmavil.data.sources import split_source
from diffmavil.data.stats import resolve_audio_stats
from diffmavil.doctor import main
from diffmavil.evaluation.checkup import Checkup, examine, open_case
from diffmavil.evaluation.checkup.settings import _GROUPS
from diffmavil.evaluation.features import untrained_model
from diffmavil.model.classifier import Classifier
from diffmavil.model.weights import export_weights
from tests.runs import very_small

CHECKS = {
    *("clips", "sound", "weights", "samples seen", "batch", "learning rate", "precision", "other settings"),
    "features",
}


@pytest.fixture(scope="module")
def tiny(cache: Path) -> Config:
    """`diffmavil-tiny` as it would be after training on a few clips."""
    config = preset("diffmavil-tiny")
    data = replace(config.data, cache=str(cache), synthetic_train=24, synthetic_eval=24, workers=0)
    config = replace(config, data=data)
    return resolve_audio_stats(config, split_source(data).train)


def write_run(folder: Path, config: Config, *, samples: int | None = None, **record: float) -> Path:
    """A run that has seen so many samples; None: all of them."""
    folder.mkdir()
    save_config(config, folder / CONFIG_FILE)
    total = config.train.steps * config.train.batch_size
    seen = total if samples is None else samples
    last = {"step": seen // config.train.batch_size, "samples": seen, "nonfinite_steps": 0, "bad_clips": 0}
    (folder / "metrics.jsonl").write_text(json.dumps(last | record) + "\n")
    return folder


def checks_of(found: Checkup) -> list[str]:
    return [finding.check for finding in found.findings]


def test_a_clean_run_has_nothing_to_say(tiny: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", tiny)
    export_weights(untrained_model(tiny.model, seed=1), tiny, run / "model.safetensors")
    main([str(run), "--clips", "8", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["findings"] == []
    assert found["unchecked"] == {}
    assert set(found["clean"]) == CHECKS
    assert (found["preset"], found["kind"]) == ("diffmavil-tiny", "pretraining")
    assert found["state"] == "finished after 1,000 steps"


def with_sound(config: Config, mean: float, std: float) -> Config:
    audio = replace(config.model.audio, mean=mean, std=std)
    return replace(config, model=replace(config.model, audio=audio))


def test_wrong_statistics_are_the_first_suspect(tiny: Config, tmp_path: Path) -> None:
    """Also of a run that is short, whose batch is small and whose learning rate is high."""
    config = replace(with_sound(tiny, 0.0, 1.0), optim=replace(tiny.optim, lr=4e-3))
    config = replace(config, train=replace(config.train, batch_size=8, steps=60))
    found = examine(write_run(tmp_path / "run", config), most=4)
    assert checks_of(found) == ["sound", "samples seen", "learning rate", "batch"]
    first = found.findings[0]
    assert first.here == "mean 0, std 1"
    assert first.reference.startswith(f"mean {tiny.model.audio.mean:.2g}"[:6])
    assert "measured over 4 of its clips" in first.reference
    assert first.level == "very likely"
    assert "no model.safetensors" in found.unchecked["features"]


def test_missing_clips_by_a_real_run(
    train: Callable[..., subprocess.CompletedProcess[str]], cache: Path, tmp_path: Path
) -> None:
    """Of a table of twelve, one file is not there and two hold no video; the statistics were given by hand."""
    config = very_small(cache)
    clips = split_source(config.data).train.clips[:9]
    table = ["path,labels"]
    for number, clip in enumerate(clips):
        shutil.copy(clip.path, tmp_path / f"{number}.mp4")
        table.append(f"{number}.mp4,class{number % 2}")
    for name in ("broken", "empty"):
        (tmp_path / f"{name}.mp4").write_bytes(b"not a video")
    (tmp_path / "clips.csv").write_text("\n".join([*table, "broken.mp4,", "empty.mp4,", "absent.mp4,"]) + "\n")
    run = tmp_path / "run"
    given = ("--data.root", str(tmp_path / "clips.csv"), "--data.max-bad-share", "1")
    train(run, *given, "--model.audio.mean", "0", "--model.audio.std", "1")
    found = examine(run, most=4)
    assert found.state == "finished after 8 steps"
    assert checks_of(found)[0] == "sound"
    clips_said = [finding for finding in found.findings if finding.check == "clips"]
    assert [finding.here.partition(":")[0] for finding in clips_said] == [
        "3 of 12 clips tried could not be used",
        "1 of 12 files looked for are not there",
    ]
    assert "25.0% of the clips" in clips_said[0].difference
    assert "absent.mp4" in clips_said[1].here


def test_what_differs_from_the_preset_is_told(tiny: Config, tmp_path: Path) -> None:
    config = replace(
        tiny,
        optim=replace(tiny.optim, warmup=0.0, weight_decay=0.5),
        mask=replace(tiny.mask, video=replace(tiny.mask.video, start=0.3, end=0.3)),
        train=replace(tiny.train, precision="fp32"),
    )
    run = write_run(tmp_path / "run", config, samples=16_000, nonfinite_steps=100)
    found = examine(run, most=4)
    assert found.state == "500 of 1,000 steps done"
    said = {finding.check: finding for finding in found.findings}
    assert "optim.warmup 0, optim.weight_decay 0.5" in said["schedule"].here
    assert said["schedule"].reference == "optim.warmup 0.05, optim.weight_decay 0.05"
    assert "mask.video.start 0.3" in said["masking"].here
    assert said["samples seen"].advice.startswith("resume it")
    assert said["samples seen"].difference == "50.0% of the reference"
    precision = [finding for finding in found.findings if finding.check == "precision"]
    assert [finding.here for finding in precision] == [
        "100 of 500 steps were skipped: their gradient was not finite",
        "fp32",
    ]
    assert found.findings[0].check == "precision"


def test_every_setting_of_model_masks_and_optimiser_is_compared() -> None:
    compared = tuple(prefix for prefixes, *_ in _GROUPS.values() for prefix in prefixes)
    names = [name for name in flat_settings(Config()) if name.startswith(("model.", "mask.", "optim."))]
    others = {name for name in names if not name.startswith(compared)}
    # Whose kernels compute it changes nothing, the stage decides the width, and the rate has a check of its own.
    assert others == {"model.attention", "model.norm", "model.target_width", "optim.lr"}


def test_a_collapse_is_found_by_the_records_and_by_the_weights(tiny: Config, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tiny, samples=320)
    looks = [{"step": step, "samples": 32 * step, "probe/rank/audio": rank, "probe/dead/audio": 0.0}
             for step, rank in ((1, 20.0), (10, 1.2))]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(look) + "\n" for look in looks))
    said = {finding.check: finding for finding in examine(run, most=4).findings}
    assert said["features"].here == "effective rank 1.2 of the audio features"
    assert said["features"].reference == "20 at first"

    model = untrained_model(tiny.model, seed=1)
    with torch.no_grad():
        model.audio.encoder.norm.get_parameter("weight").zero_()  # every sound alike
        model.audio.encoder.norm.get_parameter("bias").fill_(1.0)
    export_weights(model, tiny, run / "model.safetensors")
    said = [finding.here for finding in examine(run, most=6).findings if finding.check == "features"]
    assert any(line.startswith("effective rank 1 of the audio") for line in said)
    assert any("of the audio features are the same for all clips" in line for line in said)


def finetuning(config: Config, source: str, **head: object) -> FinetuneConfig:
    recipe = FINETUNE_PRESETS["finetune-tiny"]
    settings = replace(recipe.head, source=source, classes=("a", "b"), labels="one", **head)
    train = replace(recipe.train, steps=90, batch_size=8)
    data = replace(recipe.data, **{name: getattr(config.data, name) for name in ("cache", "workers")})
    data = replace(data, synthetic_train=24, synthetic_eval=24)
    return replace(recipe, model=config.model, data=data, head=settings, train=train)


def test_statistics_that_came_with_weights_are_no_fault(cache: Path, tmp_path: Path) -> None:
    """A run of sound alone that begins with weights of both: nothing of them is wrong, and nothing too deep."""
    config = very_small(cache)
    weights = tmp_path / "both.safetensors"
    export_weights(untrained_model(config.model, seed=1), config, weights)
    begun = replace(config, model=replace(config.model, modalities="audio"))
    begun = replace(begun, train=replace(begun.train, init=str(weights)))
    assert not {"sound", "weights"} & set(checks_of(examine(write_run(tmp_path / "run", begun), most=6)))
    other = replace(begun, model=replace(begun.model, audio=replace(begun.model.audio, mean=0.0, std=1.0)))
    found = examine(write_run(tmp_path / "other", other), most=6).findings
    assert "in the weights it started from" in " ".join(f.reference for f in found if f.check == "sound")


def test_fine_tuning_from_scratch_and_from_weights(cache: Path, tmp_path: Path) -> None:
    config = very_small(cache)
    (tmp_path / "pretrained").mkdir()
    weights = tmp_path / "pretrained" / "model.safetensors"
    export_weights(untrained_model(config.model, seed=1), config, weights)
    tuned = finetuning(config, str(tmp_path / "pretrained"))
    assert config.model.audio.mean
    run = write_run(tmp_path / "same", with_kind(tuned, -6.0, 4.0))
    export_weights(Classifier(tuned.model, tuned.head), tuned, run / "model.safetensors")
    found = examine(run, most=6)
    assert found.kind == "fine-tuning"
    assert found.preset == "finetune-tiny"
    assert not {"weights", "samples seen"} & set(checks_of(found))
    assert "features" in found.clean

    other = examine(write_run(tmp_path / "other", with_kind(tuned, 0.0, 1.0)), most=4)
    assert checks_of(other)[:2] == ["sound", "sound"]
    assert "in the weights it started from" in " ".join(finding.reference for finding in other.findings[:2])

    more = replace(with_kind(tuned, -6.0, 4.0), data=replace(tuned.data, synthetic_train=48))
    held_back = examine(write_run(tmp_path / "more", more), most=4)
    assert "samples seen" not in checks_of(held_back), "epochs are of the clips that it learns from"

    # Statistics of other sound, which came with the weights; and those of its own clips, set beside them.
    louder = with_kind(tuned, 0.0, 1.0)
    (tmp_path / "louder").mkdir()
    export_weights(
        untrained_model(config.model, seed=1), with_sound(config, 0.0, 1.0), tmp_path / "louder" / weights.name
    )
    louder = replace(louder, head=replace(louder.head, source=str(tmp_path / "louder")))
    assert "sound" not in checks_of(examine(write_run(tmp_path / "inherited", louder), most=4))
    unmeasured = replace(config, model=replace(config.model, audio=replace(config.model.audio, mean=None, std=None)))
    measured = resolve_audio_stats(unmeasured, split_source(config.data).train).model.audio
    assert measured.mean is not None
    assert measured.std is not None
    own = examine(write_run(tmp_path / "own", with_kind(louder, measured.mean, measured.std)), most=24)
    (sound,) = (finding for finding in own.findings if finding.check == "sound")
    assert sound.advice.startswith("right if it was meant")

    deeper = replace(tuned, model=replace(tuned.model, encoder=replace(tuned.model.encoder, depth=3)))
    said = {finding.check: finding for finding in examine(write_run(tmp_path / "deep", deeper), most=4).findings}
    assert "audio.encoder.blocks.1" in said["weights"].here
    scratch = examine(write_run(tmp_path / "scratch", finetuning(config, "none")), most=4)
    assert {finding.check: finding.here for finding in scratch.findings}["weights"] == "newly initialised"
    shutil.rmtree(tmp_path / "pretrained")
    assert "are gone" in examine(run, most=4).unchecked["weights"]


def some_lost(model: Classifier, video: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    rows = torch.randn(len(video), 8, generator=torch.Generator().manual_seed(0))
    rows[::2] = math.nan
    return rows


def test_a_classifier_that_is_not_finite_is_told_and_ends_no_check(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = very_small(cache)
    tuned = with_kind(finetuning(config, "none"), -6.0, 4.0)
    run = write_run(tmp_path / "run", tuned)
    model = Classifier(tuned.model, tuned.head)
    torch.nn.init.constant_(model.norm.weight, math.nan)
    export_weights(model, tuned, run / "model.safetensors")
    found = examine(run, most=4)
    assert found.unchecked["features"] == "no pooled features are finite"
    monkeypatch.setattr(Classifier, "features", some_lost)
    said = [finding.here for finding in examine(run, most=4).findings]
    assert "pooled features of 50% of the clips are not finite" in said
    assert "weights" in checks_of(found)
    (run / "classification.json").write_text("{}")
    assert "damaged or of another version" in examine(run, most=4).unchecked["features"]


def with_kind(config: FinetuneConfig, mean: float, std: float) -> FinetuneConfig:
    changed = with_sound(config, mean, std)
    assert isinstance(changed, FinetuneConfig)
    return changed


@pytest.mark.parametrize("modalities", ["audio", "video"])
def test_a_run_of_one_modality(cache: Path, tmp_path: Path, modalities: str) -> None:
    config = very_small(cache)
    config = replace(config, model=replace(config.model, modalities=modalities))
    found = examine(write_run(tmp_path / "run", config), most=4)
    assert ("the model does not hear" in found.unchecked.get("sound", "")) == (modalities == "video")


def test_a_run_that_has_not_begun_and_whose_clips_are_gone(cache: Path, tmp_path: Path) -> None:
    config = very_small(cache)
    run = write_run(tmp_path / "run", replace(config, data=replace(config.data, root=str(tmp_path / "gone"))))
    (run / "metrics.jsonl").unlink()
    found = examine(run, most=4)
    assert found.state == "not begun"
    assert all("cannot be opened" in found.unchecked[name] for name in ("clips", "sound"))
    assert "samples seen" in checks_of(found)


@pytest.mark.parametrize("name", ["diffmavil-base-fast", "mavil-small", "finetune-large"])
def test_the_preset_is_told_by_the_settings(tmp_path: Path, name: str) -> None:
    config = FINETUNE_PRESETS[name] if name in FINETUNE_PRESETS else preset(name)
    changed = replace(config, optim=replace(config.optim, lr=1.0))
    assert open_case(write_run(tmp_path / "run", changed), None, 4).preset == name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["absent"], "RUN absent: no such folder"),
        (["run", "--preset", "mavil-huge"], "--preset='mavil-huge': must be one of mavil-tiny"),
        (["empty"], "RUN empty: holds no run"),
    ],
    ids=["no folder", "no preset", "no run"],
)
def test_bad_input(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    write_run(tmp_path / "run", very_small(cache))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        main(arguments)
    assert said in str(error.value)


def test_the_exit_code_of_a_damaged_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / CONFIG_FILE).write_text("model: 3\n")
    monkeypatch.setattr(sys, "argv", ["doctor", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        run_main(main)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert "not a readable config" in told


def test_set_aside_clips_are_counted(tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `diffmavil.prepare` leaves them in its list, beside the set."""
    config = replace(tiny, data=replace(tiny.data, root=str(tmp_path)))
    split = split_source(tiny.data)
    monkeypatch.setattr("diffmavil.evaluation.checkup.case.split_source", lambda data, modalities: split)
    (tmp_path / "quarantine.csv").write_text("path,reason\n" + "x.mp4,no sound\n" * 12)
    found = examine(write_run(tmp_path / "run", config), most=4)
    assert isinstance(split.train, ClipSet)
    assert [(f.check, f.difference) for f in found.findings] == [("clips", "20.0% of the clips")]
