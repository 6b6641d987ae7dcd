"""The loader's doctor: it measures something, and judges by what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prepared_sets import prepare_here, write_clips

from diffmavil.config.errors import UsageError
from diffmavil.data.bottleneck import judge
from diffmavil.doctor import main

CASES = {
    "decode": ((2, 8, 5000.0, 10.0, 900.0, None, 19.0), "decoding", "raise data.workers: 8 cores"),
    "decode-all-cores": ((8, 8, 5000.0, 10.0, 900.0, None, 70.0), "decoding", "data.decoder=dali"),
    "read": ((8, 8, 5.0, 10.0, 900.0, 900.0, 39.0), "reading", "faster disk"),
    "transform": ((8, 8, 5000.0, 100.0, 90.0, 900.0, 80.0), "the device's transforms", "log-mel is made there"),
    "copy": ((8, 8, 5000.0, 100.0, 900.0, 90.0, 80.0), "the copy to the device", "model.video.size"),
    "hand-over": ((8, 8, 5000.0, 100.0, 900.0, 900.0, 200.0), "the hand-over between processes", "/dev/shm"),
    "plain-files": ((2, 2, None, 10.0, 900.0, None, 19.0), "decoding", "data.decoder=dali"),
}


@pytest.mark.parametrize(("measured", "limit", "advice"), CASES.values(), ids=list(CASES))
def test_judgement(measured, limit: str, advice: str) -> None:
    found, said = judge(*measured)
    assert found == limit
    assert advice in said


def test_it_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_here(write_clips(tmp_path / "clips", 4), tmp_path / "out")
    wanted = [str(tmp_path / "out"), "--preset", "diffmavil-tiny", "--seconds", "0.2", "--workers", "1"]
    main([*wanted, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["read"] > found["decode"] > 0
    assert found["transform"] > 0
    assert found["together"] > 0
    assert found["copy"] is None or found["copy"] > 0
    main(wanted)
    assert "limits: " in capsys.readouterr().out


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data\.root=.*does not exist"):
        main([str(tmp_path / "absent")])
