"""Fine-tuned runs afterwards: which weights their folder means, scoring them again, and what ends neither."""

from __future__ import annotations

import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from diffmavil.config.errors import RunError, UsageError
from diffmavil.data.labelled import open_labelled
from diffmavil.evaluate import main as evaluate
from diffmavil.evaluation.classification import read_classification, scored_file
from diffmavil.evaluation.pretrained import find_weights
from diffmavil.evaluation.validation import Validation
from diffmavil.finetune import main
from diffmavil.model.weights import load_classifier
from diffmavil.reporting import classification_page
from diffmavil.reporting.classification_page import STALE
from diffmavil.reporting.runs import open_runs, score_sections
from tests.training.tuned import result, write_tone

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_run_s_folder_means_the_weights_of_the_headline(whole, tmp_path):
    assert find_weights(whole) == whole / "best.safetensors"
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    shutil.copy(copy / "ema.safetensors", copy / "best.safetensors")  # scores of other weights tell nothing
    with pytest.raises(ValueError, match=r"not scored yet, .* diffmavil\.evaluate --run-dir .*copy scores them"):
        find_weights(copy)
    (copy / "classification.json").unlink()  # killed while it was scored
    with pytest.raises(ValueError, match="not scored yet"):
        find_weights(copy)
    assert find_weights(copy / "model.safetensors") == copy / "model.safetensors"
    evaluate(["--run-dir", str(copy)])
    assert find_weights(copy).name in ("best.safetensors", "average.safetensors", "ema.safetensors")
    (copy / "model.safetensors").rename(copy / "model-step-20.safetensors")  # as of a run that goes on
    assert scored_file(result(copy), copy) is None


def test_a_result_that_cannot_be_read_is_told(arguments, whole, tmp_path):
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    (copy / "classification.json").write_text("{}")
    with pytest.raises(UsageError, match=r"classification\.json: is damaged or of another version"):
        read_classification(copy)
    with pytest.raises(ValueError, match=r"or name the file of weights: .*model\.safetensors"):
        find_weights(copy)
    with pytest.raises(UsageError, match=r"^--from .*classification\.json: is damaged"):
        main(arguments(tmp_path / "again", start=str(copy)))
    evaluate(["--run-dir", str(copy)])
    assert result(copy).headline == result(whole).headline


def test_validation_clips_that_cannot_be_scored_do_not_end_a_run(whole, tmp_path, monkeypatch):
    model, config = load_classifier(whole / "model.safetensors")
    clips = open_labelled(config)[1].validation
    assert clips is not None
    model.train()

    def refuse(*_, **__):
        raise RunError("every good clip has the same class")

    monkeypatch.setattr("diffmavil.evaluation.validation.predict", refuse)
    look = Validation(model, config, clips, tmp_path, done=0, batch_size=4)
    seen = look(1)
    assert seen.lines == ["no validation: every good clip has the same class"]
    assert not seen.metrics
    assert model.training
    assert not (tmp_path / "best.safetensors").exists()


@pytest.fixture
def copied(whole, tmp_path) -> Path:
    folder = tmp_path / "copied"
    folder.mkdir()
    for file in (*whole.glob("*.safetensors"), *whole.glob("*.json"), *whole.glob("*.jsonl"), whole / "config.yaml"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def reports(monkeypatch) -> list[Path]:
    """Folders of which a report was asked for, and not drawn."""
    asked: list[Path] = []
    monkeypatch.setattr("diffmavil.evaluate.write_report", lambda folder: asked.append(folder) or folder)
    return asked


def test_evaluate_finds_what_the_run_found(copied, whole, reports, capsys):
    (copied / "classification.json").unlink()
    evaluate(["--run-dir", str(copied), "--batch-size", "4"])
    assert replace(result(copied), date="") == replace(result(whole), date="")
    assert reports == [copied]
    assert "│ best, 2 crops * " in capsys.readouterr().out


def test_scores_of_weights_that_were_changed_since_are_told_so(copied):
    (section,) = score_sections(open_runs([copied]))
    assert "not scores" not in section.note
    (copied / "best.safetensors").write_bytes((copied / "best.safetensors").read_bytes() + b" ")
    (section,) = score_sections(open_runs([copied]))
    assert STALE.strip() in unescape(str(section.note))
    assert STALE.strip() in classification_page.sections(copied, [])[0].note


def test_evaluate_on_other_clips_with_other_crops(copied, whole, reports, tmp_path):
    """The training clips need not be there any more."""
    write_tone(tmp_path / "other" / "high" / "a.wav", 4100)
    write_tone(tmp_path / "other" / "low" / "b.wav", 320)
    (tmp_path / "other" / "low" / "bad.wav").write_bytes(b"RIFF no sound")
    (copied / "ema.safetensors").unlink()
    evaluate(["--run-dir", str(copied), "--data.eval-root", str(tmp_path / "other"), "--crops", "3"])
    found = result(copied)
    assert found.clips == {**result(whole).clips, "test": {"listed": 3, "used": 2}}
    assert [Path(path).name for path in found.skipped] == ["bad.wav"]
    assert set(found.results) == {"last", "best", "average"}
    assert set(found.results["last"]) == {"1", "3"}
    assert found.sources["train"] == result(whole).sources["train"]
    assert str(tmp_path / "other") in str(found.sources["test"])


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--data.eval-root", "OTHER"), r"data\.eval_root=\"clips of 'cow'\": must be of the training clips' classes"),
        (("--data.eval-root", "nowhere"), r"data\.eval_root='nowhere' does not exist"),
        (
            ("--data.root", "x"),
            r"--data\.root='x': must be left out of a fine-tuned run.*--data\.eval-root names other",
        ),
        (("--weights", "x.safetensors"), r"--weights='x\.safetensors': must be left out of a fine-tuned run"),
        (("--features", "x.safetensors"), r"--features='x\.safetensors': must be left out of a fine-tuned run"),
    ],
    ids=["classes", "nowhere", "root", "weights", "features"],
)
def test_evaluate_refuses(copied, reports, tmp_path, flags, says):
    write_tone(tmp_path / "cows" / "cow" / "a.wav", 4100)
    write_tone(tmp_path / "cows" / "low" / "b.wav", 320)
    before = (copied / "classification.json").read_bytes()
    with pytest.raises(UsageError, match=says):
        evaluate(["--run-dir", str(copied), *(str(tmp_path / "cows") if flag == "OTHER" else flag for flag in flags)])
    assert (copied / "classification.json").read_bytes() == before
