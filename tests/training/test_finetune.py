"""Whole fine-tunings on a few short sounds: what is written, resume, signals, many processes, wrong arguments."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffmavil.config import FinetuneConfig
from diffmavil.config.cli import parse_train, run_main
from diffmavil.config.errors import UsageError
from diffmavil.config.files import load_config
from diffmavil.data.durable import digest_of
from diffmavil.evaluate import main as evaluate
from diffmavil.evaluation.classification import KINDS
from diffmavil.evaluation.validation import read_best
from diffmavil.finetune import main
from diffmavil.model.classifier import Classifier
from diffmavil.model.weights import export_weights, load_classifier, read_weights
from diffmavil.training.checkpoint import checkpoints
from diffmavil.training.metrics import read_metrics
from tests.runs import losses
from tests.training.test_init import save_image_mae
from tests.training.tuned import MODEL, STEPS, result

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run_writes_weights_and_their_scores(whole, weights):
    assert {path.name for path in whole.glob("*.safetensors")} == {
        f"{name}.safetensors" for name in ("model", "best", "average", "ema")
    }
    found = result(whole)
    assert (found.task, found.labels, found.source) == ("audio", "one", str(weights))
    assert found.classes == ["high", "low", "middle"]
    assert set(found.results) == {"last", "best", "average", "ema"}
    assert all(set(by_crops) == {"1", "2"} for by_crops in found.results.values())
    assert found.headline == {"weights": "best", "crops": "2", "metric": "top1"}
    assert found.results["last"]["1"]["top1"] > 0.6, "three pitches are not told apart"
    assert found.clips["test"] == {"listed": 12, "used": 12}
    assert found.clips["train"] + found.clips["validation"] == 48
    assert np.array(found.confusion).sum() == 12
    assert found.steps["last"] == STEPS
    config = load_config(whole / "config.yaml")
    assert isinstance(config, FinetuneConfig)
    assert config.head.classes == ("high", "low", "middle")
    assert config.model.audio.mean == -8.0  # the weights' own


def test_the_best_weights_are_those_of_the_best_validation(whole):
    records = [record for record in read_metrics(whole) if "val/top1" in record]
    assert len(records) == STEPS // 2  # every probe_every, a tenth of the steps
    best = max(record["val/top1"] for record in records)
    first = next(record["step"] for record in records if record["val/top1"] == best)
    assert read_best(whole / "best.safetensors") == (first, best)
    assert result(whole).steps["best"] == first
    assert not any("val/top1" in record for record in read_metrics(whole) if record["step"] % 2)


def test_the_average_is_that_of_the_last_quarter_and_not_of_the_start(whole):
    last, mean, ema = (load_file(whole / f"{name}.safetensors") for name in ("model", "average", "ema"))
    assert last.keys() == mean.keys() == ema.keys()
    apart = [(last["head.weight"] - other["head.weight"]).norm() for other in (mean, ema)]
    assert all(0 < x < 0.5 * last["head.weight"].norm() for x in apart)


def test_from_scratch_with_several_labels_and_weighted_loss(arguments, sounds, tmp_path, capsys):
    flags = ("--data.root", str(sounds / "several.csv"), "--data.eval-root", str(sounds / "several.csv"))
    short = ("--train.steps", "8", "--head.balance", "loss", "--head.average", "0", "--head.ema", "0", *MODEL)
    main(arguments(tmp_path / "run", *flags, *short, start="none"))
    found = result(tmp_path / "run")
    assert (found.labels, found.source, found.confusion) == ("several", "none", None)
    assert found.classes == ["high", "loud", "low", "middle"]
    assert found.headline["metric"] == "mAP"
    assert set(found.results) == {"last", "best"}
    assert found.chance["mAP"] == pytest.approx(0.375, abs=0.01)
    said = capsys.readouterr().out
    assert " | val mAP " in said
    assert "fine-tuned from none" in said
    assert "│ best, centre " in said, "the table is folded"


def test_start_is_told(arguments, tmp_path, capsys):
    main(arguments(tmp_path / "run", "--train.steps", "1", "--head.balance", "sampling", "--head.crops", "1"))
    said = capsys.readouterr().out
    assert "taken from the weights: " in said
    assert "left over: audio.decoder, fusion.audio_type, fusion.blocks, fusion.norm, fusion.video_type, video." in said
    assert "clips of the training set held back by a hash of their names\nheld out: 12 clips of " in said


def test_an_image_mae_is_another_start_from_scratch(arguments, tmp_path, capsys):
    file = save_image_mae(tmp_path / "mae.pth")
    flags = ("--init", str(file), *MODEL, "--train.steps", "1", "--optim.lr", "1e-12")
    main(arguments(tmp_path / "run", *flags, start="none"))
    assert "init: " in capsys.readouterr().out
    there, here = torch.load(file)["model"], load_file(tmp_path / "run" / "model.safetensors")
    assert torch.allclose(here["audio.encoder.norm.bias"], there["norm.bias"], atol=1e-6)
    with pytest.raises((UsageError, SystemExit)):
        main(arguments(tmp_path / "other", "--init", str(file)))
    own = tmp_path / "run" / "model.safetensors"
    with pytest.raises(UsageError, match="must be an image MAE; weights of ours are given by --from"):
        main(arguments(tmp_path / "third", "--init", str(own), start="none"))


def interrupted(argv: list[str], environment: dict[str, str], number: signal.Signals, after: Callable[[], bool]) -> Any:
    """Run, and send a signal as soon as `after` is true: (exit code, what was printed)."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-m", "diffmavil.finetune", *argv],
        env=environment,
        stdout=pipe,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not after():
        assert time.monotonic() < deadline, "the run never came so far"
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def check_same(folder: Path, whole: Path) -> None:
    """Losses, every kind of weights, and all that was found, to the last bit."""
    assert losses(folder) == losses(whole)
    for file in whole.glob("*.safetensors"):
        ours, theirs = load_file(folder / file.name), load_file(file)
        assert all(torch.equal(ours[name], value) for name, value in theirs.items()), file.name
    # Files tell the settings too, of which these runs have others.
    ours, theirs = (replace(result(run), date="", sha256={}) for run in (folder, whole))
    assert ours == theirs
    assert result(folder).sha256 == {kind: digest_of(folder / file) for kind, file in KINDS.items()}
    assert read_best(folder / "best.safetensors") == read_best(whole / "best.safetensors")


def test_kill_9_and_resume_as_if_nothing_had_been(arguments, whole, environment, tmp_path):
    """The exponential mean, the average, and the best weights so far are those of an uninterrupted run."""
    folder = tmp_path / "killed"
    argv = arguments(folder, "--train.checkpoint-every", "3")
    code, said = interrupted(argv, environment, signal.SIGKILL, lambda: len(checkpoints(folder)) == 2)
    assert code == -signal.SIGKILL, said
    assert read_metrics(folder)[-1]["step"] < STEPS
    main(["--run-dir", str(folder), "--resume"])
    check_same(folder, whole)
    (folder / "classification.json").unlink()
    (folder / "model.safetensors").unlink()
    main(["--run-dir", str(folder), "--resume"])  # killed after the last step, before it was scored
    check_same(folder, whole)


def test_sigterm_saves_exits_0_and_the_run_goes_on(arguments, whole, environment, tmp_path):
    folder = tmp_path / "terminated"
    code, said = interrupted(arguments(folder), environment, signal.SIGTERM, lambda: bool(read_metrics(folder)))
    assert code == 0, said
    assert "--resume goes on from there" in said
    assert len(checkpoints(folder)) == 1
    assert not (folder / "classification.json").exists()
    main(["--run-dir", str(folder), "--resume"])
    check_same(folder, whole)


@pytest.mark.slow
def test_two_processes_follow_the_losses_of_one(arguments, whole, warm, tmp_path):
    folder = tmp_path / "two"
    flags = "--train.steps", "6", "--head.start", "probe"
    done = warm.run("diffmavil.finetune", arguments(folder, *flags), nproc=2, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    main(arguments(tmp_path / "one", *flags))
    assert "the head begins as a linear probe on " in done.stdout
    one, two = losses(tmp_path / "one"), losses(folder)
    assert one.keys() == two.keys()
    for step in one:
        assert two[step] == pytest.approx(one[step], rel=2e-4, abs=2e-4), step
    for kind, by_crops in result(tmp_path / "one").results.items():
        assert result(folder).results[kind]["2"]["mAP"] == pytest.approx(by_crops["2"]["mAP"], abs=0.02)
    assert not (folder / "checkpoints" / "step-00000003").exists()


# Scored again


def test_a_longer_run_without_an_average_leaves_none_of_before(arguments, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    flags = ["--resume", "--run-dir", str(folder), "--train.steps", str(STEPS + 1), "--head.average", "0"]
    main(flags)
    assert not (folder / "average.safetensors").exists()
    assert set(result(folder).results) == {"last", "best", "ema"}
    with pytest.raises(UsageError, match=r"--task='video': must be 'audio', or left out, with --resume"):
        main([*flags, "--task", "video"])


def test_fine_tuned_weights_are_no_pretrained_ones(whole, weights, tmp_path):
    with pytest.raises(UsageError, match="holds no run"):
        evaluate(["--run-dir", str(tmp_path), "--weights", str(whole / "best.safetensors")])
    (weights / "config.yaml").write_text("model: {}\n")
    with pytest.raises(UsageError, match="holds a fine-tuned classifier, where a pretrained model is needed"):
        evaluate(["--run-dir", str(weights), "--weights", str(whole / "best.safetensors")])
    with pytest.raises(UsageError, match="holds a pretrained model, where a fine-tuned classifier is needed"):
        load_classifier(weights / "model.safetensors")


@pytest.mark.parametrize("start", ["best.safetensors", "checkpoints"])
def test_from_a_fine_tuned_run(arguments, whole, tmp_path, start):
    """Its weights, or its last checkpoint."""
    path = whole / start
    path = path if path.is_file() else checkpoints(whole)[-1]
    main(arguments(tmp_path / "run", "--train.steps", "1", "--optim.lr", "1e-12", start=str(path)))
    model, _ = load_classifier(tmp_path / "run" / "model.safetensors")
    assert isinstance(model, Classifier)
    theirs = load_file(whole / ("best.safetensors" if path.is_file() else "model.safetensors"))
    name = "audio.encoder.blocks.0.mlp.0.weight"
    assert torch.allclose(model.state_dict()[name], theirs[name], atol=1e-6)


# Wrong arguments


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ((), r"--from is needed: a run folder or its weights to start from, or 'none' for scratch"),
        (("--from", "nowhere"), "--from nowhere: no such file or folder; weights are .*, or owner/name"),
        (("--from", "EMPTY"), r"--from .*empty: holds neither model\.safetensors nor checkpoints"),
        (("--from", "UNDERWAY"), r"it is written when a run ends .* name it: .*/underway/checkpoints/step-"),
        (("finetune-huge", "--from", "none"), "preset='finetune-huge': must be one of finetune-tiny, finetune-small"),
        (("--run-dir", "FINETUNED"), "--from is needed"),
        (("--run-dir", "FINETUNED", "--from", "none"), "already holds a run; add --resume"),
        (("--run-dir", "FINETUNED", "--resume", "--from", "none"), "--from beside --resume: .*leave it out"),
        (("finetune-tiny", "--run-dir", "FINETUNED", "--resume"), "preset 'finetune-tiny' beside --resume"),
        (("--resume",), "--resume needs --run-dir"),
        (
            ("--run-dir", "PRETRAINED", "--resume"),
            r"holds a pretraining run: python -m diffmavil\.train goes on with it",
        ),
        (("--from", "DEAF", "--task", "audio"), "--task='audio': must be 'video': the weights have nothing else"),
        (("--from", "DEAF", "--task", "av"), "--task='av': must be 'video': the weights have nothing else"),
        (("--from", "UNMEASURED"), r"--model\.audio\.mean and \.std: must be given, as the weights"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_arguments(whole, weights, tmp_path, argv, says):
    (tmp_path / "empty").mkdir()
    config = read_weights(weights / "model.safetensors")[1]
    (tmp_path / "pretraining").mkdir()
    (tmp_path / "pretraining" / "config.yaml").write_text("train: {steps: 3}\n")
    deaf = replace(config, model=replace(config.model, modalities="video"))
    unmeasured = replace(config.model, audio=replace(config.model.audio, mean=None, std=None))
    (tmp_path / "underway").mkdir()
    (tmp_path / "underway" / "checkpoints").symlink_to(whole / "checkpoints")
    places = {"EMPTY": tmp_path / "empty", "FINETUNED": whole, "PRETRAINED": tmp_path / "pretraining"}
    places["UNDERWAY"] = tmp_path / "underway"
    for name, one in (("DEAF", deaf), ("UNMEASURED", replace(config, model=unmeasured))):
        places[name] = tmp_path / f"{name}.safetensors"
        export_weights(torch.nn.Linear(1, 1), one, places[name])
    with pytest.raises(UsageError, match=says):
        main([str(places.get(word, word)) for word in argv])


def test_a_pretraining_cannot_go_on_with_a_fine_tuning(whole):
    with pytest.raises(UsageError, match=r"holds a fine-tuning run: python -m diffmavil\.finetune goes on with it"):
        parse_train(["--run-dir", str(whole), "--resume"])


@pytest.mark.parametrize("argv", [["--from", "nowhere"], ["--from", "none", "--task", "taste"]], ids=["from", "task"])
def test_mistakes_end_with_code_2_and_a_message(argv, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["finetune", *argv])
    with pytest.raises(SystemExit) as ended:
        run_main(main)
    assert ended.value.code == 2
    assert argv[-1] in capsys.readouterr().err


def test_an_odd_batch_cannot_be_mixed(arguments, tmp_path):
    with pytest.raises(UsageError, match=r"train\.batch_size=3: must be an even number for each of 1 processes"):
        main(arguments(tmp_path / "run", "--train.batch-size", "3"))
    assert not (tmp_path / "run").exists()


def test_head_blocks_freeze_the_pretrained_encoder(arguments, weights, tmp_path):
    main(arguments(tmp_path / "run", "--head.blocks", "0", "--train.steps", "4", "--head.crops", "1"))
    ours, theirs = load_file(tmp_path / "run" / "model.safetensors"), load_file(weights / "model.safetensors")
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items() if ".encoder." in name)
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 4
