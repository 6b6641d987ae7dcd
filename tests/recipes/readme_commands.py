"""The commands in a page's blocks marked `sh`, as bash understands them, run in this process."""

from __future__ import annotations

import importlib
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]

SMALL_MODEL = (
    *("--model.video.size", "48", "--model.video.frames", "4"),
    *("--model.audio.frames", "64", "--model.audio.mels", "32"),
    *("--model.encoder.depth", "1", "--model.encoder.width", "48", "--model.encoder.heads", "3"),
    *("--model.video-decoder.depth", "1", "--model.video-decoder.width", "32"),
    *("--model.audio-decoder.depth", "1", "--model.audio-decoder.width", "32"),
)
SHORT = (
    *("--data.workers", "0", "--train.batch-size", "4", "--train.steps", "2", "--train.probe-every", "0"),
    *("--train.log-every", "1", "--train.precision", "fp32", "--train.no-report"),
)
SMALLER = {
    "diffmavil.prepare": ("--workers", "1"),
    "diffmavil.extract": ("--workers", "0", "--part", "2"),
    "diffmavil.train": (*SMALL_MODEL, *SHORT, "--batch.rule", "fixed"),
    "diffmavil.report": ("--clips", "8"),
    "diffmavil.finetune": (*SHORT, "--head.epochs", "None", "--head.average", "0"),
}
"""Flags put behind each command, over those of the page and of its files."""

_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_RECORDER = """
set -euo pipefail
record() { printf '%s\\0' "$@" >&3; printf '\\0' >&3; }
python() { record "$@"; }
torchrun() { while [ "$1" != -m ]; do shift; done; record "$@"; }
exec 3>&1 >&2
"""
"""bash does the loops, and tells the words of each command of python's; other programs run."""


def commands(page: Path, data: Path) -> list[tuple[str, list[str]]]:
    """(module, its arguments) of every command, in order; `/data` on the page is the folder `data`."""
    blocks = "".join(_BLOCK.findall(page.read_text())).replace("/data/", f"{data}/")
    done = subprocess.run(["bash", "-c", _RECORDER + blocks], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = [words.split("\0") for words in done.stdout.split("\0\0") if words]
    assert all(words[0] == "-m" for words in found)
    return [(words[1], words[2:]) for words in found]


def run_page(page: Path, data: Path) -> None:
    """Run every command of the page, smaller, in the current folder."""
    for module, arguments in commands(page, data):
        importlib.import_module(module).main([*arguments, *SMALLER.get(module, ())])
