"""`python -m maekernels`: what it tells, and that it would notice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import maekernels
from maekernels import __main__ as command
from maekernels import _environment, _native, _selfcheck

ROOT = Path(__file__).parents[2]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT / "kernels")} | environment
    line = [sys.executable, "-m", "maekernels", *arguments]
    return subprocess.run(line, capture_output=True, text=True, env=env, cwd="/", check=False)


def test_every_op_agrees(capsys):
    assert command.main([]) == 0
    told = capsys.readouterr().out
    assert f"torch        {torch.__version__}" in told
    assert "Every op agrees." in told
    assert "DISAGREES" not in told
    for op in set(maekernels.__all__) - {"MaskIds", "Segments"}:
        assert f"\n  {op} " in told


def test_all_ops_are_checked():
    assert set(_selfcheck.CASES) == set(maekernels.__all__) - {"MaskIds", "Segments"}


def test_what_is_off_is_told_and_xformers_is_not_imported(tmp_path):
    (tmp_path / "xformers").mkdir()
    (tmp_path / "xformers" / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "xformers-0.0.99.dist-info").mkdir()
    (tmp_path / "xformers-0.0.99.dist-info" / "METADATA").write_text("Name: xformers\nVersion: 0.0.99\n")
    found = run(MAEKERNELS_NATIVE="0", PYTHONPATH=f"{ROOT / 'kernels'}:{tmp_path}", CUDA_VISIBLE_DEVICES="")
    assert found.returncode == 0, found.stdout
    assert "native CPU   no: MAEKERNELS_NATIVE=0 switches the native kernels off" in found.stdout
    assert "native CPU   unset MAEKERNELS_NATIVE" in found.stdout
    assert " native  " not in found.stdout.partition("Ops on cpu")[2]
    assert "xformers     no: there is no CUDA device here" in found.stdout


def test_a_wrong_op_is_named_and_ends_with_1(capsys, monkeypatch):
    right = _selfcheck.CASES["gather_tokens"]

    def wrong(device, dtype, backend):
        out, leaves = right(device, dtype, backend)
        return (out + (1e-3 if dtype == torch.float32 else 0)), leaves

    monkeypatch.setitem(_selfcheck.CASES, "gather_tokens", wrong)
    assert command.main([]) == 1
    told = capsys.readouterr().out
    assert "gather_tokens" in next(line for line in told.splitlines() if "DISAGREES: more than 2e-05" in line)
    assert "disagree: please report this whole text." in told


def test_an_op_that_fails_is_named_and_the_others_run(capsys, monkeypatch):
    def broken(device, dtype, backend):
        if dtype == torch.float32:
            raise RuntimeError("no kernel image")
        return torch.zeros(1), []

    monkeypatch.setitem(_selfcheck.CASES, "patchify", broken)
    assert command.main([]) == 1
    told = capsys.readouterr().out
    assert "DISAGREES: RuntimeError: no kernel image" in told
    assert "attention        math" in told


def test_one_wrong_id_is_noticed(monkeypatch):
    def swapped(batch, length, num_keep, **options):
        ids = maekernels.random_mask(batch, length, num_keep, **options)
        if options["backend"] == _selfcheck.backends("random_mask", torch.device("cpu"))[0]:
            ids.ids_keep[0, 0] += 1
        return ids

    expected = _selfcheck._values(_selfcheck.CASES["random_mask"], torch.device("cpu"), torch.float64, "torch")
    monkeypatch.setattr(_selfcheck, "random_mask", swapped)
    backend = _selfcheck.backends("random_mask", torch.device("cpu"))[0]
    found = _selfcheck._values(_selfcheck.CASES["random_mask"], torch.device("cpu"), torch.float32, backend)
    assert _selfcheck._difference(found[0], expected[0]) > 100 * _selfcheck.TOLERANCE


def test_values_that_are_not_finite_are_noticed():
    assert _selfcheck._difference(torch.tensor([float("nan")]), torch.ones(1)) == float("inf")


def test_an_unknown_argument_ends_with_2(capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["--nonsense"])
    assert end.value.code == 2
    assert "unrecognized arguments: --nonsense" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("version", "problem"),
    [("3.5.1", "3.5.1 is outside 3.6 to 3.10"), ("3.10.0", "outside"), ("3.6.0", ""), ("3.9.0+git", "")],
)
def test_versions_of_triton(monkeypatch, version, problem):
    monkeypatch.setattr(_environment, "_triton", lambda: (version, ""))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = _environment._triton_kernels()
    assert (problem in found.problem) if problem else not found.problem
    assert found.remedy == ("pip install 'triton>=3.6,<3.10'" if problem else "")


def test_a_library_that_does_not_load_is_told(monkeypatch):
    def broken():
        raise ImportError("undefined symbol")

    monkeypatch.setattr(_environment, "native_ops", broken)
    found = _environment._cuda()
    assert found.problem == "it does not load: undefined symbol"
    assert found.remedy == "MAEKERNELS_NATIVE=0 leaves it out"


def test_no_compiler_is_told(monkeypatch):
    monkeypatch.setattr(_native, "ABSENT", "the native kernels were not built with this package")
    found = _environment._cpu()
    assert found.problem == _native.ABSENT
    assert "C++20 compiler" in found.remedy
