"""Short trainings of a very small model on a very small generated set, as a user would start them: fixtures.

Every pytest here loads this, also those that put other ops in place of `maekernels`: nothing that imports a model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from diffmavil.config import AudioConfig, Config, DecoderConfig, EncoderConfig, VideoConfig
from diffmavil.config.presets import preset
from tests.warm import Warm

ROOT = Path(__file__).parents[1]
SMALL = (
    *("--model.video.size", "32", "--model.video.frames", "4"),
    *("--model.audio.frames", "64", "--model.audio.mels", "32"),
    *("--model.encoder.depth", "1", "--model.encoder.width", "48", "--model.encoder.heads", "3"),
    *("--model.video-decoder.depth", "1", "--model.video-decoder.width", "32"),
    *("--model.audio-decoder.depth", "1", "--model.audio-decoder.width", "32"),
    *("--data.synthetic-train", "24", "--data.synthetic-eval", "24", "--data.workers", "0"),
    *("--train.steps", "8", "--train.batch-size", "4", "--train.log-every", "1"),
    *("--train.precision", "fp32"),  # bf16 rounds too coarsely to compare one process with two
    "--train.no-report",
)


def very_small(cache: Path) -> Config:
    """A very small model on a few generated clips, to be made in the process of the test."""
    base = preset("diffmavil-tiny")
    decoder = DecoderConfig(depth=1, width=32, heads=4, attention="cross")
    model = replace(
        base.model,
        video=VideoConfig(frames=4, size=32),
        audio=AudioConfig(frames=64, mels=32, mean=-6.0, std=4.0),
        encoder=EncoderConfig(depth=1, width=48, heads=3),
        video_decoder=decoder,
        audio_decoder=decoder,
    )
    data = replace(base.data, cache=str(cache), synthetic_train=24, synthetic_eval=24, workers=0)
    return replace(base, model=model, data=data)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One generated set for all tests of a session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def train_command(cache: Path) -> Callable[..., list[str]]:
    def command(run_dir: Path, *flags: str, preset: str | None = "diffmavil-tiny", nproc: int = 1) -> list[str]:
        launcher = ["-m"]
        if nproc > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(nproc), "-m"]
        named = [preset] if preset else []
        settings = ["--run-dir", str(run_dir), "--data.cache", str(cache), *SMALL, *flags]
        return [sys.executable, *launcher, "diffmavil.train", *named, *settings]

    return command


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    carried = os.environ.get("PYTHONPATH")  # where packages may lie
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *([carried] if carried else [])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}


@pytest.fixture(scope="session")
def warm(environment: dict[str, str]) -> Iterator[Warm]:
    server = Warm(environment)
    yield server
    server.close()


@pytest.fixture(scope="session")
def train(
    train_command: Callable[..., list[str]], environment: dict[str, str], warm: Warm
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a training to its end and return what it printed; `real`: in processes of its own, started by a launcher."""

    def run(
        run_dir: Path, *flags: str, code: int = 0, preset: str | None = "diffmavil-tiny", nproc: int = 1,
        real: bool = False,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        command = train_command(run_dir, *flags, preset=preset, nproc=nproc)
        if real:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
        else:
            module = command.index("diffmavil.train")
            done = warm.run(command[module], command[module + 1 :], nproc=nproc, timeout=240)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def whole_run(train: Callable[..., subprocess.CompletedProcess[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight steps, never interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(folder)
    return folder


def losses(run_dir: Path) -> dict[int, Sequence[float]]:
    """Step -> every loss of that step."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: [v for k, v in r.items() if k.startswith("loss")] for r in records}
