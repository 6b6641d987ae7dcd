"""The loader's doctor: it measures something, and judges by what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prepared_sets import prepare_here, write_clips

from diffmavil.config.errors import UsageError
from diffmavil.data.bottleneck import Diagnosis, judge
from diffmavil.doctor import main
from diffmavil.training.speed import judgement

CASES = {
    "decode": ((2, 8, 5000.0, 10.0, 900.0, None, 19.0), "decoding", "raise data.workers: 8 cores"),
    "decode-all-cores": ((8, 8, 5000.0, 10.0, 900.0, None, 70.0), "decoding", "data.decoder=dali"),
    "read": ((8, 8, 5.0, 10.0, 900.0, 900.0, 39.0), "reading", "faster disk"),
    "transform": ((8, 8, 5000.0, 100.0, 90.0, 900.0, 80.0), "the device's transforms", "log-mel is made there"),
    "copy": ((8, 8, 5000.0, 100.0, 900.0, 90.0, 80.0), "the copy to the device", "model.video.size"),
    "hand-over": ((8, 8, 5000.0, 100.0, 900.0, 900.0, 200.0), "the hand-over between processes", "/dev/shm"),
    "plain-files": ((2, 2, None, 10.0, 900.0, None, 19.0), "decoding", "diffmavil.prepare SRC OUT"),
    "plain-files-more-cores": ((2, 8, None, 10.0, 900.0, None, 19.0), "decoding", "until then, raise data.workers: 8"),
}


@pytest.mark.parametrize(("measured", "limit", "advice"), CASES.values(), ids=list(CASES))
def test_judgement(measured, limit: str, advice: str) -> None:
    found, said = judge(*measured)
    assert found == limit
    assert advice in said


def test_plain_files_get_no_advice_that_is_refused() -> None:
    for workers in (2, 8):
        _, said = judge(workers, 8, None, 10.0, 900.0, None, 19.0)
        assert "decoder" not in said
        assert "--short-side" not in said


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (90.0, ["loading limits training: loading gives 19.0 clips/s, training steps on one device take 90.0"]),
        (3.1, ["the training step limits: loading gives 19.0 clips/s, training steps on one device take 3.1"]),
        (None, []),
    ],
    ids=["loading", "step", "not measured"],
)
def test_loading_is_compared_with_the_step(step: float | None, said: list[str]) -> None:
    found = Diagnosis(2, None, None, 10.0, 900.0, None, 19.0, "decoding", "prepare them", {})
    sentences = judgement(found, step)
    assert all(wanted in sentence for wanted, sentence in zip(said, sentences, strict=False))
    assert sentences[-1].endswith("decoding limits: prepare them")
    assert len(sentences) > len(said)


def test_it_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_here(write_clips(tmp_path / "clips", 4), tmp_path / "out")
    wanted = ["--data", str(tmp_path / "out"), "--preset", "diffmavil-tiny", "--seconds", "0.2", "--workers", "1"]
    main([*wanted, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["read"] > found["decode"] > 0
    assert found["transform"] > 0
    assert found["together"] > 0
    assert found["copy"] is None or found["copy"] > 0
    assert found["step"] > 0
    assert found["slower"] == ("loading" if found["together"] < found["step"] else "step")
    assert found["bad"] == {}
    main(wanted)
    said = capsys.readouterr().out
    assert "limits: " in said
    assert "training step" in said


def test_plain_files_with_bad_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bad clips it met are named, and the advice is to prepare; the decoders of prepared clips are refused."""
    root = write_clips(tmp_path / "clips", 6)
    (root / "class0" / "broken.mp4").write_bytes(b"not a video")
    wanted = ["--data", str(root), "--preset", "diffmavil-tiny", "--seconds", "0.1", "--workers", "1"]
    main([*wanted, "--no-step"])
    said = capsys.readouterr().out
    assert f"bad clip {root}/class0/broken.mp4: cannot be decoded: Invalid data" in said
    assert "training step" not in said
    for decoder in ("torchcodec", "dali"):
        with pytest.raises(UsageError, match="must be 'pyav' for clips that are not prepared"):
            main([*wanted, "--decoder", decoder])


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data\.root=.*does not exist"):
        main(["--data", str(tmp_path / "absent")])
