"""The studies of one point: recordings are read and split rightly, lines are kept, and nothing known is run again."""

from __future__ import annotations

import io
import json
import tarfile
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import points
from benchmarks.digits import AUDIO, HELD_OUT, pretrain_and_probe, read_digits
from diffmavil.config import Config
from diffmavil.config.presets import preset

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
OLD = sorted(file for file in RESULTS.glob("quality*.jsonl") if file.read_text().startswith('{"study"'))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten digits, one speaker, seven recordings: a tone whose pitch is the digit, from 0.2 s to 1.4 s long."""
    path = tmp_path_factory.mktemp("fsdd") / "digits.tar.gz"
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("fsdd/README.md"))
        for digit in range(10):
            for number in range(HELD_OUT + 2):
                t = np.arange(int(8000 * (0.2 + 0.2 * number))) / 8000
                sound = 0.3 * np.sin(2 * np.pi * (300 + 300 * digit) * t) + 0.01 * rng.standard_normal(len(t))
                data = io.BytesIO()
                with wave.open(data, "wb") as file:
                    file.setparams((1, 2, 8000, 0, "NONE", ""))
                    file.writeframes((sound * 2**15).astype("<i2").tobytes())
                info = tarfile.TarInfo(f"fsdd/recordings/{digit}_anna_{number}.wav")
                info.size = len(data.getvalue())
                tar.addfile(info, io.BytesIO(data.getvalue()))
    return path


def test_recordings_0_to_4_are_held_out_and_statistics_are_those_of_the_others(archive: Path):
    digits = read_digits(archive)
    assert digits.train.shape == (20, AUDIO.frames, AUDIO.mels)
    assert digits.held_out.shape == (50, AUDIO.frames, AUDIO.mels)
    assert torch.equal(digits.train_digit, torch.arange(10).repeat_interleave(2))
    assert torch.equal(digits.held_out_digit.bincount(), torch.full((10,), 5))
    # Recordings 5 and 6 fill the window, so that no zero of the padding is among their values.
    assert digits.train.mean().item() == pytest.approx(0.0, abs=0.02)
    assert digits.train.std().item() == pytest.approx(0.5, abs=0.02)
    short = digits.held_out[0]  # 0.2 s
    assert short[:15].abs().min() > 0
    assert not short[25:].any()


def test_another_archive_is_refused(tmp_path: Path):
    path = tmp_path / "other.tar.gz"
    with tarfile.open(path, "w:gz"):
        pass
    with pytest.raises(ValueError, match=r"other\.tar\.gz: must hold recordings/DIGIT_SPEAKER_NUMBER\.wav"):
        read_digits(path)


def test_pretraining_on_recordings_lowers_the_loss_and_follows_from_its_seed(archive: Path):
    digits = read_digits(archive)
    config = preset("diffmavil-tiny-fast")
    short, again, other, long = (
        pretrain_and_probe(config, digits, samples=samples, seed=seed)
        for samples, seed in ((64, 0), (64, 0), (64, 1), (1280, 0))
    )
    same = {key for key in short if key != "cpu_seconds" and short[key] == again[key]}
    assert same == set(short) - {"cpu_seconds"}
    assert other["loss"] != short["loss"]
    assert long["loss"] < 0.9 * short["loss"]
    assert long["cpu_seconds"] > short["cpu_seconds"] > 0
    assert 0 <= short["probe"] <= 1


def test_a_study_writes_a_line_for_each_cell_and_skips_what_is_known(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    results = tmp_path / "quality.jsonl"
    study = ["fsdd", "--fsdd", str(archive), "--json", str(results), "--samples", "64", "--seeds", "2"]
    study += ["--setting", "mavil-tiny", "--setting", "diffmavil-tiny-fast"]
    assert points.main(study) == 0
    rows = points.read(results)
    assert [(row["setting"], row["seed"]) for row in rows] == [
        ("mavil-tiny", 0),
        ("diffmavil-tiny-fast", 0),
        ("mavil-tiny", 1),
        ("diffmavil-tiny-fast", 1),
    ]
    assert all({"commit", "device", "versions", "date", "probe", "cpu_seconds"} <= set(row) for row in rows)
    assert rows[0]["gflop_per_clip"] > rows[1]["gflop_per_clip"] > 0
    before = results.read_text()
    capsys.readouterr()
    assert points.main(study) == 0
    assert results.read_text() == before
    assert capsys.readouterr().out.count("known: ") == 4


def test_the_table_compares_with_mavil_at_the_same_seed(tmp_path: Path):
    line = {"study": "fsdd", "gflop_per_clip": 1.0, "cpu_seconds": 2.0}
    found = [
        ("mavil-tiny", 64, 0, 0.5),
        ("mavil-tiny", 64, 1, 0.7),
        ("diffmavil-tiny", 64, 0, 0.6),
        ("diffmavil-tiny", 64, 1, 0.7),
        ("mavil-tiny", 128, 0, 0.8),
    ]
    keys = ("setting", "samples", "seed", "probe")
    rows = [{**line, **dict(zip(keys, values, strict=True))} for values in found]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = points.summary(points.read(path), "fsdd", "probe")
    columns = {str(column.header): list(column.cells) for column in table.columns}
    assert columns["setting"] == ["mavil-tiny", "diffmavil-tiny", "mavil-tiny"]
    assert columns["samples"] == ["64", "64", "128"]
    assert columns["accuracy"] == ["60.0% ± 14.1%", "65.0% ± 7.1%", "80.0%"]
    assert columns["of MAViL"] == ["+0.0%", "+5.0%", "+0.0%"]


@pytest.mark.parametrize("file", OLD, ids=lambda file: file.stem)
def test_results_that_the_log_names_can_be_read(file: Path, capsys: pytest.CaptureFixture[str]):
    assert points.main(["table", "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    assert all(f" {row['setting'][:12]}" in shown for row in points.read(file))


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done, in order: the generated set made ready, and commands, which are stood in for."""
    done: list[str] = []

    def python(command: str, *arguments: str) -> float:
        done.append(" ".join((command, *arguments)))
        run = Path(arguments[arguments.index("--run-dir") + 1])
        run.mkdir(exist_ok=True)
        (run / "evaluation.json").write_text(json.dumps({"results": {"trained": {"probe/fused": 0.5}}}))
        return 7.0

    def open_data(config: Config) -> None:
        data = config.data
        done.append(f"ready {data.cache} {data.synthetic_train} {data.synthetic_eval}")

    monkeypatch.setattr(points, "python", python)
    monkeypatch.setattr(points, "open_data", open_data)
    return done


def test_the_generated_set_is_ready_before_the_first_setting_is_timed(tmp_path: Path, order: list[str]):
    study = ["synthetic", "--json", str(tmp_path / "out.jsonl"), "--seeds", "1", "--cache", str(tmp_path)]
    study += ["--clips", "24", "--setting", "mavil-tiny"]
    assert points.main(study) == 0
    ready, train, evaluate = order
    assert ready == f"ready {tmp_path} 24 24"
    assert train.startswith("diffmavil.train mavil-tiny ")
    assert f"--data.synthetic-train 24 --data.synthetic-eval 24 --data.cache {tmp_path}" in train
    assert evaluate.startswith("diffmavil.evaluate ")
    assert points.main(study) == 0
    assert len(order) == 3, "nothing is left to make the set ready for"


def test_a_part_of_the_set_is_not_the_set(tmp_path: Path, order: list[str]):
    """Old lines, which do not tell, are of the whole set."""
    results = tmp_path / "out.jsonl"
    study = ["synthetic", "--json", str(results), "--seeds", "1", "--setting", "mavil-tiny"]
    for clips in ([], ["--clips", "24"], ["--clips", "48"]):
        assert points.main([*study, *clips]) == 0
    rows = points.read(results)
    assert [row["clips"] for row in rows] == [None, 24, 48]
    table = points.summary(rows, "synthetic", "trained:probe/fused")
    columns = {str(column.header): list(column.cells) for column in table.columns}
    assert columns["set"] == ["all", "24 clips", "48 clips"]
    assert columns["seeds"] == ["1", "1", "1"]
    old = {name: value for name, value in rows[0].items() if name not in ("clips", "recordings")}
    results.write_text(json.dumps(old) + "\n")
    assert points.main(study) == 0
    assert len(points.read(results)) == 1
    assert points.main([*study, "--clips", "24"]) == 0
    assert len(points.read(results)) == 2


def test_fewer_recordings_are_another_cell(archive: Path, tmp_path: Path):
    results = tmp_path / "out.jsonl"
    study = ["fsdd", "--fsdd", str(archive), "--json", str(results), "--samples", "64", "--seeds", "1"]
    study += ["--setting", "diffmavil-tiny-fast"]
    for recordings in ([], ["--recordings", "6"], ["--recordings", "6"]):
        assert points.main([*study, *recordings]) == 0
    assert [row["recordings"] for row in points.read(results)] == [None, 6]


def test_what_only_the_generated_set_has_is_refused_elsewhere(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        points.main(["fsdd", "--json", "x", "--setting", points.SYNTHETIC_ONLY[0]])
    assert ended.value.code == 2
    assert "of the generated set alone" in capsys.readouterr().err


@pytest.mark.slow
def test_a_study_of_the_generated_set_trains_and_judges_for_real(tmp_path: Path):
    results = tmp_path / "quality.jsonl"
    study = ["synthetic", "--json", str(results), "--cache", str(tmp_path / "cache"), "--clips", "24"]
    assert points.main([*study, "--samples", "64", "--seeds", "1", "--setting", "diffmavil-tiny-fast"]) == 0
    (row,) = points.read(results)
    assert (row["study"], row["setting"], row["seed"], row["samples"]) == ("synthetic", "diffmavil-tiny-fast", 0, 64)
    assert 0 <= row["trained:probe/fused"] <= 1
    assert row["chance:probe/fused"] == pytest.approx(1 / 24, abs=1e-5)
    assert row["cpu_seconds"] > 1
