"""Where people look at curves: TensorBoard, Weights & Biases, MLflow, behind one interface.

Which server, which project and whether there is a network at all is said as their users know it: `WANDB_PROJECT`,
`WANDB_MODE=offline`, `WANDB_ENTITY`; `MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME`. A run folder keeps the run's ids
in `boards.json`, so that a resumed run goes on where it was.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from torch.utils.tensorboard.writer import SummaryWriter

from diffmavil.config import Config
from diffmavil.config.files import config_to_yaml, flat_settings
from diffmavil.data.durable import write_whole

IDS_FILE = "boards.json"
PROJECT = "diffmavil"
_TOTAL = {"loss": "loss/total"}
"""In MLflow's folders a metric is a file, and loss/video lies in a folder of the name of the first."""
_LONGEST = 500
"""Characters that a setting may have in MLflow, which refuses longer ones by default."""
_AT_ONCE = 100
"""Settings in one request to MLflow, which takes no more."""


class Board(Protocol):
    """Shows the records of one run. Whatever a call raises is told, and training goes on."""

    name: str

    def record(self, metrics: Mapping[str, float], step: int) -> None:
        """Numbers of a step, all of them finite."""
        ...

    def close(self, failed: bool) -> None: ...


def check_boards(names: Sequence[str]) -> None:
    """Raise `ValueError` for one whose package cannot be imported."""
    for name in names:
        try:
            import_module(_MODULES[name])
        except ImportError as error:
            raise ValueError(f"train.log={name!r}: needs pip install 'diffmavil[{name}]' ({error})") from error


def open_boards(names: Sequence[str], run_dir: Path, config: Config, resumed_step: int) -> list[Board]:
    """Begin a run on each board, or go on with the one that the folder knows.

    Raises:
        ValueError: one that cannot be opened, as without a login or a server.
    """
    path = run_dir / IDS_FILE
    ids: dict[str, str] = json.loads(path.read_bytes()) if path.exists() else {}
    opened: list[Board] = []
    for name in names:
        try:
            opened.append(_BOARDS[name](run_dir, config, resumed_step, ids))
        except Exception as error:  # each has errors of its own
            for board in opened:
                board.close(failed=True)
            raise ValueError(f"train.log={name!r}: cannot be opened: {error}{_HINTS.get(name, '')}") from error
    if ids:
        write_whole(path, json.dumps(ids, indent=1).encode())
    return opened


class TensorBoard:
    """Event files in the run folder."""

    name = "tensorboard"

    def __init__(self, run_dir: Path, config: Config, resumed_step: int, ids: dict[str, str]) -> None:
        self._writer = SummaryWriter(run_dir / "tensorboard", purge_step=resumed_step + 1 if resumed_step else None)

    def record(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self, failed: bool) -> None:
        self._writer.close()


class Wandb:
    """Weights & Biases; files of it lie in the run folder.

    Steps are a metric of ours, since its own may not go back, as they do where a run is resumed from a checkpoint.
    """

    name = "wandb"

    def __init__(self, run_dir: Path, config: Config, resumed_step: int, ids: dict[str, str]) -> None:
        wandb: Any = import_module("wandb")
        known = ids.get(self.name) or os.environ.get("WANDB_RUN_ID")
        ids[self.name] = known or secrets.token_hex(4)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=ids[self.name],
            name=os.environ.get("WANDB_NAME", run_dir.absolute().name),
            resume="allow",
            dir=str(run_dir),
            config=asdict(config),
            allow_val_change=True,
            settings=wandb.Settings(console="off"),  # the live line would be its log
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def record(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log({**metrics, "step": step})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class Mlflow:
    """MLflow; without `MLFLOW_TRACKING_URI` in mlflow.db beside the run folder, as are the runs to compare it with.

    Settings that changed on resume are in the new config.yaml: its parameters can be set once only.
    """

    name = "mlflow"

    def __init__(self, run_dir: Path, config: Config, resumed_step: int, ids: dict[str, str]) -> None:
        mlflow: Any = import_module("mlflow")
        self._entities: Any = import_module("mlflow.entities")
        # By its own defaults a server that does not answer would hold training for minutes, at each record.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        self._beside = None if os.environ.get("MLFLOW_TRACKING_URI") else run_dir.absolute().parent
        self._client = mlflow.MlflowClient(self._beside and f"sqlite:///{self._beside / 'mlflow.db'}")
        if self.name in ids:
            self._client.update_run(ids[self.name], status="RUNNING")
        else:
            ids[self.name] = self._begin(run_dir, config)
        self._id = ids[self.name]
        self._client.log_text(self._id, config_to_yaml(config), "config.yaml")

    def _begin(self, run_dir: Path, config: Config) -> str:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(experiment)
        files = self._beside and (self._beside / "mlflow-artifacts").as_uri()
        place = found.experiment_id if found else self._client.create_experiment(experiment, files)
        run = self._client.create_run(place, run_name=os.environ.get("MLFLOW_RUN_NAME", run_dir.absolute().name))
        settings = [self._entities.Param(name, _short(str(value))) for name, value in flat_settings(config).items()]
        for first in range(0, len(settings), _AT_ONCE):
            self._client.log_batch(run.info.run_id, params=settings[first : first + _AT_ONCE])
        return run.info.run_id

    def record(self, metrics: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        rows = [self._entities.Metric(_TOTAL.get(name, name), value, now, step) for name, value in metrics.items()]
        self._client.log_batch(self._id, metrics=rows)

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{len(text)} characters: see config.yaml"


_MODULES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
_BOARDS = {board.name: board for board in (TensorBoard, Wandb, Mlflow)}
_HINTS = {
    "wandb": "; WANDB_MODE=offline keeps it in the run folder",
    "mlflow": "; MLFLOW_TRACKING_URI says where it is",
}


class Boards:
    """All boards of a run: one that fails again and again is left out for the rest of it, and training goes on."""

    patience = 3

    def __init__(self, boards: Sequence[Board]) -> None:
        self._failures = dict.fromkeys(boards, 0)

    def record(self, metrics: Mapping[str, float], step: int) -> list[str]:
        """Lines on what could not be shown."""
        finite = {name: value for name, value in metrics.items() if name != "step" and math.isfinite(value)}
        said = []
        for board in list(self._failures):
            try:
                board.record(finite, step)
                self._failures[board] = 0
            except Exception as error:  # a server's troubles are no reason to lose a run
                self._failures[board] += 1
                last = self._failures[board] == self.patience
                if last:
                    del self._failures[board]
                more = "; nothing more is sent to it, metrics.jsonl has it all" if last else ""
                said.append(f"{board.name}: step {step} could not be recorded: {error}{more}")
        return said

    def close(self, failed: bool) -> list[str]:
        """Lines on what could not be closed."""
        said = []
        for board in self._failures:
            try:
                board.close(failed)
            except Exception as error:
                said.append(f"{board.name}: could not be closed: {error}")
        return said
