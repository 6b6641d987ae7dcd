"""`python -m module` in forks of a process that has imported the libraries, two CPU seconds sooner than in a new one.

The project's own modules are imported anew by each command, and torch's launcher is left out: its processes are forked
with the environment that it would give them. Tests of starting, stopping and killing start their commands for real.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn


class Warm:
    """Runs commands one after the other; `close` ends the process.

    Args:
        environment: of all commands.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._server: subprocess.Popen[str] | None = None

    def run(self, module: str, arguments: Sequence[str], *, nproc: int, timeout: float) -> subprocess.CompletedProcess:
        """As `subprocess.run` gives it of `python -m module`; of several processes, the code of the first that failed.

        Raises:
            subprocess.TimeoutExpired: it has not ended in time; all of it is killed.
        """
        ranks: list[dict[str, str]] = [{}]
        if nproc > 1:
            world = {"WORLD_SIZE": nproc, "LOCAL_WORLD_SIZE": nproc, "MASTER_PORT": free_port()}
            ranks = [
                {"MASTER_ADDR": "127.0.0.1"} | {k: str(v) for k, v in (world | {"RANK": i, "LOCAL_RANK": i}).items()}
                for i in range(nproc)
            ]
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            asked = {"module": module, "arguments": list(arguments), "ranks": ranks, "out": str(out), "err": str(err)}
            codes = self._ask(asked, [sys.executable, "-m", module, *arguments], timeout)
            failed = [code for code in codes if code]
            code = failed[0] if failed else 0
            return subprocess.CompletedProcess(asked["arguments"], code, out.read_text(), err.read_text())

    def _ask(self, asked: Mapping[str, object], command: Sequence[str], timeout: float) -> list[int]:
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
                env=dict(self._environment),
            )  # fmt: skip
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(asked), file=self._server.stdin, flush=True)
        ready, _, _ = select.select([self._server.stdout], [], [], timeout)
        if not ready:
            os.killpg(self._server.pid, 9)
            self.close()
            raise subprocess.TimeoutExpired(command, timeout)
        return json.loads(self._server.stdout.readline())

    def close(self) -> None:
        if self._server is not None:
            self._server.communicate()
            self._server = None


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _serve() -> None:
    """A line of JSON in for each command; out, when all its processes have ended, their codes."""
    for line in sys.stdin:
        asked = json.loads(line)
        pids = []
        for rank in asked["ranks"]:
            pid = os.fork()
            if pid == 0:
                _become(asked, rank)
            pids.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps(codes), flush=True)


def _become(asked: Mapping[str, str | list[str]], rank: Mapping[str, str]) -> NoReturn:
    for target, path in ((0, os.devnull), (1, asked["out"]), (2, asked["err"])):
        flags = os.O_RDONLY if target == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        os.dup2(os.open(str(path), flags), target)
    os.environ.update(rank)
    module = str(asked["module"])
    sys.argv = [module, *asked["arguments"]]
    sys.path[0] = os.getcwd()  # as `python -m` has it
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.exit()


if __name__ == "__main__":
    # torch._dynamo is imported by every optimiser.
    for library in ("torch._dynamo", "torch.distributed.checkpoint", "av", "matplotlib.figure", "rich.console", "tyro"):
        importlib.import_module(library)
    _serve()
