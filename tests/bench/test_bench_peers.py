"""benchmarks/peers.py: what it counts, and that it measures a patched peer beside the plain one."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from benchmarks import peer_models, peers
from benchmarks.measure import CpuClock


def needs_transformers() -> None:
    try:
        peer_models.load_transformers()
    except ImportError as error:
        pytest.skip(f"transformers cannot be used here (make test-transformers installs it): {error}")


@pytest.mark.filterwarnings("ignore")
def test_lines(tmp_path, capsys):
    needs_transformers()
    file = tmp_path / "lines.jsonl"
    threads = torch.get_num_threads()
    arguments = ["--device", "cpu", "--size", "tiny", "--batch", "2", "--seconds", "0", "--precision", "fp32"]
    try:
        assert peers.main([*arguments, "--threads", "1", "--json", str(file)]) == 0
    finally:
        torch.set_num_threads(threads)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["peer"], line["version"]) for line in lines] == [
        (peer, version) for peer in ("ViTMAE", "VideoMAE") for version in ("as it is", "patched")
    ]
    for plain, patched in zip(lines[::2], lines[1::2], strict=True):
        assert patched["loss"] == pytest.approx(plain["loss"], rel=1e-3)
        assert 1 < patched["allowed"] < 2
        assert 0 < patched["peak_mib"] < plain["peak_mib"]
        assert {"device", "commit", "versions", "date", "transformers"} <= patched.keys()
    assert "VideoMAE" in capsys.readouterr().out


def test_the_saved_flops_are_those_that_torch_counts():
    """Of the forward: half of what is counted for the step's embedding."""
    needs_transformers()
    from maekernels.integrations import patch

    peer = peers.vit_mae("tiny", 2)
    before = peer_models.counted_flops(lambda: peer.model(**peer.inputs).loss, 2)
    patch(peer.model)
    after = peer_models.counted_flops(lambda: peer.model(**peer.inputs).loss, 2)
    assert before - after == peer.saved_flops() / 2


def test_peak_of_a_cpu_is_what_is_alive_at_once():
    def step() -> None:
        for _ in range(3):
            nn.functional.relu(torch.zeros(256, 1024))  # 1 MiB twice, three times over

    assert peers.peak_mib(CpuClock(torch.get_num_threads()), step) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize(
    "arguments", [["--batch", "0"], ["--seconds", "-1"], ["--size", "huge"], ["--peer", "BEiT"]], ids=lambda a: a[0]
)
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        peers.parse(["--device", "cpu", *arguments])
    assert stop.value.code == 2
    assert arguments[1] in capsys.readouterr().err
