"""Preparing on a local Ray gives the same bytes as processes here."""

from __future__ import annotations

from pathlib import Path

import pytest
from prepared_sets import contents, prepare_here, write_clips

from diffmavil.config.errors import UsageError
from diffmavil.prepare import main


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_same_bytes(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra `ray`")
    clips = write_clips(tmp_path / "clips", 5)
    (clips / "class0" / "zz.mp4").write_bytes(b"nothing")
    prepare_here(clips, tmp_path / "here", per_shard=4)
    try:
        main([str(clips), str(tmp_path / "there"), "--per-shard", "4", "--ray", "local"])
    finally:
        ray.shutdown()
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffmavil.prepare.ray_available", lambda: "needs Ray Data, pip install 'ray[data]'")
    with pytest.raises(UsageError, match=r"--ray='local': needs Ray Data, pip install"):
        main([str(write_clips(tmp_path / "clips", 1)), str(tmp_path / "out"), "--ray", "local"])
